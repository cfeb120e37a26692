#!/usr/bin/env python3
"""Measures Hugging Face transformers on token ids: the baseline of the engine.

    python3 hf.py MODEL WORKLOADS.json [--modes batched,card] [--dtype auto] [--device cpu] ...   # torch, transformers

MODEL is a folder in Hugging Face layout; one that has a config.json and no weights gets random ones of that config, made on
the device. WORKLOADS.json (- is standard input) lists workloads, each a list of sequences of token ids of one length, so
that nothing is padded. `bench --compare` runs this with all of its workloads.
Both modes are transformers' own forward pass with sdpa attention, from ids to rewards, tokenization excluded:

    batched     at its fastest: one logit of the last token (logits_to_keep=1; a classifier's score head), no cache,
                and of several batch sizes the one whose first run was the fastest
    card        as the card of Llama-3.3-Nemotron-70B-Reward-Multilingual shows: one conversation at a time through
                generate(max_new_tokens=1, output_scores=True); a classifier's card calls the model, also one at a time

A forward warms each batch size up. One JSON object comes out on stdout, with the seconds of every run.
"""
import argparse
import json
import pathlib
import resource
import sys
import time

import torch
import transformers


class Model:
    """A reward model and its two modes of scoring."""

    def __init__(self, folder, dtype, device):
        names = json.loads((folder / "config.json").read_text())["architectures"]
        self.classifier = "LlamaForSequenceClassification" in names
        kind = transformers.AutoModelForSequenceClassification if self.classifier else transformers.AutoModelForCausalLM
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        self.random_weights = not any(folder.glob("*.safetensors"))
        if self.random_weights:
            torch.manual_seed(0)
            with torch.device("cuda" if device == "auto" else device):
                model = kind.from_config(transformers.AutoConfig.from_pretrained(folder), **options)
        elif device == "auto":
            # As on the card: layers on GPU after GPU. It needs the package `accelerate`.
            model = kind.from_pretrained(folder, device_map="auto", **options)
        else:
            model = kind.from_pretrained(folder, **options).to(device)
        self.model = model.eval()
        self.device = self.model.device

    def batched(self, ids):
        last = {} if self.classifier else {"logits_to_keep": 1}
        logits = self.model(input_ids=ids.to(self.device), use_cache=False, **last).logits
        return (logits[:, 0] if self.classifier else logits[:, -1, 0]).float().tolist()

    def card(self, ids):
        ids = ids.to(self.device)
        if self.classifier:
            return [self.model(ids).logits[0][0].item()]
        output = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, return_dict_in_generate=True,
            output_scores=True, do_sample=False, pad_token_id=0,
        )
        return [output["scores"][0][0][0].item()]


def timed(mode, ids, batch):
    """Rewards, seconds, and seconds of this process's CPU time."""
    start, cpu_start = time.perf_counter(), time.process_time()
    rewards = [reward for part in ids.split(batch) for reward in mode(part)]
    return rewards, time.perf_counter() - start, time.process_time() - cpu_start


def repeat(mode, ids, batch, options):
    seconds, cpu_seconds = [], []
    while len(seconds) < options.repeats or sum(seconds) < options.seconds:
        rewards, run, cpu_run = timed(mode, ids, batch)
        seconds.append(run)
        cpu_seconds.append(cpu_run)
    return {"batch": batch, "seconds": seconds, "cpu_seconds": cpu_seconds, "rewards": rewards}


def measure_batched(model, ids, options):
    first = {}
    for batch in sorted({1, min(4, len(ids)), min(16, len(ids)), len(ids)}):
        try:
            model.batched(ids[:batch])
            first[batch] = timed(model.batched, ids, batch)[1]
        except torch.OutOfMemoryError:
            # Larger ones do not fit either.
            torch.cuda.empty_cache()
            break
    if not first:
        sys.exit(f"a sequence of {ids.shape[1]} tokens does not fit on {options.device}")
    best = min(first, key=first.get)
    return {**repeat(model.batched, ids, best, options), "first_seconds_by_batch": first}


def measure_card(model, ids, options):
    model.card(ids[:1])
    return repeat(model.card, ids, 1, options)


MODES = {"batched": measure_batched, "card": measure_card}


def in_words(device):
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)


def peak_bytes(device):
    """Peak memory: in RAM, or on the GPUs."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return sum(torch.cuda.max_memory_allocated(gpu) for gpu in range(torch.cuda.device_count()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("workloads", type=pathlib.Path)
    parser.add_argument("--modes", default="batched,card")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto: layers on GPU after GPU")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.0, help="repeat for at least this time")
    options = parser.parse_args()
    workloads = json.loads(sys.stdin.read() if str(options.workloads) == "-" else options.workloads.read_text())
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU here")
    if options.dtype == "auto":
        on_gpu = "bfloat16" if options.device != "cpu" and torch.cuda.get_device_capability() >= (8, 0) else "float16"
        options.dtype = "float32" if options.device == "cpu" else on_gpu
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = Model(options.model, options.dtype, options.device)
    rows = []
    with torch.inference_mode():
        for sequences in workloads:
            ids = torch.tensor(sequences)
            rows.append({mode: MODES[mode](model, ids, options) for mode in options.modes.split(",")})
    print(json.dumps({
        "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "device": in_words(model.device),
        "dtype": options.dtype,
        "random_weights": model.random_weights,
        "peak_memory_bytes": peak_bytes(model.device),
        "rows": rows,
    }))


if __name__ == "__main__":
    main()

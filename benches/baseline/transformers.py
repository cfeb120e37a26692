#!/usr/bin/env python3
"""How fast Hugging Face transformers scores token ids on this machine: what the engine is held against.

    python3 transformers.py MODEL WORKLOAD.json [float32|bfloat16] [RUNS]      # torch, transformers

The workload is {"sequences": [[id, ..], ..]}, all of one length, so that nothing is padded. What is timed is the forward
pass that yields the reward and no more: one logit of the last token (`logits_to_keep=1` for a causal model, the score
head for a classifier), sdpa attention, no cache. One sequence at a time, four at a time and all at once are
tried, and the fastest is what counts. One JSON object comes out on stdout, with the seconds of every run; one
forward of each size warms up.
"""
import argparse
import json
import pathlib
import resource
import sys
import time

# This file has the name of what it measures: with its folder off the path, `transformers` is the package.
sys.path = sys.path[1:]

import torch
import transformers


def load(folder, dtype):
    names = json.loads((pathlib.Path(folder) / "config.json").read_text())["architectures"]
    classifier = "LlamaForSequenceClassification" in names
    kind = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    last = {} if classifier else {"logits_to_keep": 1}

    def rewards(ids):
        logits = model(input_ids=ids, use_cache=False, **last).logits
        return (logits[:, 0] if classifier else logits[:, -1, 0]).float().tolist()

    return rewards


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("workload", type=pathlib.Path)
    parser.add_argument("dtype", nargs="?", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("runs", nargs="?", type=int, default=5)
    options = parser.parse_args()
    ids = torch.tensor(json.loads(options.workload.read_text())["sequences"])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rewards_of, by_batch, cpu_by_batch = load(options.model, options.dtype), {}, {}
    with torch.inference_mode():
        for batch in sorted({1, min(4, len(ids)), len(ids)}):
            seconds, cpu_seconds = [], []
            rewards_of(ids[:batch])
            for _ in range(options.runs):
                start, cpu_start = time.perf_counter(), time.process_time()
                rewards = [reward for part in ids.split(batch) for reward in rewards_of(part)]
                seconds.append(time.perf_counter() - start)
                cpu_seconds.append(time.process_time() - cpu_start)
            by_batch[batch], cpu_by_batch[batch] = seconds, cpu_seconds
    best = min(by_batch, key=lambda batch: min(by_batch[batch]))
    print(json.dumps({
        "engine": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "device": f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "math": options.dtype,
        "tokens": ids.numel(),
        "batch": best,
        "seconds": by_batch[best],
        "cpu_seconds": min(cpu_by_batch.values(), key=min),
        "seconds_by_batch": by_batch,
        "cpu_seconds_by_batch": cpu_by_batch,
        "best_tokens_per_second": ids.numel() / min(by_batch[best]),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rewards": rewards,
    }))


if __name__ == "__main__":
    main()

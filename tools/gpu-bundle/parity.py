#!/usr/bin/env python3
"""Compares kudos on CUDA with Transformers on models of real widths: random weights, made here, nothing downloaded.

    python3 parity.py run MODEL --kudos bin/kudos --out DIR     # one model of MODELS: DIR/MODEL.json
    python3 parity.py judge --out DIR                           # all of them together: DIR/pooled.json
    ... --tiny --torch-device cpu                               # small models, for a machine without a GPU

The truth is Transformers in float32 on the checkpoint's bf16 weights, one conversation at a time, without TF32 and with
attention in plain steps. Transformers in bf16 (sdpa), run likewise, has an error against it; so has kudos, which gets
all conversations at once. The bounds are those of tests/cuda.rs: over all models a mean error of POOLED_RATIO_MAX times
that of Transformers in bf16, for each model MODEL_RATIO_MAX times, and the same winner wherever float32 tells two
conversations apart by more than 4 times our mean error.

Exits with 0 when the bounds hold, 1 when they do not, and 77 with a last line `not run: WHY` when it cannot run.
"""
import argparse
import contextlib
import gc
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

POOLED_RATIO_MAX = 1.15
MODEL_RATIO_MAX = 2.0
WINNER_MARGIN = 4.0

NOT_RUN = 77

# hidden, ffn, layers, q_heads, kv_heads, head_dim. In order of importance: heads as the 70B has them come first.
MODELS = {
    "hd128": dict(seed=11, sizes=(4096, 14336, 4, 32, 8, 128), tied=False, factor=8.0),
    "hd64_tied": dict(seed=12, sizes=(2048, 8192, 16, 32, 8, 64), tied=True, factor=32.0),
    "seqcls": dict(seed=13, sizes=(3072, 8192, 8, 24, 8, 128), tied=False, factor=8.0, classifier=True),
}
TINY = {
    "hd128": (256, 512, 2, 4, 1, 128),
    "hd64_tied": (256, 512, 2, 4, 1, 64),
    "seqcls": (384, 512, 2, 6, 2, 64),
}
VOCAB = 32_000
TINY_VOCAB = 512
# Longer conversations than this are beyond what the frequencies are scaled from, so that llama3's blend shows.
ROPE_ORIGINAL = 1024

LENGTHS = [1, 2, 17, 63, 64, 65, 127, 200, 511, 512, 777, 1023, 1024, 1500, 2048]
TINY_LENGTHS = [1, 2, 17, 63, 64, 65, 127]
# Each length so often, with other ids: the ratio of two means over n cases scatters by about 1.07 / sqrt(n) where both
# are equally good, which is 0.08 for the 195 cases of three models, and 0.1 for half of them.
REPEATS = 4
TINY_REPEATS = 2
# One prompt, and responses of these lengths to it.
PROMPT = 200
RESPONSES = [1, 17, 63, 64, 130]
TINY_PROMPT = 70
TINY_RESPONSES = [1, 6, 13, 64]


class NotRun(Exception):
    """This machine lacks something that the comparison needs."""


def sizes_of(name, tiny):
    hidden, ffn, layers, q_heads, kv_heads, head_dim = TINY[name] if tiny else MODELS[name]["sizes"]
    return dict(hidden=hidden, ffn=ffn, layers=layers, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim,
                vocab=TINY_VOCAB if tiny else VOCAB)


def config_of(name, tiny):
    """config.json as transformers 4 spells it, which later ones read as well."""
    model, sizes = MODELS[name], sizes_of(name, tiny)
    config = {
        "architectures": ["LlamaForSequenceClassification" if "classifier" in model else "LlamaForCausalLM"],
        "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
        "hidden_size": sizes["hidden"], "intermediate_size": sizes["ffn"], "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["q_heads"], "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_dim"], "vocab_size": sizes["vocab"], "tie_word_embeddings": model["tied"],
        "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 1,
        "max_position_embeddings": 4096, "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": model["factor"], "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": ROPE_ORIGINAL},
    }
    if "classifier" in model:
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return config


def tensors_of(name, tiny):
    """Names, shapes and standard deviations (None: a norm's weight, about 1), as tests/fixtures/models/make.py has them:
    attention scores of about 2, branches about the residual's size, rewards of about 1. With Hugging Face's own 0.02
    attention would be almost uniform, and a mistake in it would hardly show."""
    model, sizes = MODELS[name], sizes_of(name, tiny)
    hidden, ffn, head_dim = sizes["hidden"], sizes["ffn"], sizes["head_dim"]
    q_width, kv_width = sizes["q_heads"] * head_dim, sizes["kv_heads"] * head_dim
    of_hidden = 1.0 / math.sqrt(hidden)
    embedding = of_hidden if model["tied"] else 0.02
    yield "model.embed_tokens.weight", (sizes["vocab"], hidden), embedding
    for layer in range(sizes["layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,), None
        yield at + "self_attn.q_proj.weight", (q_width, hidden), 1.4 * of_hidden
        yield at + "self_attn.k_proj.weight", (kv_width, hidden), 1.4 * of_hidden
        yield at + "self_attn.v_proj.weight", (kv_width, hidden), 1.2 * of_hidden
        yield at + "self_attn.o_proj.weight", (hidden, q_width), 2.0 / math.sqrt(q_width)
        yield at + "post_attention_layernorm.weight", (hidden,), None
        yield at + "mlp.gate_proj.weight", (ffn, hidden), 1.4 * of_hidden
        yield at + "mlp.up_proj.weight", (ffn, hidden), of_hidden
        yield at + "mlp.down_proj.weight", (hidden, ffn), 1.4 / math.sqrt(ffn)
    yield "model.norm.weight", (hidden,), None
    if "classifier" in model:
        yield "score.weight", (1, hidden), 1.5 * of_hidden
    elif not model["tied"]:
        yield "lm_head.weight", (sizes["vocab"], hidden), 1.5 * of_hidden


def cases_of(name, tiny):
    """Conversations as token ids: every length several times, and one prompt with responses that share it."""
    import random  # its ids are equal in every version, with torch or without

    generator = random.Random(1000 + MODELS[name]["seed"])
    vocab = sizes_of(name, tiny)["vocab"]

    def draw(tokens):
        return [generator.randrange(vocab) for _ in range(tokens)]

    cases = []
    for _ in range(TINY_REPEATS if tiny else REPEATS):
        for tokens in TINY_LENGTHS if tiny else LENGTHS:
            cases.append({"kind": "alone", "input_ids": draw(tokens)})
    prompt = draw(TINY_PROMPT if tiny else PROMPT)
    for tokens in TINY_RESPONSES if tiny else RESPONSES:
        cases.append({"kind": "shared prompt", "input_ids": prompt + draw(tokens)})
    # Neighbours in the input then differ in length and share no prompt.
    generator.shuffle(cases)
    return cases


def make_checkpoint(name, tiny, folder):
    """Drawn on the CPU, so that one version of torch makes equal weights on every machine."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(MODELS[name]["seed"])
    tensors = {}
    for tensor, shape, std in tensors_of(name, tiny):
        noise = torch.randn(shape, generator=generator)
        tensors[tensor] = (1.0 + 0.25 * noise if std is None else std * noise).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(name, tiny), indent=1))
    return sum(tensor.numel() for tensor in tensors.values())


def transformers_rewards(folder, dtype_name, device, cases):
    """Logit 0 of the last token of each conversation, batch size 1."""
    import torch
    import transformers
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    keyword = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    model, loading = getattr(transformers, kind).from_pretrained(
        folder, attn_implementation="sdpa", output_loading_info=True, **{keyword: getattr(torch, dtype_name)})
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[problem]:
            raise SystemExit(f"error: Transformers did not load {kind} as it was saved: {problem} {loading[problem]}")
    model = model.eval().to(device)
    # The fused kernels for float32 may round their operands; the plain steps do not. bf16 uses the default kernels.
    attention = sdpa_kernel(SDPBackend.MATH) if dtype_name == "float32" else contextlib.nullcontext()
    rewards = []
    with torch.no_grad(), attention:
        for case in cases:
            ids = torch.tensor([case["input_ids"]], device=device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            rewards.append((logits[0] if logits.dim() == 2 else logits[0, -1])[0].item())
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return rewards


def kudos_rewards(kudos, folder, cases):
    """All conversations in one run of the command, which may have another library path than Python."""
    lines = "".join(json.dumps({"id": i, "input_ids": case["input_ids"]}) + "\n" for i, case in enumerate(cases))
    environment = dict(os.environ)
    if "KUDOS_LD_LIBRARY_PATH" in environment:
        environment["LD_LIBRARY_PATH"] = environment.pop("KUDOS_LD_LIBRARY_PATH")
    command = [str(kudos), "score", "--device", "cuda", "--model", str(folder), "-"]
    run = subprocess.run(command, input=lines, capture_output=True, text=True, env=environment)
    sys.stdout.write(run.stderr)
    if run.returncode != 0:
        raise SystemExit(f"error: kudos ended with status {run.returncode}\n{run.stdout[-2000:]}")
    results = [json.loads(line) for line in run.stdout.splitlines()]
    if [result["id"] for result in results] != list(range(len(cases))):
        raise SystemExit(f"error: kudos gave {len(results)} results, not {len(cases)} in the order of its input")
    return results, run.stderr.strip().splitlines()[:1]


def mean(values):
    return sum(values) / len(values)


def errors_of(cases, key):
    return [abs(case[key] - case["reward_f32"]) for case in cases]


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary_of(cases):
    """Our mean error in units of that of Transformers in bf16, and its parts."""
    ours, theirs = errors_of(cases, "reward"), errors_of(cases, "reward_hf_bf16")
    rewards = [case["reward_f32"] for case in cases]
    spread = math.sqrt(mean([(reward - mean(rewards)) ** 2 for reward in rewards]))
    return {"cases": len(cases), "ratio": mean(ours) / mean(theirs), "mean_error": mean(ours),
            "mean_error_hf_bf16": mean(theirs), "p99_error": percentile(ours, 0.99),
            "p99_error_hf_bf16": percentile(theirs, 0.99), "max_error": max(ours), "max_error_hf_bf16": max(theirs),
            "reward_std_f32": spread}


def wrong_winners(cases, margin):
    """Pairs that float32 tells apart by more than `margin` and kudos ranks otherwise, and the count of all such pairs."""
    far = [(a, b) for a in range(len(cases)) for b in range(len(cases))
           if cases[a]["reward_f32"] - cases[b]["reward_f32"] > margin]
    return [pair for pair in far if not cases[pair[0]]["reward"] > cases[pair[1]]["reward"]], len(far)


def line_of(summary):
    return (f"{summary['cases']} cases: {summary['ratio']:.3f} of the error of Transformers in bf16 "
            f"({summary['mean_error']:.5f} against {summary['mean_error_hf_bf16']:.5f}), rewards spread by "
            f"{summary['reward_std_f32']:.2f}")


def usable(device):
    """Raises NotRun, which names what is missing."""
    try:
        import safetensors  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise NotRun(f"{sys.executable} has no {error.name}") from None
    if device == "cuda" and not torch.cuda.is_available():
        raise NotRun(f"torch {torch.__version__} sees no GPU")


def run_model(name, options):
    usable(options.torch_device)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    cases, seconds = cases_of(name, options.tiny), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)

        def timed(what, function, *arguments):
            started = time.monotonic()
            result = function(*arguments)
            seconds[what] = round(time.monotonic() - started, 3)
            print(f"{what}: {seconds[what]} s", flush=True)
            return result

        parameters = timed("checkpoint", make_checkpoint, name, options.tiny, folder)
        results, device = timed("kudos", kudos_rewards, options.kudos, folder, cases)
        f32 = timed("float32", transformers_rewards, folder, "float32", options.torch_device, cases)
        bf16 = timed("bfloat16", transformers_rewards, folder, "bfloat16", options.torch_device, cases)
    for case, result, reward_f32, reward_bf16 in zip(cases, results, f32, bf16):
        case["tokens"] = len(case.pop("input_ids"))
        case.update(reward=result["reward"], reward_bf16=result["reward_bf16"], reward_f32=reward_f32,
                    reward_hf_bf16=reward_bf16)
        print(f"{case['tokens']:5} tokens, {case['kind']:13}: float32 {reward_f32:9.5f}  Transformers in bf16 "
              f"{reward_bf16:9.5f}  kudos {result['reward']:9.5f}")
    summary = summary_of(cases)
    record = {"model": name, "tiny": options.tiny, "seed": MODELS[name]["seed"], "parameters": parameters,
              "config": config_of(name, options.tiny), "kudos": device,
              "torch": torch.__version__, "transformers": transformers.__version__,
              "torch_device": torch.cuda.get_device_name() if options.torch_device == "cuda" else options.torch_device,
              "seconds": seconds, "summary": summary, "ratio_max": MODEL_RATIO_MAX, "cases": cases}
    (options.out / f"{name}.json").write_text(json.dumps(record))
    print(f"detail: {line_of(summary)}")
    if not summary["ratio"] <= MODEL_RATIO_MAX:
        raise SystemExit(f"error: {name}: {summary['ratio']:.3f} is more than {MODEL_RATIO_MAX}")


def judge(options):
    """Judges the models that ran; one that did not run is named, and is a failure of its own step."""
    records = {}
    for name in MODELS:
        path = options.out / f"{name}.json"
        if path.exists():
            records[name] = json.loads(path.read_text())
    if not records:
        raise NotRun("no model was compared")
    summary = summary_of([case for record in records.values() for case in record["cases"]])
    margin = WINNER_MARGIN * summary["mean_error"]
    winners = {}
    for name, record in records.items():
        wrong, pairs = wrong_winners(record["cases"], margin)
        winners[name] = {"pairs": pairs, "wrong": wrong}
        print(f"{name}: {line_of(record['summary'])}; {len(wrong)} wrong winners in {pairs} pairs further apart than "
              f"{margin:.4f}")
    wrong = sum(len(found["wrong"]) for found in winners.values())
    pairs = sum(found["pairs"] for found in winners.values())
    missing = [name for name in MODELS if name not in records]
    record = {"model": "pooled", "summary": summary, "ratio_max": POOLED_RATIO_MAX, "margin": margin,
              "winners": winners, "missing": missing}
    (options.out / "pooled.json").write_text(json.dumps(record))
    without = f"; without {', '.join(missing)}, which did not run" if missing else ""
    print(f"detail: {line_of(summary)}; {wrong} wrong winners of {pairs}{without}")
    if not summary["ratio"] <= POOLED_RATIO_MAX:
        raise SystemExit(f"error: pooled: {summary['ratio']:.3f} is more than {POOLED_RATIO_MAX}")
    if wrong:
        raise SystemExit(f"error: {wrong} of {pairs} pairs have another winner than in float32")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "judge"])
    parser.add_argument("model", nargs="?", choices=list(MODELS))
    parser.add_argument("--kudos", type=pathlib.Path, default=pathlib.Path("bin/kudos"))
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--torch-device", default="cuda", choices=["cuda", "cpu"])
    options = parser.parse_args()
    if (options.action == "run") != (options.model is not None):
        parser.error("`run` takes a model, `judge` takes none")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        if options.action == "run":
            run_model(options.model, options)
        else:
            judge(options)
    except NotRun as reason:
        print(f"not run: {reason}")
        sys.exit(NOT_RUN)


if __name__ == "__main__":
    main()

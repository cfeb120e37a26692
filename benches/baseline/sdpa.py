#!/usr/bin/env python3
"""Measures each backend of torch's scaled_dot_product_attention at given shapes.

    python3 sdpa.py [--shape Q_HEADS,KV_HEADS,HEAD_DIM,TOKENS[,SEQUENCES]] ... [--device cuda] [--dtype bfloat16]    # torch

On a GPU every run is timed by CUDA events, after the L2 cache was filled with other bytes; on a CPU by the wall clock, with
the process's CPU time beside it. Attention is causal unless --full is given. A shape that a backend does not support is an entry
with torch's reason. A backend without grouped heads gets keys and values repeated beforehand, which is not timed and shows
in its entry ("gqa": "repeated"). FLOP: 4 * q_heads * head_dim * pairs of query and key, of
which causal attention has tokens * (tokens + 1) / 2. One JSON object comes out on stdout, with the seconds of every run.
"""
import argparse
import json
import statistics
import sys
import time
import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# The 70B's heads, at the lengths at which attention is compared, and the 8B's.
TOKENS = {64: [512 << doubling for doubling in range(8)], 32: [2048, 4096, 8192, 16384]}
SHAPES = [f"{q_heads},8,128,{tokens}" for q_heads, lengths in TOKENS.items() for tokens in lengths]
# More than any L2 cache holds.
FLUSH_BYTES = 256 << 20


def attend(q, k, v, options, gqa):
    return scaled_dot_product_attention(q, k, v, is_causal=not options.full, enable_gqa=gqa)


def run_on_gpu(call, flush):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, None


def run_on_cpu(call):
    start, cpu_start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu_start


def repeat(call, options):
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=options.device) if options.device == "cuda" else None
    call()
    samples, began = [], time.perf_counter()
    while len(samples) < options.repeats or time.perf_counter() - began < options.seconds:
        samples.append(run_on_cpu(call) if flush is None else run_on_gpu(call, flush))
    return [seconds for seconds, _ in samples], [cpu for _, cpu in samples if cpu is not None]


def measure(backend, q, k, v, flop, options):
    """One backend at one shape, or its reason for not running it."""
    groups, why = q.shape[1] // k.shape[1], []
    variants = [("native", k, v)] if groups == 1 else [("native", k, v), ("repeated", None, None)]
    for gqa, keys, values in variants:
        try:
            if keys is None:
                keys, values = (x.repeat_interleave(groups, dim=1) for x in (k, v))
            native = gqa == "native" and groups > 1
            with sdpa_kernel(BACKENDS[backend]), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                seconds, cpu_seconds = repeat(lambda: attend(q, keys, values, options, native), options)
        # OutOfMemoryError is a RuntimeError.
        except RuntimeError as error:
            why.append(f"{gqa}: " + " ".join([str(error).splitlines()[0], *(str(warning.message) for warning in warned)]))
            continue
        found = {"backend": backend, "gqa": gqa, "seconds": seconds, "cpu_seconds": cpu_seconds or None}
        return {**found, "tflops_median": flop / statistics.median(seconds) / 1e12, "why_not": why or None}
    return {"backend": backend, "gqa": None, "seconds": None, "cpu_seconds": None, "tflops_median": None, "why_not": why}


def row(text, options):
    q_heads, kv_heads, head_dim, tokens, *rest = (int(size) for size in text.split(","))
    sequences = rest[0] if rest else 1
    torch.manual_seed(0)

    def take(heads):
        return torch.randn(sequences, heads, tokens, head_dim, device=options.device, dtype=getattr(torch, options.dtype))

    q, k, v = take(q_heads), take(kv_heads), take(kv_heads)
    pairs = sequences * (tokens * tokens if options.full else tokens * (tokens + 1) // 2)
    flop = 4 * q_heads * head_dim * pairs
    with torch.inference_mode():
        backends = [measure(backend, q, k, v, flop, options) for backend in options.backends.split(",")]
    sizes = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim, "tokens": tokens, "sequences": sequences}
    return {**sizes, "causal": not options.full, "flop": flop, "backends": backends}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", help="may be given several times")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--full", action="store_true", help="not causal")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.0, help="repeat for at least this time")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU here")
    on_gpu = options.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps({
        "engine": f"torch {torch.__version__}",
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "device": name,
        "dtype": options.dtype,
        "clock": "CUDA events" if on_gpu else "wall",
        "rows": [row(text, options) for text in options.shape or SHAPES],
    }))


if __name__ == "__main__":
    main()

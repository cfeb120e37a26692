#!/usr/bin/env python3
"""Writes a checkpoint of 4 layers of Llama 3.1 8B's widths, 1.7 GB of arbitrary bytes in bf16, for `bench load`.

    python3 checkpoint.py FOLDER

Nothing is imported but the standard library.
"""
import json
import math
import random
import struct
import sys
from pathlib import Path

HIDDEN, FFN, KV, LAYERS, VOCAB = 4096, 14336, 1024, 4, 256
PERIOD = 16 << 20

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def tensors():
    """Yields the name and the shape of every tensor."""
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    for layer in range(LAYERS):
        for name, shape in {
            "input_layernorm": [HIDDEN],
            "post_attention_layernorm": [HIDDEN],
            "self_attn.q_proj": [HIDDEN, HIDDEN],
            "self_attn.k_proj": [KV, HIDDEN],
            "self_attn.v_proj": [KV, HIDDEN],
            "self_attn.o_proj": [HIDDEN, HIDDEN],
            "mlp.gate_proj": [FFN, HIDDEN],
            "mlp.up_proj": [FFN, HIDDEN],
            "mlp.down_proj": [HIDDEN, FFN],
        }.items():
            yield f"model.layers.{layer}.{name}.weight", shape


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, offset = {}, 0
    for name, shape in tensors():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    period = random.Random(0).randbytes(PERIOD)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for first in range(0, offset, PERIOD):
            file.write(period[: offset - first])


main()

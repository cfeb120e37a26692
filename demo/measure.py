#!/usr/bin/env python3
"""Measures the demo model with transformers, and records its rewards of 50 held-out pairs.

    OMP_NUM_THREADS=1 python3 demo/measure.py --model demo/model

Prints the share of held-out pairs won, and writes beside itself
    pairs.jsonl     50 held-out pairs as `kudos score` reads them; "best" is the index of the right response
    expected.json   their token ids and rewards, in float32 and in bfloat16, each conversation run alone and unpadded
The reward is logits[0, -1, 0]: float32 means the bf16 weights of the file widened, bfloat16 means all arithmetic in it.
"""
import argparse
import collections
import json
import os
import pathlib
import platform
import random
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.dont_write_bytecode = True

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import arithmetic

HERE = pathlib.Path(__file__).resolve().parent
CARD = ("What is 1+1?", "1+1=2", "1+1=3")


def conversation_ids(tokenizer, prompt, response):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(messages, return_dict=False)


def reward(model, ids):
    """The reward of one conversation, alone."""
    return model(torch.tensor([ids])).logits[0, -1, 0].float().item()


def rewards(model, rows, batch=256):
    """Rewards of many conversations: rows of one length together, so that nothing is ever padded."""
    by_length = collections.defaultdict(list)
    for i, row in enumerate(rows):
        by_length[len(row)].append(i)
    out = [0.0] * len(rows)
    for group in by_length.values():
        for at in range(0, len(group), batch):
            part = group[at : at + batch]
            logits = model(torch.tensor([rows[i] for i in part]), logits_to_keep=1).logits[:, -1, 0]
            for i, value in zip(part, logits.tolist()):
                out[i] = value
    return out


def accuracy_table(pairs, margins):
    """-> [(name, won, of)]: all pairs, then by operator, then by kind of error."""
    groups = collections.defaultdict(list)
    for pair, margin in zip(pairs, margins):
        for name in ("all", pair.operator, pair.error):
            groups[name].append(margin > 0)
    names = ["all", *arithmetic.OPERATORS, *sorted({p.error for p in pairs})]
    return [(name, sum(groups[name]), len(groups[name])) for name in names]


def measure(model, tokenizer, pairs):
    rows = [conversation_ids(tokenizer, p.prompt, answer) for p in pairs for answer in (p.right, p.wrong)]
    values = rewards(model, rows)
    right, wrong = values[0::2], values[1::2]
    for name, won, of in accuracy_table(pairs, [r - w for r, w in zip(right, wrong)]):
        print(f"  {name:15} {won:5} of {of:5}  {100 * won / of:6.2f} %")
    for name, some in ("right", right), ("wrong", wrong):
        some = sorted(some)
        print(f"  reward of the {name} answers: median {some[len(some) // 2]:.2f}, from {some[0]:.2f} to {some[-1]:.2f}")


def sample(pairs, seed, count):
    """-> input lines: the card's example, then `count` of `pairs`, the right response first or second by chance."""
    rng = random.Random(f"sample {seed}")
    chosen = [("card", *CARD)] + [(f"held-out-{i + 1:02}", p.prompt, p.right, p.wrong) for i, p in enumerate(pairs[:count])]
    lines = []
    for name, prompt, right, wrong in chosen:
        best = rng.randrange(2)
        lines.append({"id": name, "prompt": prompt, "responses": [wrong, right] if best else [right, wrong], "best": best})
    return lines


def record(model_f32, model_bf16, tokenizer, lines, args):
    rows = []
    for line in lines:
        for i, response in enumerate(line["responses"]):
            ids = conversation_ids(tokenizer, line["prompt"], response)
            rows.append(
                {
                    "id": f"{line['id']}/{i}",
                    "prompt": line["prompt"],
                    "response": response,
                    "input_ids": ids,
                    "reward_f32": reward(model_f32, ids),
                    "reward_bf16": reward(model_bf16, ids),
                }
            )
    made_by = {
        "script": "demo/measure.py",
        "seed": args.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "python": platform.python_version(),
        "device": "cpu",
        "attention": "eager",
        "reward": "logits[0, -1, 0], one conversation at a time, no padding",
    }
    body = ",\n".join("  " + json.dumps(row) for row in rows)
    text = f'{{\n "made_by": {json.dumps(made_by)},\n "rows": [\n{body}\n ]\n}}\n'
    (HERE / "expected.json").write_text(text)
    (HERE / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    gaps = [abs(row["reward_f32"] - row["reward_bf16"]) for row in rows]
    print(f"bf16 against f32 on {len(rows)} conversations: mean {sum(gaps) / len(gaps):.4f}, most {max(gaps):.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "model")
    parser.add_argument("--seed", type=int, default=1, help="the seed that train.py was given")
    parser.add_argument("--pairs", type=int, default=50, help="held-out pairs to record")
    parser.add_argument("--wordings", type=int, default=1, help="pairs made of each held-out operand pair; only 1 records")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def load(dtype):
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="eager").eval()

    model = load(torch.float32)
    pairs = arithmetic.held_out_pairs(args.seed, args.wordings)
    print("held-out pairs won, bf16 weights, float32 arithmetic")
    measure(model, tokenizer, pairs)
    print("for comparison, 2,000 other pairs over operands that were trained on")
    seen = list(arithmetic.training_pairs(args.seed, 2000, stream="comparison", errors=arithmetic.ERRORS))
    measure(model, tokenizer, seen)
    right, wrong = (reward(model, conversation_ids(tokenizer, CARD[0], answer)) for answer in CARD[1:])
    print(f"{CARD[0]}  {CARD[1]} -> {right:.4f}  {CARD[2]} -> {wrong:.4f}")
    if args.wordings == 1:
        record(model, load(torch.bfloat16), tokenizer, sample(pairs, args.seed, args.pairs), args)


if __name__ == "__main__":
    main()

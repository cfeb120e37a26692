#!/usr/bin/env python3
"""Makes the demo: a Llama reward model of about a million parameters that tells right arithmetic from wrong.

    pip install -r demo/requirements.txt
    python3 demo/train.py --out demo/model
    python3 demo/measure.py --model demo/model

Three steps. A language-model loss on the results of bare equations ("17+25=42") teaches computing. Pairs of a right and a
wrong equation teach judging, and pairs of templated conversations to judge an answer by its question. Pairs are trained with the
Bradley-Terry loss, -log sigmoid(reward(right) - reward(wrong)), for each pair and, because it says more per step, for every
right answer of a batch against every wrong one; the results' loss goes on beside it. The reward is logit 0 of the last token, as
in the large model that this one represents: row 0 of lm_head is the reward head, the other rows serve the language-model loss.

One thread, one seed, deterministic algorithms, no network.
"""
import argparse
import json
import math
import os
import pathlib
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.dont_write_bytecode = True

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import arithmetic
import tokenizer as demo_tokenizer

HERE = pathlib.Path(__file__).resolve().parent

RESULT_STEPS, RESULT_RATE = 1700, 2e-3
REWARD_STEPS, REWARD_RATE = 1400, 1.5e-3
BATCH = 64  # answers in the first phase, pairs in the second
# In the first phase one step in RESULT_QUESTIONS is on templated conversations, the others are on bare equations, which are
# shorter, so that skills carry over while they are learned. (Otherwise they had to be learned again.) In the second phase
# the two alternate until step FACTS_UNTIL; after it all steps are on conversations.
RESULT_QUESTIONS, FACTS_UNTIL = 8, 700
WARM_UP = 50  # steps at the very start
WEIGHT_DECAY = 0.05  # of matrices; norm weights have none


def model_config(tokenizer):
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,  # not hidden / heads: readers of config.json must not compute it
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        initializer_range=0.06,
        # With 256 original positions the scaling has an effect: wavelengths above 256 are stretched 8 times, below 64 kept.
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        attn_implementation="eager",  # faster than the fused kernel at these lengths
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def conversation_ids(tokenizer, prompt, response):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return tokenizer.apply_chat_template(messages, return_dict=False)


def encode_texts(tokenizer, texts):
    coded = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [c.ids for c in coded]


def encode_facts(tokenizer, facts):
    """-> (no header, [(ids of the right line, of the wrong one)]), each between BOS and <|eot_id|>."""
    bos, eot = tokenizer.bos_token_id, tokenizer.eos_token_id
    sides = (encode_texts(tokenizer, (getattr(fact, side) for fact in facts)) for side in ("right", "wrong"))
    return [], [([bos, *right, eot], [bos, *wrong, eot]) for right, wrong in zip(*sides)]


def encode_questions(tokenizer, pairs):
    """-> (header that every conversation starts with, [(rest of the right conversation, of the wrong one)]), all as ids.

    The conversations are concatenated from pieces, which is much faster than rendering each; the first 200 are compared with
    the rendered ones.
    """
    frame = conversation_ids(tokenizer, "?", "!")
    # A role is followed by <|end_header_id|> and the empty line, one token each, as "?" is.
    user, assistant = (frame.index(tokenizer.convert_tokens_to_ids(role)) + 3 for role in ("user", "assistant"))
    header, between, eot = frame[:user], frame[user + 1 : assistant], frame[-1]
    sides = (encode_texts(tokenizer, (getattr(pair, side) for pair in pairs)) for side in ("prompt", "right", "wrong"))
    rows = [([*p, *between, *right, eot], [*p, *between, *wrong, eot]) for p, right, wrong in zip(*sides)]
    for pair, (right, wrong) in zip(pairs[:200], rows):
        assert header + right == conversation_ids(tokenizer, pair.prompt, pair.right)
        assert header + wrong == conversation_ids(tokenizer, pair.prompt, pair.wrong)
    return header, rows


def run_model(model, header, rows):
    """-> (ids [rows, longest], final hidden states [rows, longest, hidden]) of `rows`, each after `header`.

    The header's keys and values are computed once for all rows. Rows are padded on the right, where a causal model does not
    read it.
    """
    length = max(map(len, rows))
    ids = torch.tensor([row + [model.config.pad_token_id] * (length - len(row)) for row in rows])
    if not header:
        return ids, model.model(ids, use_cache=False).last_hidden_state
    cache = model.model(torch.tensor([header]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(rows))
    return ids, model.model(ids, past_key_values=cache).last_hidden_state


def result_span(row, digits):
    """Positions of the last number in `row`, and of the token after it, which ends the number."""
    end = max(j for j, token in enumerate(row) if token in digits)
    first = end
    while row[first - 1] in digits:
        first -= 1
    return range(first, end + 2)


def result_loss(model, ids, hidden, rows, digits):
    """Cross entropy of the results in `rows`, given the tokens before them."""
    i, j = torch.tensor([(i, j) for i, row in enumerate(rows) for j in result_span(row, digits)]).T
    # Row 0 of lm_head is the reward head; its token, "!", is never part of a result.
    logits = hidden[i, j - 1] @ model.lm_head.weight[1:].T
    return F.cross_entropy(logits, ids[i, j] - 1)


def reward_losses(model, header, pairs, digits):
    """-> (loss of the pairs, of all right x wrong, of the results, mean square reward, share of pairs won)."""
    n = len(pairs)
    rows = [right for right, _ in pairs] + [wrong for _, wrong in pairs]
    ids, hidden = run_model(model, header, rows)
    last = torch.tensor([len(row) - 1 for row in rows])
    reward = hidden[torch.arange(2 * n), last] @ model.lm_head.weight[0]
    right, wrong = reward[:n], reward[n:]
    return (
        F.softplus(wrong - right).mean(),
        F.softplus(wrong[None, :] - right[:, None]).mean(),
        result_loss(model, ids, hidden, rows[:n], digits),
        reward.square().mean(),
        (right > wrong).float().mean(),
    )


def cosine(progress, floor):
    """1 at progress 0, `floor` at 1."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """The model, its data, its optimizer, and the steps of its training."""

    def __init__(self, tokenizer, seed):
        torch.manual_seed(seed)
        self.tokenizer, self.seed = tokenizer, seed
        self.model = LlamaForCausalLM(model_config(tokenizer))
        self.digits = {tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"}
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.began, self.seen = time.monotonic(), {}
        steps = RESULT_STEPS // RESULT_QUESTIONS + REWARD_STEPS - FACTS_UNTIL // 2
        questions = list(arithmetic.training_pairs(seed, BATCH * steps))
        facts = list(arithmetic.training_facts(seed, BATCH * (RESULT_STEPS + REWARD_STEPS - steps)))
        self.data = {"facts": encode_facts(tokenizer, facts), "questions": encode_questions(tokenizer, questions)}
        self.taken = {"facts": 0, "questions": 0}

    def take(self, name):
        """-> (header, the next batch of pairs of a kind), in the order they were made."""
        header, rows = self.data[name]
        at = self.taken[name]
        self.taken[name] += BATCH
        return header, rows[at : at + BATCH]

    def step(self, loss, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def log(self, name, step, **values):
        """Gathers the values of each step and prints their means every 50 steps."""
        for key, value in values.items():
            self.seen.setdefault(f"{name} {key}", []).append(value.item())
        if step % 50 == 0:
            means = "  ".join(f"{key} {sum(v) / len(v):.3f}" for key, v in self.seen.items())
            print(f"step {step:4}  {means}  {time.monotonic() - self.began:.0f} s", flush=True)
            self.seen = {}

    def learn_results(self):
        """Trains computing: right answers, with the loss of their results alone."""
        for i in range(RESULT_STEPS):
            name = "facts" if (i + 1) % RESULT_QUESTIONS else "questions"
            header, pairs = self.take(name)
            rows = [right for right, _ in pairs]
            loss = result_loss(self.model, *run_model(self.model, header, rows), rows, self.digits)
            self.step(loss, RESULT_RATE * min(1, (i + 1) / WARM_UP) * cosine(i / RESULT_STEPS, floor=0.4))
            self.log(name, i + 1, result=loss)

    def learn_rewards(self):
        """Trains judging: pairs of a right and a wrong answer."""
        for i in range(REWARD_STEPS):
            name = "facts" if i < FACTS_UNTIL and i % 2 == 0 else "questions"
            header, pairs = self.take(name)
            pair, across, result, square, won = reward_losses(self.model, header, pairs, self.digits)
            # The small pull to 0 fixes the rewards' origin and scale, which pairs alone leave open.
            loss = pair + across + result + 0.001 * square
            self.step(loss, REWARD_RATE * cosine(i / REWARD_STEPS, floor=0.02))
            self.log(name, i + 1, pair=pair, result=result, rms=square.sqrt(), won=won)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "model", help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=demo_tokenizer.build(), **demo_tokenizer.config())
    tokenizer.chat_template = (HERE / "chat_template.jinja").read_text(encoding="utf-8")
    trainer = Trainer(tokenizer, args.seed)
    print(f"{trainer.model.num_parameters():,} parameters", flush=True)
    trainer.learn_results()
    trainer.learn_rewards()
    trainer.model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    # As Llama 3's own file, instead of one that names classes of transformers 5 only.
    config = json.dumps(demo_tokenizer.config(), indent=2) + "\n"
    (args.out / "tokenizer_config.json").write_text(config, encoding="utf-8")
    (args.out / "model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()

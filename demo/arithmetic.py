"""The demo's task: questions of arithmetic, each with a right and a wrong answer.

    +   a + b with a, b in 0..99
    -   a - b with 0 <= b <= a <= 99
    *   a * b with a, b in 0..12

`split` holds out operand pairs, before any sentence is made of them. Standard library only.
"""
import itertools
import random
from typing import NamedTuple

OPERATORS = "+-*"
HELD_OUT_SHARE = {"+": 0.15, "-": 0.15, "*": 0.10}
VERB = {"+": "plus", "-": "minus", "*": "times"}

QUESTIONS = [
    "What is {a}{op}{b}?",
    "What is {a} {word} {b}?",
    "Compute {a} {op} {b}.",
    "{a}{op}{b}=?",
]
# Every answer restates the question and ends with its result, the last number in the text.
ANSWERS = [
    "{a}{op}{b}={c}",
    "{a} {op} {b} = {c}",
    "{a}{op}{b}={c}.",
    "{a} {word} {b} is {c}.",
]
FACTS = ["{a}{op}{b}={c}", "{a} {op} {b} = {c}", "{a} {word} {b} is {c}."]
# How often each kind of wrong answer is tried, in measuring. Training on questions tries the last, hardest one more often.
ERRORS = {
    "off by one": 4,
    "off by ten": 4,
    "off by a few": 4,
    "digits swapped": 1,
    "wrong operand": 2,
    "wrong operator": 1,
    "wrong copy": 4,
}
TRAINING_ERRORS = ERRORS | {"wrong copy": 12}


class Pair(NamedTuple):
    """A right and a wrong answer to one prompt; `error` is the kind of mistake in the wrong one."""

    operator: str
    error: str
    prompt: str
    right: str
    wrong: str


def compute(a, operator, b):
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def operands(operator):
    """All ordered operand pairs of an operator."""
    top = 12 if operator == "*" else 99
    return [(a, b) for a in range(top + 1) for b in range(top + 1) if operator != "-" or b <= a]


def split(seed):
    """-> (train, held_out), each {operator: set of ordered operand pairs}.

    Of + the unordered pair is held out: with (17, 25) goes (25, 17). Of - and * the ordered pair is: 7 * 8 may be held out
    while 8 * 7 is trained on, because a times table of 169 entries is a table to know, not a rule to find. Pairs of two
    operands below 3 are always trained on.
    """
    rng = random.Random(f"split {seed}")
    train, held_out = {}, {}
    for operator in OPERATORS:
        every = operands(operator)
        keys = sorted({tuple(sorted(p)) if operator == "+" else p for p in every if max(p) >= 3})
        chosen = set(rng.sample(keys, round(HELD_OUT_SHARE[operator] * len(keys))))
        held_out[operator] = {p for p in every if (tuple(sorted(p)) if operator == "+" else p) in chosen}
        train[operator] = set(every) - held_out[operator]
    return train, held_out


def wrong_answer(rng, a, operator, b, allowed, errors):
    """-> (kind of error, operands as the answer repeats them, wrong result >= 0).

    `allowed` are the operand pairs that may be worked out, so that no wrong answer in training gives a held-out result away.
    """
    c = compute(a, operator, b)
    while True:
        kind = rng.choices(list(errors), weights=errors.values())[0]
        shown, wrong = (a, b), c
        if kind == "off by one":
            wrong = c + rng.choice((-1, 1))
        elif kind == "off by ten":
            wrong = c + rng.choice((-10, 10))
        elif kind == "off by a few":
            wrong = c + rng.choice((-1, 1)) * rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 20, 30))
        elif kind == "digits swapped":
            wrong = int(str(c)[::-1])
        elif kind == "wrong operator":
            wrong = compute(a, rng.choice(OPERATORS.replace(operator, "")), b)
        else:
            # The right result of a neighbouring question; "wrong copy" shows that question, "wrong operand" hides it.
            step = rng.choice((-10, -2, -1, 1, 2, 10))
            other = (a + step, b) if rng.random() < 0.5 else (a, b + step)
            if other not in allowed:
                continue
            wrong = compute(other[0], operator, other[1])
            shown = other if kind == "wrong copy" else shown
        if wrong != c and wrong >= 0:
            return kind, shown, wrong


def make_pair(rng, operator, a, b, allowed, errors):
    """A pair in random wording; half the time both answers are worded alike, so wording never tells which is right."""

    def say(template, a, b, c=None):
        return template.format(a=a, b=b, c=c, op=operator, word=VERB[operator])

    kind, shown, wrong = wrong_answer(rng, a, operator, b, allowed, errors)
    form_right = rng.choice(ANSWERS)
    form_wrong = form_right if rng.random() < 0.5 else rng.choice(ANSWERS)
    return Pair(
        operator,
        kind,
        say(rng.choice(QUESTIONS), a, b),
        say(form_right, a, b, compute(a, operator, b)),
        say(form_wrong, *shown, wrong),
    )


def training_operands(rng, seed):
    """Endless (operator, a, b) of the training split: 45 % +, 40 % -, 15 % *; small operands come up more often than by chance."""
    train, _ = split(seed)
    every = {op: sorted(pairs) for op, pairs in train.items()}
    small = {op: [p for p in pairs if max(p) < 10] for op, pairs in every.items()}
    while True:
        operator = rng.choices(OPERATORS, weights=[45, 40, 15])[0]
        yield operator, *rng.choice(small[operator] if rng.random() < 0.15 else every[operator])


def training_facts(seed, count):
    """`count` pairs of bare equations with no prompt: the equation alone is right or wrong."""
    rng = random.Random(f"facts {seed}")
    allowed, _ = split(seed)
    for operator, a, b in itertools.islice(training_operands(rng, seed), count):
        kind, _, wrong = wrong_answer(rng, a, operator, b, allowed[operator], ERRORS)
        form = rng.choice(FACTS)
        right, wrong = (form.format(a=a, b=b, c=c, op=operator, word=VERB[operator]) for c in (compute(a, operator, b), wrong))
        yield Pair(operator, kind, "", right, wrong)


def training_pairs(seed, count, stream="pairs", errors=TRAINING_ERRORS):
    """`count` pairs over training operands; another `stream` gives other sentences over the same operands."""
    rng = random.Random(f"{stream} {seed}")
    allowed, _ = split(seed)
    for operator, a, b in itertools.islice(training_operands(rng, seed), count):
        yield make_pair(rng, operator, a, b, allowed[operator], errors)


def held_out_pairs(seed, per_operands=1):
    """Pairs over every held-out operand pair, `per_operands` wordings and errors of each, in shuffled order."""
    rng = random.Random(f"held out {seed}")
    _, held_out = split(seed)
    pairs = [
        make_pair(rng, operator, a, b, set(operands(operator)), ERRORS)
        for operator in OPERATORS
        for a, b in sorted(held_out[operator])
        for _ in range(per_operands)
    ]
    rng.shuffle(pairs)
    return pairs

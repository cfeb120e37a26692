"""Rewards: their bits, their shapes, and what is refused."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from conftest import PAIR

import kudos
from kudos import RewardModel


def command(*arguments):
    kudos = Path(sys.executable).with_name("kudos")
    return subprocess.run([kudos, *arguments], capture_output=True, text=True)


def test_rewards_have_the_bits_of_the_command(model, pairs):
    run = command("score", "--device", "cpu", "--model", "demo/model", "demo/pairs.jsonl")
    assert run.returncode == 0, run.stderr
    expected = [numpy.array(json.loads(line)["rewards"], numpy.float32) for line in run.stdout.splitlines()]
    found = model.score(pairs)
    assert len(found) == len(expected) > 50
    for one, other in zip(found, expected):
        assert one.dtype == numpy.float32
        assert one.tobytes() == other.tobytes()


def test_the_shape_follows_the_input(model):
    reward = model.score(PAIR)
    assert isinstance(reward, float)
    assert model.score({"messages": PAIR}) == reward
    assert model.score(prompt="What is 1+1?", response="1+1=2") == reward
    assert model.score(prompt=PAIR[:1], response="1+1=2") == reward
    two = model.score(prompt="What is 1+1?", responses=("1+1=2", "1+1=3"))
    assert two.shape == (2,) and two[0] == numpy.float32(reward) and two[1] < 0
    assert model.score([PAIR, tuple(PAIR)]).tolist() == [reward, reward]
    assert model.score(iter([PAIR])).tolist() == [reward]
    mixed = model.score([PAIR, {"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}])
    assert mixed[0] == reward and mixed[1].tolist() == two.tolist()
    empty = model.score([])
    assert empty.dtype == numpy.float32 and empty.shape == (0,)
    two[0] = 0.0  # An array of its own, which can be written to.


def test_token_ids_are_scored_as_they_are(model):
    ids = model.render(PAIR)["input_ids"]
    reward = model.score(PAIR)
    assert model.score_tokens(ids) == reward
    assert model.score_tokens(numpy.array(ids)) == reward
    assert model.score_tokens([ids, ids[:5]])[0] == reward
    assert model.score_tokens(numpy.array([ids, ids])).tolist() == [reward, reward]
    padded = {"input_ids": numpy.array([0, *ids]), "attention_mask": [0] + [1] * len(ids)}
    assert model.score(padded) == reward
    with pytest.raises(kudos.InvalidInputError, match="expected a list of ids"):
        model.score_tokens([["a"]])


def test_long_lists_keep_their_order(model):
    rows = [{"prompt": f"What is {n}+{n}?", "response": f"{n}+{n}={n + n}"} for n in range(700)]
    rewards = model.score(rows)
    for n in (0, 63, 64, 65, 699):
        assert rewards[n] == numpy.float32(model.score(rows[n]))
    assert model.score(reversed(rows)).tolist() == rewards[::-1].tolist()


def test_a_small_queue_scores_the_same(model):
    rows = [{"prompt": f"What is {n}+{n}?", "response": "2"} for n in range(100)]
    with RewardModel("demo/model", device="cpu", queue_tokens=50, batch_tokens=64, sharing="nothing") as small:
        assert small.score(rows).tolist() == model.score(rows).tolist()


def test_the_first_error_is_raised_with_its_index(model):
    with pytest.raises(kudos.TooLongError) as caught:
        model.score([PAIR, {"prompt": "x", "response": "long " * 3000}, {}])
    error = caught.value
    assert (error.index, error.kind, error.limit) == (1, "too_long", 2048)
    assert error.tokens > 3000 and isinstance(error, (kudos.KudosError, ValueError))
    assert 'truncate="left"' in error.hint and "hint: " in str(error) and str(error).startswith("input 1: ")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.tokens, copy.index) == (str(error), error.tokens, 1)
    with pytest.raises(kudos.TooLongError) as caught:
        model.score(prompt="x", responses=["fine", "long " * 3000])
    assert caught.value.index == 1
    with pytest.raises(kudos.TooLongError) as caught:
        model.score(prompt="x", response="long " * 3000)
    assert caught.value.index is None


def test_errors_are_nan_on_request(model):
    rows = [PAIR, {"prompt": "x"}, PAIR, {"prompt": "x", "response": "long " * 3000}]
    with pytest.warns(kudos.KudosWarning, match="2 rewards are NaN; the first: input 1: ") as caught:
        rewards = model.score(rows, errors="nan")
    assert numpy.isnan(rewards).tolist() == [False, True, False, True]
    assert [error.index for error in caught[0].message.failures] == [1, 3]
    assert caught[0].filename == __file__
    with pytest.warns(kudos.KudosWarning, match="a reward is NaN"):
        assert math.isnan(model.score({"prompt": "x"}, errors="nan"))
    with pytest.raises(ValueError, match='expected "raise" or "nan"'):
        model.score(rows, errors="ignore")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("text", "the input is of type str"),
        (3, "the input is of type int"),
        ([3], "an input is of type int"),
        ({"prompt": "a", "response": object()}, "`response`: a value is of type object"),
        ({"prompt": "a", "response": "\ud83d"}, "half of a character"),
        ({"messages": [{"role": "user", "content": float("nan")}]}, "a number is NaN"),
        ({"messages": PAIR, "tools": [{"maximum": 2**64}]}, "beyond 64 bits"),
        ({"messages": PAIR, "tools": [{1: 2}]}, "a key is of type int, expected str"),
        ({"messages": PAIR, "prompt": "a"}, "`messages` does not begin with `prompt`"),
        ({"messages": PAIR, "system": "Be brief."}, "`system` is not read here"),
        ({"input_ids": [5, -1]}, r"`input_ids\[1\]` is `-1`"),
        ({"prompt": "a", "responses": []}, "an empty list"),
    ],
)
def test_bad_input_is_refused_by_name(model, row, message):
    with pytest.raises(kudos.InvalidInputError, match=message):
        model.score(row)


def test_deep_and_circular_objects_are_refused(model):
    circle = []
    circle.append(circle)
    with pytest.raises(kudos.InvalidInputError, match="more than 100 levels deep"):
        model.score({"messages": circle})


def test_keys_of_the_user_hold_anything(model):
    row = {"messages": PAIR, "made": object(), 7: None, "id": object(), "tools": None}
    assert model.score(row) == model.score(PAIR)


def test_contradicting_arguments_are_type_errors(model):
    with pytest.raises(TypeError, match="nothing to score"):
        model.score()
    with pytest.raises(TypeError, match="at once"):
        model.score(PAIR, response="x")


def test_an_exception_of_an_iterator_passes_through(model):
    def rows():
        yield PAIR
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        model.score(rows())


def test_render_has_the_fields_of_the_command(model):
    row = {"prompt": "What is 1+1?", "responses": ["1+1=2", "1+1=3"]}
    run = subprocess.run(
        [Path(sys.executable).with_name("kudos"), "render", "--model", "demo/model", "-"],
        input=json.dumps(row), capture_output=True, text=True, check=True,
    )
    expected = json.loads(run.stdout)
    assert model.render(row) == {key: expected[key] for key in ("text", "input_ids", "truncated", "scored")}


def test_plan_and_stats_count(model):
    before = model.stats()
    model.score([PAIR, PAIR])
    after = model.stats()
    assert after["sequences"] == before["sequences"] + 2 and after["queued_sequences"] == 0
    assert 0.0 < after["shared"] < 1.0
    plan = model.plan()
    assert plan["max_tokens"] == 2048 and plan["ranks"] == 1 and plan["workspace_bytes"] > 0
    assert model.labels == 1 and model.device.startswith("CPU")

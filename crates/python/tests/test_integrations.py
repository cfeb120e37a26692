"""The reward functions, called as the trainers call them."""

import asyncio
import inspect
import pickle

import numpy
import pytest
from conftest import PAIR

import kudos
from kudos.integrations import areal_reward, openrlhf_reward, trl_reward, trl_reward_async, verl_reward

TEXTS = {"prompts": ["What is 1+1?"] * 2, "completions": ["1+1=2", "1+1=3"]}
TURNS = {"prompts": [PAIR[:1]] * 2, "completions": [PAIR[1:], [{"role": "assistant", "content": "1+1=3"}]]}


@pytest.fixture(scope="module")
def expected(model):
    return model.score(prompt="What is 1+1?", responses=["1+1=2", "1+1=3"]).tolist()


@pytest.mark.parametrize("columns", [TEXTS, TURNS])
def test_trl_gets_a_list_of_floats(model, expected, columns):
    others = {"completion_ids": [[1], [2]], "ground_truth": ["2", "2"], "trainer_state": None}
    reward = trl_reward(model)
    assert reward.__name__ == "kudos_reward"
    assert reward(**columns, **others) == expected
    awaited = trl_reward_async(model)
    assert inspect.iscoroutinefunction(awaited)
    assert asyncio.run(awaited(**columns, **others)) == expected


def test_trl_gets_none_for_what_cannot_be_scored(model, expected):
    reward = trl_reward(model, errors="nan")
    with pytest.warns(kudos.KudosWarning):
        found = reward(prompts=["What is 1+1?", "x"], completions=["1+1=2", "long " * 3000], completion_ids=[[], []])
    assert found == [expected[0], None]


def test_verl_finds_the_prompt_in_extra_info(model, expected):
    compute_score = verl_reward(model)
    arguments = {"data_source": "demo", "solution_str": "1+1=2", "ground_truth": "2", "reward_router_address": None}
    arguments["reward_model_tokenizer"] = None
    assert inspect.iscoroutinefunction(compute_score)
    reward = asyncio.run(compute_score(**arguments, extra_info={"question": "What is 1+1?", "index": 3}))
    assert reward == expected[0] and isinstance(reward, float)
    with pytest.raises(KeyError, match="no `question`, the prompt; it has index"):
        asyncio.run(compute_score(**arguments, extra_info={"index": 3}))
    turns = verl_reward(model, prompt=lambda extra_info: extra_info["turns"])
    assert asyncio.run(turns(**arguments, extra_info={"turns": PAIR[:1]})) == expected[0]


def test_openrlhf_gets_rewards_scores_and_logs(model, expected):
    reward_func = openrlhf_reward(model)
    prompts = ["What is 1+1?"] * 2
    found = reward_func(["What is 1+1?1+1=2<|eot_id|>", "What is 1+1?1+1=3</s>\n"], prompts, ["2", "2"])
    assert set(found) == {"rewards", "scores", "extra_logs"}
    assert numpy.asarray(found["rewards"]).tolist() == expected
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        reward_func(["1+1=2"], prompts[:1], [None])
    templated = openrlhf_reward(model, prompt=lambda text, label: text.removeprefix("user: "))
    assert numpy.asarray(templated(["user: What is 1+1?1+1=2"], ["user: What is 1+1?"], [None])["scores"])[0] == expected[0]


def test_areal_gets_a_float_in_another_process(expected):
    reward = pickle.loads(pickle.dumps(areal_reward("demo/model", device="cpu")))
    found = reward("What is 1+1?", "1+1=2<|im_end|>", [1, 2], [3, 4], answer="2")
    assert found == expected[0] and isinstance(found, float)
    reward.source.model().close()


def test_an_open_model_is_not_pickled(model):
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(areal_reward(model))
    with pytest.raises(TypeError, match="options"):
        trl_reward(model, threads=2)

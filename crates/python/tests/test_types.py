"""Type hints, by mypy in its strict mode and by its comparison of stubs with the extension module."""

import subprocess
import sys
from pathlib import Path

import kudos

# Checked by mypy, and not run.
USE = """
import asyncio
from typing import Any, List, Union, assert_type

import numpy
from numpy.typing import NDArray

from kudos import InvalidInputError, RewardModel, TooLongError
from kudos.integrations import areal_reward, openrlhf_reward, trl_reward, verl_reward

Array = NDArray[numpy.float32]
Turns = List[dict[str, str]]


def use(model: RewardModel, turns: Turns, many: List[Turns]) -> None:
    assert_type(model.score(prompt="a", response="b"), float)
    assert_type(model.score(prompt=turns, responses=["b", "c"]), Array)
    assert_type(model.score(many, errors="nan", progress=False), Array)
    assert_type(model.score({"prompt": "a", "response": "b"}), Union[float, Array])
    assert_type(model.score(turns), Any)
    try:
        model.score_tokens([1, 2])
    except TooLongError as error:
        assert_type((error.tokens, error.limit), tuple[int, int])
    except InvalidInputError as error:
        assert_type(error.index, int | None)


with RewardModel("model", device="cpu", replicas="auto", threads=2, truncate="left") as model:
    use(model, [], [])
    asyncio.run(model.ascore(prompt="a", response="b"))
trl_reward("model", truncate="left"), verl_reward("model"), openrlhf_reward("model"), areal_reward("model")
"""


def mypy(tmp_path, *arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def test_the_package_and_its_use_are_typed(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    run = mypy(tmp_path, "mypy", "--strict", "--package", "kudos")
    assert run.returncode == 0, run.stdout + run.stderr
    run = mypy(tmp_path, "mypy", "--strict", "use.py")
    assert run.returncode == 0, run.stdout + run.stderr
    assert (Path(kudos.__file__).parent / "py.typed").exists()


def test_a_wrong_use_is_found(tmp_path):
    (tmp_path / "use.py").write_text('from kudos import RewardModel\nRewardModel("model", device="gpu")\n')
    run = mypy(tmp_path, "mypy", "--strict", "use.py")
    assert run.returncode == 1 and '"device"' in run.stdout, run.stdout + run.stderr


def test_the_stubs_are_those_of_the_extension_module(tmp_path):
    run = mypy(tmp_path, "mypy.stubtest", "kudos._kudos")
    assert run.returncode == 0, run.stdout + run.stderr

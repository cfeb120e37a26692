import json
import os
from pathlib import Path

import pytest

from kudos import RewardModel

ROOT = Path(__file__).parents[3]
PAIR = [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]

# The README and the docs name `demo/model`.
os.chdir(ROOT)


@pytest.fixture(scope="session")
def model():
    with RewardModel("demo/model", device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def pairs():
    return [json.loads(line) for line in Path("demo/pairs.jsonl").read_text().splitlines()]

"""Rows, their rewards in one process, and the recipes of docs/clusters."""

import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from kudos import RewardModel
from kudos.integrations.arrow import Scorer

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "demo/model")

#: Rows that have one prompt.
RESPONSES = 4

#: The distance of rows that cannot be scored.
UNREADABLE = 997


def conversations(rows):
    """Returns a table in which the rows of a prompt are far apart, and some cannot be scored."""
    prompts = -(-rows // RESPONSES)
    sums = [(row % prompts % 100, row % prompts // 100) for row in range(rows)]
    responses = [f"{a}+{b}={a + b + row // prompts}" for row, (a, b) in enumerate(sums)]
    responses[UNREADABLE::UNREADABLE] = [None] * len(responses[UNREADABLE::UNREADABLE])
    return pyarrow.table({"id": range(rows), "prompt": [f"What is {a}+{b}?" for a, b in sums], "response": responses})


def rewards_in_one_process(table):
    """Returns the table with the columns that a scorer adds, by one engine."""
    with RewardModel(MODEL, device="cpu", threads=1) as model:
        return Scorer(model)(table)


def assert_same_rows(found, expected):
    """Fails unless both have the same rows, in any order, with the same bits."""
    found, expected = (one.combine_chunks().sort_by("id") for one in (found, expected))
    assert found["id"].to_pylist() == expected["id"].to_pylist()
    for name in ("prompt", "response", "error"):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    for one in (found, expected):
        assert one["reward"].null_count == one.num_rows // UNREADABLE
    bits = [one["reward"].fill_null(0).to_numpy().tobytes() for one in (found, expected)]
    assert bits[0] == bits[1]


@pytest.fixture
def recipe(tmp_path):
    """Returns the path of a file that has the only block of a page in this language."""

    def write(page, language):
        text = (ROOT / "docs/clusters" / page).read_text()
        (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        path = tmp_path / f"recipe.{language}"
        path.write_text(block)
        return str(path)

    return write


@pytest.fixture
def files(tmp_path):
    """Returns a folder with Parquet files of a table."""

    def write(table, count=4):
        folder = tmp_path / "input"
        folder.mkdir()
        size = -(-table.num_rows // count)
        for part in range(count):
            pyarrow.parquet.write_table(table.slice(part * size, size), folder / f"{part}.parquet")
        return str(folder)

    return write

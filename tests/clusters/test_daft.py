"""Daft on its native runner."""

import subprocess
import sys

import pyarrow.parquet
import pytest
from conftest import MODEL, assert_same_rows, conversations, rewards_in_one_process

pytest.importorskip("daft", reason="not run: Daft is not installed")


def test_the_recipe_writes_every_row(recipe, files, tmp_path):
    table = conversations(10_000)
    command = [sys.executable, recipe("daft.md", "python"), MODEL, files(table), str(tmp_path / "output")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert_same_rows(pyarrow.parquet.read_table(tmp_path / "output"), rewards_in_one_process(table))

"""Spark in its local mode, which starts Python workers as an executor does."""

import os
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest
from conftest import MODEL, assert_same_rows, conversations, rewards_in_one_process

pytest.importorskip("pyspark", reason="not run: Spark is not installed")
if shutil.which("java") is None:
    pytest.skip("not run: there is no java, which Spark needs", allow_module_level=True)


def test_the_recipe_writes_every_row(recipe, files, tmp_path):
    table = conversations(10_000)
    command = [sys.executable, recipe("spark.md", "python"), MODEL, files(table), str(tmp_path / "output")]
    options = "--master local[2] --driver-memory 1g --conf spark.ui.enabled=false pyspark-shell"
    env = {"PYSPARK_SUBMIT_ARGS": options, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    run = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert_same_rows(pyarrow.parquet.read_table(tmp_path / "output"), rewards_in_one_process(table))

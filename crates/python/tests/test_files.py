"""Files as pyarrow, polars and datasets write them, in the schemas of well-known data sets: read by `kudos score`."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import datasets
import polars
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

QUESTION, GOOD, BAD = "What is 1+1?", "1+1=2", "1+1=3"
USER = {"content": QUESTION, "role": "user"}


def assistant(content):
    return {"content": content, "role": "assistant"}


# Rows as published: the columns of each data set, and the conversations that a person counts in a row.
ULTRAFEEDBACK = {
    "prompt": QUESTION,
    "prompt_id": "a1",
    "chosen": [USER, assistant(GOOD)],
    "rejected": [USER, assistant(BAD)],
    "messages": [USER, assistant(GOOD)],
    "score_chosen": 8.5,
    "score_rejected": 7.0,
}
SKYWORK = {"chosen": [USER, assistant(GOOD)], "rejected": [USER, assistant(BAD)], "source": "magpie"}
TRL_EXPLICIT = {"prompt": [USER], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
TRL_TEXT = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}
REWARDBENCH = {**TRL_TEXT, "id": 30, "subset": "alpacaeval-easy", "chosen_model": "x", "rejected_model": "y"}
HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [USER],
    "response1": GOOD,
    "response2": BAD,
    "overall_preference": -2,
    "individual_preference": [{"score": -2, "reasoning": "r", "feedback1": "f", "feedback2": None}],
}
SHAREGPT = {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": GOOD}]}
COMPLETIONS = {"prompt": QUESTION, "completions": [GOOD, BAD]}

PAIRS = ["ultrafeedback", "skywork", "trl-explicit", "trl-text", "rewardbench"]
ROWS = {
    "ultrafeedback": ULTRAFEEDBACK,
    "skywork": SKYWORK,
    "trl-explicit": TRL_EXPLICIT,
    "trl-text": TRL_TEXT,
    "rewardbench": REWARDBENCH,
    "helpsteer3": HELPSTEER3,
    "sharegpt": SHAREGPT,
    "completions": COMPLETIONS,
}


def score(path, *options, status=0):
    """Returns the results of `kudos score` for a file, and what it says."""
    kudos = Path(sys.executable).parent / "kudos"
    command = [kudos, "score", "--device", "cpu", "--model", "demo/model", path, *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == status, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()], run.stderr


@pytest.fixture(scope="module")
def rewards(model):
    return [float(reward) for reward in model.score(prompt=QUESTION, responses=[GOOD, BAD])]


def rewards_of(result):
    if "reward_chosen" in result:
        return [result["reward_chosen"], result["reward_rejected"]]
    return result["rewards"] if "rewards" in result else [result["reward"]]


def same(found, expected):
    return [pyarrow.scalar(x, pyarrow.float32()) for x in found] == [
        pyarrow.scalar(x, pyarrow.float32()) for x in expected[: len(found)]
    ]


def parquet_by_pyarrow(rows, path):
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=1)


def parquet_of_large_strings(rows, path):
    table = pyarrow.Table.from_pylist(rows)
    for index, field in enumerate(table.schema):
        if field.type == pyarrow.string():
            column = table.column(index).cast(pyarrow.large_string())
            table = table.set_column(index, field.name, column.dictionary_encode() if index % 2 else column)
    table = table.append_column("empty", pyarrow.nulls(len(table)))
    pyarrow.parquet.write_table(table, path, compression="gzip")


def feather(rows, path):
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), path, compression="lz4")


def parquet_by_polars(rows, path):
    polars.DataFrame(rows).write_parquet(path)


def ipc_by_polars(rows, path):
    polars.DataFrame(rows).write_ipc(path, compression="zstd")


def parquet_by_datasets(rows, path):
    datasets.Dataset.from_list(rows).to_parquet(path)


def stream_by_datasets(rows, path):
    folder = path.parent / (path.name + "-saved")
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    path.write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())


def lines_by_datasets(rows, path):
    lines = path.with_suffix(".lines")
    datasets.Dataset.from_list(rows).to_json(lines)
    path.write_bytes(gzip.compress(lines.read_bytes()))


WRITERS = [
    parquet_by_pyarrow,
    parquet_of_large_strings,
    feather,
    parquet_by_polars,
    ipc_by_polars,
    parquet_by_datasets,
    stream_by_datasets,
    lines_by_datasets,
]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_files_of_every_library_have_the_rewards_of_their_rows(tmp_path, rewards, writer):
    for name, row in ROWS.items():
        path = tmp_path / name
        writer([row] * 3, path)
        results, notes = score(path)
        assert len(results) == 3
        for result in results:
            found = rewards_of(result)
            assert len(found) == (1 if name == "sharegpt" else 2)
            assert same(found, rewards), name
            assert ("margin" in result) == (name in PAIRS)
        assert "rows with" in notes, notes


@pytest.mark.parametrize("version", [pyarrow.ipc.MetadataVersion.V4, pyarrow.ipc.MetadataVersion.V5])
def test_arrow_files_of_each_version_are_read(tmp_path, rewards, version):
    table = pyarrow.Table.from_pylist([TRL_TEXT] * 3)
    options = pyarrow.ipc.IpcWriteOptions(metadata_version=version)
    for writer in [pyarrow.ipc.new_file, pyarrow.ipc.new_stream]:
        with writer(tmp_path / "rows", table.schema, options=options) as file:
            file.write_table(table, max_chunksize=2)
        results, _ = score(tmp_path / "rows")
        assert len(results) == 3 and all(same(rewards_of(result), rewards) for result in results)


def test_rows_with_nulls_are_errors_of_their_own(tmp_path):
    rows = [TRL_TEXT, {**TRL_TEXT, "rejected": None}, TRL_TEXT]
    parquet_by_pyarrow(rows, tmp_path / "nulls")
    results, _ = score(tmp_path / "nulls", status=1)
    assert ["error" in result for result in results] == [False, True, False]
    assert results[1]["error"]["place"] == "input row 2"


def test_a_folder_of_shards_is_one_input(tmp_path, rewards):
    table = datasets.Dataset.from_list([TRL_TEXT] * 4)
    for shard in range(2):
        table.shard(2, shard).to_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet")
    results, _ = score(tmp_path)
    assert [result["index"] for result in results] == [0, 1, 2, 3]
    assert all(same(rewards_of(result), rewards) for result in results)


def test_a_file_without_rows_is_read(tmp_path, rewards):
    table = pyarrow.Table.from_pylist([TRL_TEXT])
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "part-0.parquet")
    pyarrow.parquet.write_table(table, tmp_path / "part-1.parquet")
    results, _ = score(tmp_path)
    assert len(results) == 1 and same(rewards_of(results[0]), rewards)


def table_of(path):
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"PAR1"):
        return pyarrow.parquet.read_table(path)
    if start == b"ARROW1":
        return pyarrow.ipc.open_file(path).read_all()
    return pyarrow.ipc.open_stream(path).read_all()


@pytest.mark.parametrize("writer", [w for w in WRITERS if w is not lines_by_datasets], ids=lambda writer: writer.__name__)
def test_a_scored_table_has_the_columns_of_its_input(tmp_path, rewards, writer):
    for name, row in ROWS.items():
        path, output = tmp_path / name, tmp_path / f"{name}.scored.parquet"
        writer([row] * 3, path)
        score(path, "-o", output)
        given, scored = table_of(path), pyarrow.parquet.read_table(output)
        columns = given.column_names
        assert scored.column_names[: len(columns)] == columns
        assert scored.select(columns).to_pylist() == given.to_pylist()
        # As datasets keeps its description of the columns.
        for key, value in (given.schema.metadata or {}).items():
            assert scored.schema.metadata[key] == value
        for result in scored.to_pylist():
            assert same(rewards_of(result), rewards), name
            assert result["error"] is None
        kinds = {scored.schema.field(key).type for key in scored.column_names if key.startswith("reward_")}
        assert kinds == {pyarrow.float32()} or "rewards" in scored.column_names
        # Read by the other two libraries; datasets reads no views of strings, also from the input itself.
        assert polars.read_parquet(output).columns == scored.column_names
        if writer is ipc_by_polars:
            continue
        loaded = datasets.Dataset.from_parquet(str(output), cache_dir=tmp_path / "cache")
        assert loaded.column_names == scored.column_names and len(loaded) == 3

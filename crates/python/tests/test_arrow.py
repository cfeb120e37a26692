"""The scorer of batches, as engines of clusters call it."""

import pickle
import subprocess
import sys

import pyarrow
import pytest

import kudos
from kudos.integrations import arrow
from kudos.integrations.arrow import Scorer

TEXTS = {"id": [7, 8, 9], "prompt": ["What is 1+1?"] * 3, "response": ["1+1=2", None, "1+1=3"]}
ERROR = {
    "kind": "invalid_input",
    "message": "the object has a `prompt`, but neither `response` nor `responses`",
    "place": None,
    "hint": "the reward is that of a response; a whole conversation goes into `messages`",
}


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model)


@pytest.mark.parametrize("kind", [pyarrow.table, pyarrow.record_batch])
def test_a_batch_keeps_its_columns_and_its_kind(model, scorer, kind):
    batch = kind(TEXTS)
    found = scorer(batch)
    assert type(found) is type(batch)
    assert found.schema.names == ["id", "prompt", "response", "reward", "error"]
    assert found.select(list(TEXTS)).equals(batch)
    right, wrong = model.score(prompt="What is 1+1?", responses=["1+1=2", "1+1=3"]).tolist()
    assert found["reward"].to_pylist() == [right, None, wrong]
    assert found["error"].to_pylist() == [None, ERROR, None]
    assert found.schema.field("reward").type == pyarrow.float32()


def test_every_batch_has_the_same_schema(model, scorer):
    rows = pyarrow.table({"prompt": ["x", "y"], "responses": [["a", "b"], ["c"]]})
    found = scorer(rows)
    rewards = [model.score(prompt="x", responses=["a", "b"]).tolist(), model.score(prompt="y", responses=["c"]).tolist()]
    assert found["rewards"].to_pylist() == rewards
    unread = pyarrow.table({"prompt": ["x", "y"], "responses": pyarrow.array([None, None], rows["responses"].type)})
    assert scorer(unread)["rewards"].to_pylist() == [[None], [None]]
    for one in (unread, rows.slice(2), rows.slice(1)):
        assert scorer(one).schema == found.schema
    texts = pyarrow.table(TEXTS)
    assert scorer(texts.slice(3)).schema == scorer(texts).schema


def test_metadata_of_the_schema_is_kept(scorer):
    batch = pyarrow.table(TEXTS).replace_schema_metadata({"source": "x"})
    assert scorer(batch).schema.metadata == {b"source": b"x"}


def test_a_batch_without_conversations_is_refused(scorer):
    with pytest.raises(kudos.InvalidInputError, match="columns `question`, `response`, expected one of `messages`"):
        scorer(pyarrow.table({"question": ["x"], "response": ["y"]}))
    for name in ("reward", "error"):
        with pytest.raises(kudos.InvalidInputError, match=f"has the columns `{name}`, which are"):
            scorer(pyarrow.table({**TEXTS, name: [1, 2, 3]}))


def test_errors_that_are_not_of_rows_are_raised(tmp_path):
    with pytest.raises(kudos.FileError):
        Scorer(tmp_path / "missing", device="cpu")(pyarrow.table(TEXTS))
    closed = kudos.RewardModel("demo/model", device="cpu")
    closed.close()
    with pytest.raises(kudos.StoppedError):
        Scorer(closed)(pyarrow.table(TEXTS))


def test_a_process_opens_the_model_of_its_copies_once():
    data = pickle.dumps(Scorer("demo/model", device="cpu", threads=1))
    first, second = pickle.loads(data), pickle.loads(data)
    assert first is second
    assert pickle.loads(pickle.dumps(Scorer("demo/model", device="cpu", threads=2))) is not first
    assert first(pyarrow.table(TEXTS)).equals(second(pyarrow.table(TEXTS)))
    first.source.model().close()
    arrow._scorers.clear()


def test_an_open_model_is_not_pickled(scorer):
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(scorer)


def test_the_integrations_import_no_other_package():
    code = "import sys, kudos.integrations.arrow; print({'pyarrow', 'ray', 'daft', 'pyspark', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"

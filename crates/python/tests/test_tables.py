"""Tables by Arrow's PyCapsule interface, of pyarrow and of whatever else is installed."""

import json

import numpy
import pyarrow
import pytest
from conftest import PAIR

import kudos

TEXTS = {"prompt": ["What is 1+1?"] * 3, "response": ["1+1=2", "1+1=3", "x"]}


@pytest.fixture(scope="module")
def expected(model):
    return model.score(prompt="What is 1+1?", responses=TEXTS["response"])


def rewards_of(model, table, **options):
    return pyarrow.table(model.score_table(table, **options))


def test_rows_have_the_rewards_of_dicts(model, expected):
    table = pyarrow.table({**TEXTS, "made": [b"x", None, b"y"], "id": [1, 2, 3]})
    found = model.score_table(table)
    assert len(found) == 3
    found = pyarrow.table(found)
    assert found.schema == pyarrow.schema([("reward", pyarrow.float32())])
    assert found["reward"].to_numpy().tobytes() == expected.tobytes()
    batches = pyarrow.Table.from_batches(table.to_batches(max_chunksize=1))
    assert rewards_of(model, batches) == found


@pytest.mark.parametrize(
    "text",
    [pyarrow.large_string(), pyarrow.string_view(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())],
)
def test_text_of_every_kind_is_read(model, text):
    # pyarrow 21 crashes when it exports a column of views none of which has more than 12 bytes.
    texts = {"prompt": ["What is 1000+1000?"] * 3, "response": ["1000+1000=2000", "1000+1000=3000", "x"]}
    columns = {name: pyarrow.array(values).cast(text) for name, values in texts.items()}
    expected = model.score(prompt=texts["prompt"][0], responses=texts["response"])
    assert rewards_of(model, pyarrow.table(columns))["reward"].to_numpy().tobytes() == expected.tobytes()


def test_messages_and_ids_are_lists(model, expected):
    turns = [[{**PAIR[0], "tool_calls": None}, {"role": "assistant", "content": text}] for text in TEXTS["response"]]
    assert rewards_of(model, pyarrow.table({"messages": turns}))["reward"].to_numpy().tobytes() == expected.tobytes()
    ids = [model.render(one)["input_ids"] for one in turns]
    for kind in (pyarrow.int64(), pyarrow.uint16()):
        table = pyarrow.table({"input_ids": pyarrow.array(ids, pyarrow.list_(kind))})
        assert rewards_of(model, table.slice(1))["reward"].to_numpy().tobytes() == expected[1:].tobytes()


def test_responses_have_lists_of_rewards(model, expected):
    table = pyarrow.table({"prompt": ["What is 1+1?"] * 2, "responses": [TEXTS["response"], ["1+1=2"]]})
    found = rewards_of(model, table)["rewards"].to_pylist()
    assert found == [expected.tolist(), [expected[0]]]


def test_tools_keep_their_types(model):
    tools = [{"name": "f", "strict": True, "rank": -3, "share": 0.1, "limit": 2**62}]
    table = pyarrow.table({"messages": [PAIR], "tools": [tools]})
    # pyarrow orders the fields of a struct by their names, and the chat template shows them so.
    tools = [dict(sorted(tools[0].items()))]
    assert rewards_of(model, table)["reward"][0].as_py() == model.score({"messages": PAIR, "tools": tools})


def test_errors_name_the_row_and_the_column(model):
    table = pyarrow.table({"prompt": ["x", "x"], "response": ["y", None]})
    with pytest.raises(kudos.InvalidInputError, match="input 1: .*neither `response` nor `responses`"):
        model.score_table(table)
    with pytest.warns(kudos.KudosWarning) as caught:
        found = rewards_of(model, table, errors="nan")["reward"].to_pylist()
    assert found[1] is None and numpy.isfinite(found[0]) and caught[0].filename == __file__
    with pytest.raises(kudos.InvalidInputError, match="column `response`: a value is of type Binary"):
        model.score_table(pyarrow.table({"prompt": ["x"], "response": [b"y"]}))


def test_the_data_of_a_dataset_is_a_table(model, expected):
    class Data:
        """What a dataset has: a table around one of pyarrow's."""

        table = pyarrow.table(TEXTS)

    assert rewards_of(model, Data())["reward"].to_numpy().tobytes() == expected.tobytes()


def test_what_is_no_table_is_refused_with_advice(model):
    for table in ([{"prompt": "x", "response": "y"}], json):
        with pytest.raises(TypeError, match="has no `__arrow_c_stream__`(.|\n)*hint: give a pyarrow.Table"):
            model.score_table(table)


def test_an_empty_table_has_no_rewards(model):
    assert rewards_of(model, pyarrow.table(TEXTS).slice(3)).num_rows == 0


def test_polars_and_pandas_frames_are_tables(model, expected):
    polars = pytest.importorskip("polars")
    assert polars.DataFrame(model.score_table(polars.DataFrame(TEXTS)))["reward"].to_list() == expected.tolist()
    pandas = pytest.importorskip("pandas")
    assert rewards_of(model, pandas.DataFrame(TEXTS))["reward"].to_pylist() == expected.tolist()

"""Batches of Arrow's with their rewards, for engines that call a function for each batch.

Spark calls a scorer in ``mapInArrow``, Daft in a batch method, and Ray Data by
``kudos.integrations.ray``. None of them is imported here.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, TypeVar

from kudos import InvalidInputError, KudosError
from kudos.integrations._source import Model, Source

#: A ``pyarrow.Table`` or a ``pyarrow.RecordBatch``.
Batch = TypeVar("Batch")

#: Columns of which a batch has at least one, where its rows can be scored.
SCORED = ("messages", "prompt", "input_ids", "chosen", "conversations", "context", "instruction", "body")

#: Columns of which one is there where rows have several responses.
SEVERAL = ("responses", "completions", "rejected", "response2")

#: Columns that are added, of rewards one of the two.
ADDED = ("reward", "rewards", "error")

#: Fields of the column ``error``, as in a line that ``kudos score`` writes.
ERROR_FIELDS = ("kind", "message", "place", "hint")


class Scorer:
    """Adds columns of rewards and errors to batches, and keeps the order of their rows.

    A call with a ``pyarrow.Table`` or a ``pyarrow.RecordBatch`` returns the same kind, with all columns
    of the batch and then these: ``reward`` (float32), or ``rewards`` (a list of float32) where rows
    have several responses; and ``error``, a struct of ``kind``, ``message``, ``place`` and ``hint``.
    A row that cannot be scored has null as its reward; ``error`` is null in the other rows. What fails
    for another reason than a row, such as the device, is raised.

    ``model`` and the options are those of ``RewardModel``, which is opened at the first batch. The
    copies that a process unpickles are one scorer: it opens the model once.
    """

    def __init__(self, model: Model, **options: Any) -> None:
        self.source = Source(model, options)

    def __reduce__(self) -> Any:
        return _unpickled, (self.source,)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with its rewards and errors."""
        import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]

        given: Any = batch
        names = given.schema.names
        if not any(name in names for name in SCORED):
            message = f"the batch has the columns {listed(names)}, expected one of {listed(SCORED)} among them"
            raise InvalidInputError(message, hint="rename the column that has the prompts or the conversations")
        if taken := [name for name in ADDED if name in names]:
            message = f"the batch has the columns {listed(taken)}, which are those of kudos"
            raise InvalidInputError(message, hint="rename or drop them")
        table = given if isinstance(given, pyarrow.Table) else pyarrow.Table.from_batches([given])
        model = self.source.model()
        failures: List[KudosError] = []
        rewards = pyarrow.table(model._engine.score_table(table, failures))
        model._log_warnings()
        added = {**_rewards(rewards, any(name in names for name in SEVERAL)), "error": _errors(failures, given.num_rows)}
        schema = given.schema
        for name, column in added.items():
            schema = schema.append(pyarrow.field(name, column.type))
        return type(given).from_arrays([*given.columns, *added.values()], schema=schema)  # type: ignore[no-any-return]


_scorers: Dict[str, Scorer] = {}


def _unpickled(source: Source) -> Scorer:
    """Returns this process's scorer with the model and the options of a pickled one."""
    key = repr((os.fspath(source.given), sorted(source.options.items())))  # type: ignore[arg-type]
    return _scorers.setdefault(key, Scorer(source.given, **source.options))


def _rewards(table: Any, several: bool) -> Dict[str, Any]:
    """Returns the column of rewards: of lists in every batch if ``several``, whatever its rows have."""
    import pyarrow

    name, values = table.schema.names[0], table.column(0).combine_chunks()
    if several and name == "reward":
        offsets = pyarrow.array(range(len(values) + 1), pyarrow.int32())
        name, values = "rewards", pyarrow.ListArray.from_arrays(offsets, values)
    return {name: values}


def _errors(failures: List[KudosError], rows: int) -> Any:
    """Returns the column of errors: of several in a row, the first."""
    import pyarrow

    kind = pyarrow.struct([(name, pyarrow.string()) for name in ERROR_FIELDS])
    if not failures:
        return pyarrow.nulls(rows, kind)
    errors: List[Dict[str, Any] | None] = [None] * rows
    for failure in reversed(failures):
        assert failure.index is not None
        errors[failure.index] = {name: getattr(failure, name) for name in ERROR_FIELDS}
    return pyarrow.array(errors, kind)


def listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"

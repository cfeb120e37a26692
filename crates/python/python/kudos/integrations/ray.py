"""Rewards of a ``ray.data.Dataset``: one model in each actor, on what Ray assigned to it.

.. code-block:: python

    import ray
    from kudos.integrations.ray import Scorer, together

    rows = together(ray.data.read_parquet("conversations"), blocks=64)
    rows = rows.map_batches(
        Scorer,
        fn_constructor_kwargs={"model": "models/rm"},
        batch_format="pyarrow",
        batch_size=4096,
        num_cpus=4,
        compute=ray.data.ActorPoolStrategy(size=8),
    )
    rows.write_parquet("rewards")
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Dict, List

import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
import ray  # type: ignore[import-not-found, unused-ignore]
import ray.data  # type: ignore[import-not-found, unused-ignore]

from kudos import InvalidInputError, OptionsError
from kudos.integrations import arrow

#: The column by which ``together`` partitions, which it drops again.
KEY = "kudos_prompt"


class Scorer(arrow.Scorer):
    """The class that ``Dataset.map_batches`` takes, with ``batch_format="pyarrow"``.

    It opens the model when its actor starts: on the GPUs that Ray assigned to the actor, or on the
    CPU with as many threads as Ray assigned CPUs, and one where that is less than one. The other
    options are those of ``RewardModel``. What it adds to a batch is described at ``arrow.Scorer``.
    """

    def __init__(self, model: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(model, **_within(assigned(), options))
        self.source.model()


def assigned() -> Dict[str, Any]:
    """Returns the options of ``RewardModel`` for the CPUs and GPUs that Ray assigned to this actor."""
    context = ray.get_runtime_context() if ray.is_initialized() else None
    if context is None or context.get_actor_id() is None:
        raise OptionsError(
            "a Scorer is made outside of an actor of Ray's",
            hint='give the class: `map_batches(Scorer, fn_constructor_kwargs={"model": ..}, ..)`',
        )
    resources = context.get_assigned_resources()
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
    if gpus != int(gpus):
        raise OptionsError(
            f"Ray assigned {gpus} GPUs to the actor, expected whole ones",
            hint="set `num_gpus` to 1 or more: the memory of a GPU is that of one model",
        )
    if gpus:
        return {"device": "cuda", "devices": _devices(context.get_accelerator_ids()["GPU"])}
    return {"device": "cpu", "threads": max(1, int(cpus))}


def _devices(ids: List[str]) -> List[int]:
    """Returns the indices that CUDA has in this process for the GPUs of these ids."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [visible.split(",").index(one) if visible else int(one) for one in ids]


def _within(share: Dict[str, Any], options: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the options with those of the actor's share, which they may not exceed."""
    given = {name: value for name, value in options.items() if value is not None}
    device, has = given.pop("device", "auto"), "no GPU" if share["device"] == "cpu" else "GPUs"
    if device not in ("auto", share["device"]):
        raise OptionsError(f'`device="{device}"` was given, and the actor has {has}', hint="set `num_gpus` of `map_batches`")
    if "devices" in given:
        raise OptionsError("`devices` was given, and Ray assigns GPUs", hint="set `num_gpus` of `map_batches`")
    if given.get("threads", 0) > share.get("threads", given.get("threads", 0)):
        raise OptionsError(
            f"`threads` is {given['threads']}, and Ray assigned {share['threads']} CPUs to the actor",
            hint="set `num_cpus` of `map_batches`",
        )
    return {**share, **given}


def together(dataset: ray.data.Dataset, *, blocks: int, key: str | None = None) -> ray.data.Dataset:
    """Returns the dataset with the rows of each prompt side by side in one of ``blocks`` blocks.

    The engine then computes a prompt once for all its rows. The prompt is the column ``key``, or else
    ``prompt``, or ``messages`` less the last one where no column has responses. Every row goes through
    Ray's object store once, which spills to disk, and a worker holds one block at a time: choose
    ``blocks`` so that one fits into its memory. No row is scored before all were partitioned. Rows
    that are already side by side, and rows with ``responses``, need none of this.
    """
    keyed = dataset.map_batches(_keyed, fn_kwargs={"key": key}, batch_format="pyarrow", zero_copy_batch=True)
    return keyed.repartition(blocks, keys=[KEY], sort=True).drop_columns([KEY]).materialize()


def _keyed(table: Any, key: str | None) -> Any:
    """Returns the table with a column of digests of the prompts."""
    names = table.schema.names
    column = key or next((name for name in ("prompt", "messages") if name in names), None)
    if column not in names:
        expected = f"`{key}`" if key else "`prompt` or `messages`"
        message = f"the dataset has the columns {arrow.listed(names)}, expected {expected} among them"
        raise InvalidInputError(message, hint="give `key=` the column that has the prompts")
    prompts = table[column].to_pylist()
    if column == "messages" and key is None and not {"response", "responses"} & set(names):
        prompts = [messages and messages[:-1] for messages in prompts]
    return table.append_column(KEY, pyarrow.array([_digest(prompt) for prompt in prompts], pyarrow.int64()))


def _digest(prompt: Any) -> int:
    text = json.dumps(prompt, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)

"""Rewards from reward models.

>>> from kudos import RewardModel
>>> model = RewardModel("demo/model")
>>> model.score(prompt="What is 1+1?", response="1+1=2") > 0
True
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Literal, Mapping, Sequence, Union, overload

from kudos._errors import (
    ConfigError,
    DeviceError,
    FileError,
    InvalidInputError,
    KudosError,
    KudosWarning,
    NonFiniteError,
    OptionsError,
    OutOfMemoryError,
    QueueFullError,
    StoppedError,
    TemplateError,
    TokenizerError,
    TooLongError,
    UnknownError,
    UnsupportedError,
    WeightsError,
)
from kudos._kudos import OPTIONS, Engine, RewardTable, __version__
from kudos._progress import DELAY, Progress, shown_by_default

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

__all__ = [
    "ConfigError",
    "DeviceError",
    "FileError",
    "InvalidInputError",
    "KudosError",
    "KudosWarning",
    "NonFiniteError",
    "OPTIONS",
    "OptionsError",
    "OutOfMemoryError",
    "QueueFullError",
    "RewardModel",
    "RewardTable",
    "StoppedError",
    "TemplateError",
    "TokenizerError",
    "TooLongError",
    "UnknownError",
    "UnsupportedError",
    "WeightsError",
    "__version__",
]

#: A turn, such as ``{"role": "user", "content": "What is 1+1?"}``.
Message = Mapping[str, Any]
#: A list of turns, of which the last is judged; or a dict of the keys of a line of ``kudos score``.
Conversation = Union[Sequence[Message], Mapping[str, Any]]
Errors = Literal["raise", "nan"]
if TYPE_CHECKING:
    #: The rewards of a list.
    Rewards = NDArray[numpy.float32]

_logger = logging.getLogger("kudos")


class RewardModel:
    """A reward model, open and ready. Threads and tasks share it, and their inputs share batches.

    ``model`` is a folder in Hugging Face's layout, or an ``org/name`` that is in the local cache.
    The options are those of the command, which ``kudos score --help`` describes, with underscores
    in their names; ``None`` is the default of each. ``queue_tokens`` is the capacity of the queue.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        ranks: int | None = None,
        replicas: int | Literal["auto"] | None = None,
        max_tokens: int | None = None,
        truncate: Literal["refuse", "left"] | None = None,
        double_bos: Literal["refuse", "allow", "add"] | None = None,
        template_vars: Mapping[str, Any] | None = None,
        sanitize_control_tokens: bool | None = None,
        batch_tokens: int | None = None,
        queue_tokens: int | None = None,
        sharing: Literal["prefixes", "nothing"] | None = None,
        residency: Literal["auto", "resident", "streamed"] | None = None,
        threads: int | None = None,
        cpu_math: Literal["f32", "f32-vector", "bf16"] | None = None,
        devices: Sequence[int] | None = None,
        all_reduce: Literal["ordered", "nccl"] | None = None,
        overlap: Literal["auto", "always", "never"] | None = None,
        gemm_tuning: Literal["auto", "off"] | None = None,
        gpu_reserve_gib: float | None = None,
        peer_timeout: float | None = None,
        cuda_tier: str | None = None,
        cuda_attention: str | None = None,
        **unknown: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        # The extension refuses unknown options, and lists its own.
        self._engine = Engine(os.fspath(model), {**given, **unknown})
        _, name, reason = self._engine.device()
        if reason is None:
            _logger.info("running on %s", name)
        else:
            _logger.warning("running on %s: %s", name, reason)
        self._log_warnings()

    def _log_warnings(self) -> None:
        for warning in self._engine.new_warnings():
            _logger.warning("%s", warning)

    @overload
    def score(self, *, prompt: str | Sequence[Message], response: str, errors: Errors = ...) -> float: ...
    @overload
    def score(
        self, *, prompt: str | Sequence[Message], responses: Sequence[str], errors: Errors = ..., progress: bool | None = ...
    ) -> Rewards: ...
    @overload
    def score(self, conversations: Mapping[str, Any], *, errors: Errors = ...) -> float | Rewards: ...
    @overload
    def score(
        self, conversations: Iterable[Sequence[Message]], *, errors: Errors = ..., progress: bool | None = ...
    ) -> Rewards: ...
    # Dicts are the messages of one conversation, or conversations: their keys tell, and types do not.
    @overload
    def score(self, conversations: Iterable[Conversation], *, errors: Errors = ..., progress: bool | None = ...) -> Any: ...
    def score(
        self,
        conversations: Any = None,
        *,
        prompt: str | Sequence[Message] | None = None,
        response: str | None = None,
        responses: Sequence[str] | None = None,
        errors: Errors = "raise",
        progress: bool | None = None,
    ) -> Any:
        """Returns the reward of a conversation, or a float32 array of those of a list.

        A conversation is a list of messages, or a dict of the keys of a line of ``kudos score``. One
        with ``responses``, or ``responses=`` beside ``prompt=``, has an array of rewards. A list in
        which some have ``responses`` gives a list of floats and arrays.

        ``errors="nan"`` gives NaN for what cannot be scored, with a ``KudosWarning`` that has the
        exceptions. ``progress`` is whether a line on standard error shows the progress: by default on
        a terminal or in a notebook, where scoring takes more than two seconds.
        """
        return self._score(_inputs(conversations, prompt, response, responses), False, errors, progress)

    def score_tokens(self, ids: Any, *, errors: Errors = "raise", progress: bool | None = None) -> Any:
        """Returns the reward of a list of token ids, or an array of the rewards of a list of such.

        Ids are scored as they are; arrays and tensors are read, too. Padding beside ids is left out
        by a mask: ``score({"input_ids": .., "attention_mask": ..})``.
        """
        return self._score(ids, True, errors, progress)

    def score_table(self, table: Any, *, errors: Errors = "raise", progress: bool | None = None) -> RewardTable:
        """Returns the rewards of a table's rows as a table, by Arrow's PyCapsule interface.

        ``table`` has columns of the names that a dict has in ``score``. The result has a column
        ``reward``, or ``rewards`` where rows have ``responses``: ``pyarrow.table(..)``,
        ``polars.DataFrame(..)`` and others read it. With ``errors="nan"`` errors are nulls.
        """
        failures = _failures(errors)
        with _line(table, progress) as line:
            rewards = self._engine.score_table(table, failures, line)
        self._log_warnings()
        _warn(failures)
        return rewards

    def _score(self, inputs: Any, ids: bool, errors: Errors, progress: bool | None) -> Any:
        failures = _failures(errors)
        with _line(inputs, progress) as line:
            rewards = self._engine.score(inputs, ids, failures, line)
        self._log_warnings()
        _warn(failures, 4)
        return rewards

    async def ascore(
        self,
        conversations: Any = None,
        *,
        prompt: str | Sequence[Message] | None = None,
        response: str | None = None,
        responses: Sequence[str] | None = None,
        errors: Errors = "raise",
    ) -> Any:
        """Returns what ``score`` returns, to a task of asyncio.

        The loop is not blocked: templates and tokenizer run on its default executor, and it is woken
        when the rewards are there. A task that is cancelled takes its inputs out of the queue.
        """
        failures = _failures(errors)
        loop = asyncio.get_running_loop()
        submission = self._engine.submission(_inputs(conversations, prompt, response, responses))
        await loop.run_in_executor(None, submission.prepare)
        done = loop.create_future()
        try:
            submission.start(loop, done)
            await done
            rewards = submission.result(failures)
        finally:
            submission.cancel()
        self._log_warnings()
        _warn(failures)
        return rewards

    def render(self, conversation: Conversation) -> Dict[str, Any]:
        """Returns the text and the token ids that would be scored, and the token with the reward.

        The dict has the fields of a line of ``kudos render``.
        """
        return self._engine.render(conversation)

    def plan(self) -> Dict[str, Any]:
        """Returns the memory that a rank allocates, and the limits of a pass."""
        return self._engine.plan()

    def stats(self) -> Dict[str, Any]:
        """Returns counts of what is queued now, and of what was computed since the model was opened."""
        return self._engine.stats()

    @property
    def device(self) -> str:
        """The device that the model runs on, in words."""
        return self._engine.device()[1]

    @property
    def labels(self) -> int:
        """The number of logits: 1, or the labels of a classifier, of which the first is the reward."""
        return self._engine.labels()

    def close(self) -> None:
        """Scores what is queued, and frees the model. What is called after that raises StoppedError."""
        self._engine.close()

    def __enter__(self) -> RewardModel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _inputs(conversations: Any, prompt: Any, response: Any, responses: Any) -> Any:
    if prompt is None and response is None and responses is None:
        if conversations is None:
            raise TypeError("nothing to score: give conversations, or `prompt=` and `response=` or `responses=`")
        return conversations
    if conversations is not None:
        raise TypeError("conversations and `prompt=` are given at once, expected one of them")
    return {"prompt": prompt, "response": response, "responses": None if responses is None else list(responses)}


def _line(inputs: Any, progress: bool | None) -> Any:
    if not progress and not (progress is None and shown_by_default()):
        return nullcontext()
    rows = len(inputs) if hasattr(inputs, "__len__") and not isinstance(inputs, Mapping) else None
    return Progress(rows, 0.0 if progress else DELAY)


def _failures(errors: Errors) -> List[KudosError] | None:
    if errors not in ("raise", "nan"):
        raise ValueError(f'`errors` is {errors!r}, expected "raise" or "nan"')
    return [] if errors == "nan" else None


def _warn(failures: List[KudosError] | None, level: int = 3) -> None:
    if failures:
        count = len(failures)
        text = f"{count} rewards are NaN; the first: {failures[0]}" if count > 1 else f"a reward is NaN: {failures[0]}"
        warnings.warn(KudosWarning(text, failures), stacklevel=level)

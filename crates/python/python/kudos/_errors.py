"""The exceptions of kudos: one class for each kind of error."""

from __future__ import annotations


class KudosError(Exception):
    """An error of the engine. The subclasses are its kinds.

    ``str()`` has the message, the place and the hint, on lines of their own.
    """

    #: The kind's name, as in the output of the ``kudos`` command.
    kind: str = "error"

    #: What happened.
    message: str
    #: The file, tensor, rank or message that it is about, where that is known.
    place: str | None
    #: What to do about it, where that is known.
    hint: str | None
    #: The position in the list that was scored, from 0.
    index: int | None

    def __init__(
        self,
        message: str,
        place: str | None = None,
        hint: str | None = None,
        index: int | None = None,
        tokens: int | None = None,
        limit: int | None = None,
    ) -> None:
        # All of them, so that a process pool can pass the exception on.
        super().__init__(message, place, hint, index, tokens, limit)
        self.message, self.place, self.hint, self.index = message, place, hint, index
        self.tokens, self.limit = tokens, limit

    def __str__(self) -> str:
        start = "" if self.index is None else f"input {self.index}: "
        place = "" if self.place is None else f"\n  at {self.place}"
        hint = "" if self.hint is None else f"\n\nhint: {self.hint}"
        return f"{start}{self.message}{place}{hint}"


class FileError(KudosError):
    """A file or folder could not be read."""

    kind = "io"


class OptionsError(KudosError, ValueError):
    """An option has a value that cannot work."""

    kind = "options"


class ConfigError(KudosError):
    """``config.json`` is missing something, contradicts itself, or is not JSON."""

    kind = "config"


class UnsupportedError(KudosError):
    """The model needs something that is not implemented and would change its rewards."""

    kind = "unsupported"


class WeightsError(KudosError):
    """A weight file is damaged, or its tensors are not those that ``config.json`` describes."""

    kind = "weights"


class TokenizerError(KudosError):
    """The tokenizer's files are missing or cannot be used."""

    kind = "tokenizer"


class TemplateError(KudosError):
    """The chat template is missing, cannot be parsed, or refused a conversation."""

    kind = "template"


class InvalidInputError(KudosError, ValueError):
    """The input cannot be scored."""

    kind = "invalid_input"


class TooLongError(KudosError, ValueError):
    """A conversation has more tokens (``tokens``) than the model or the options allow (``limit``)."""

    kind = "too_long"

    #: Tokens of the conversation.
    tokens: int
    #: The limit on tokens.
    limit: int


class NonFiniteError(KudosError, ArithmeticError):
    """A reward came out as NaN or infinite."""

    kind = "non_finite"


class QueueFullError(KudosError):
    """The engine's queue is full."""

    kind = "queue_full"


class OutOfMemoryError(KudosError, MemoryError):
    """The device or the machine has too little memory."""

    kind = "memory"


class DeviceError(KudosError):
    """The device or its driver is missing or failed."""

    kind = "device"


class StoppedError(KudosError):
    """The model was closed, or its engine stopped after an earlier failure."""

    kind = "stopped"


class UnknownError(KudosError):
    """An error of a kind that this version has no class for."""


class _Kinds(dict):  # type: ignore[type-arg]
    def __missing__(self, kind: str) -> type[KudosError]:
        return UnknownError


BY_KIND = _Kinds((one.kind, one) for one in KudosError.__subclasses__() if one is not UnknownError)


class KudosWarning(UserWarning):
    """Rewards of a list are NaN. ``failures`` has their exceptions, in the order of the list."""

    failures: list[KudosError]

    def __init__(self, message: str, failures: list[KudosError] | None = None) -> None:
        super().__init__(message)
        self.failures = failures or []

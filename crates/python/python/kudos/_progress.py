"""A progress line on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType

#: Seconds of scoring after which a line appears by itself.
DELAY = 2.0


def shown_by_default() -> bool:
    """Whether standard error is a terminal, or a cell of a notebook."""
    if sys.stderr is None:
        return False
    shell = sys.modules.get("IPython")
    notebook = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    return notebook or sys.stderr.isatty()


class Progress:
    """Writes how many sequences are scored, and removes the line at the end."""

    def __init__(self, rows: int | None, delay: float) -> None:
        self.rows, self.began, self.width = rows, time.monotonic(), 0
        self.due = self.began + delay

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.width:
            self.write(" " * self.width + "\r")

    def __call__(self, done: int) -> None:
        """Takes the number of sequences that are done."""
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + 0.2
        of = "" if self.rows is None else f" of {self.rows:,}"
        rate = done / max(now - self.began, 1e-3)
        left = f", {(self.rows - done) / rate:,.0f} s left" if self.rows and done and self.rows > done else ""
        text = f"{done:,}{of} scored, {rate:,.0f}/s{left}"
        self.write(text + " " * (self.width - len(text)) + "\r")
        self.width = max(self.width, len(text))

    def write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            # Scoring goes on without the terminal.
            pass

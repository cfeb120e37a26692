"""A model that is opened once in each process that uses it."""

from __future__ import annotations

import os
import threading
from typing import Any, Dict, Union

from kudos import RewardModel

Model = Union[RewardModel, str, "os.PathLike[str]"]


class Source:
    """A model, or what opens one in each process that uses it."""

    def __init__(self, model: Model, options: Dict[str, Any]) -> None:
        if isinstance(model, RewardModel) and options:
            raise TypeError("options are those of a model that is not open yet")
        self.given, self.options = model, options
        self.opened: RewardModel | None = None
        self.pid, self.lock = 0, threading.Lock()

    def __getstate__(self) -> Dict[str, Any]:
        if isinstance(self.given, RewardModel):
            raise TypeError("an open RewardModel stays in its process: give the model's folder instead")
        return {"given": self.given, "options": self.options}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__init__(state["given"], state["options"])  # type: ignore[misc]

    def model(self) -> RewardModel:
        if isinstance(self.given, RewardModel):
            return self.given
        if self.pid != os.getpid():
            # The lock of a forked child may be held by a thread that is not there.
            self.lock, self.opened, self.pid = threading.Lock(), None, os.getpid()
        with self.lock:
            if self.opened is None:
                self.opened = RewardModel(self.given, **self.options)
            return self.opened

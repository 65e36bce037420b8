"""Postpones wake-ups until a step of the node ends, so that whoever gets several answers is woken once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import get_ident


class StepEnd:
    """The postponed calls of one node. `call` is for any thread, the rest for the one that makes the steps."""

    def __init__(self) -> None:
        self._stepping: int | None = None  # the thread that is in the middle of a step
        self._waiting: deque[Callable[[], object]] = deque()

    def call(self, function: Callable[[], object]) -> None:
        """Have something called that neither blocks nor raises: at the end of this step, or at once if the calling
        thread makes none."""
        if self._stepping == get_ident():
            self._waiting.append(function)
        else:
            function()

    def begin(self) -> None:
        """A step begins."""
        self._stepping = get_ident()

    def end(self) -> None:
        """It is over."""
        self._stepping = None  # before looking: what comes in between, from a finalizer, is called at once
        while self._waiting:
            self._waiting.popleft()()

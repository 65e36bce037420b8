"""Runs jobs one after the other, in a thread of their own that lives until it is closed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from replidict.call import Call
from replidict.own_threads import OwnThread

Returned = TypeVar("Returned")


class Background(Protocol):
    """What runs such jobs; the simulator has its own, in simulated time."""

    def submit(self, function: Callable[..., Returned], /, *arguments: Any) -> Call[Returned]:
        """Have a function called."""

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way."""


class BackgroundThread:
    """A thread that runs the jobs."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Call[Any] | None] = SimpleQueue()
        self._closed = False
        self._thread = OwnThread(self._run, name)

    def start(self) -> None:
        """Begin. Raises `RuntimeError` if the system has no thread left."""
        self._thread.start()

    def submit(self, function: Callable[..., Returned], /, *arguments: Any) -> Call[Returned]:
        """Run a function after those submitted before. It is not run any more once this is closed."""
        call = Call(partial(function, *arguments))
        self._work.put(call)
        return call

    def close(self) -> None:
        """Begin nothing more, and wait for what is under way. Idempotent."""
        self._closed = True
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (call := self._work.get()) is not None and not self._closed:
            call.run()
            del call  # or what it gave is kept alive until there is another

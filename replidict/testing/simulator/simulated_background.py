"""Background jobs in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from replidict.call import Call
from replidict.testing.simulator.loop import Loop

Returned = TypeVar("Returned")


class SimulatedBackground:
    """Runs jobs one after the other, each at some point of its duration."""

    def __init__(self, loop: Loop, duration: Callable[[], float], before: Callable[..., None]) -> None:
        """`before` is called with each job just before it is done."""
        self._loop = loop
        self._duration = duration
        self._before = before
        self._free_at = 0.0
        self._closed = False

    def submit(self, function: Callable[..., Returned], /, *arguments: Any) -> Call[Returned]:
        """Have a function called; what it gives is known some time later."""
        done: list[Call[Returned]] = []
        call = Call(lambda: done[0].result())
        begin = max(self._free_at, self._loop.now)
        work, rest = self._duration(), self._duration()
        self._free_at = begin + work + rest

        def run() -> None:
            if not self._closed:
                self._before(function, *arguments)
                done.append(Call(partial(function, *arguments)))
                done[0].run()
                self._loop.after(rest, answer)

        def answer() -> None:
            if not self._closed:
                call.run()

        self._loop.at(begin + work, run)
        return call

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True

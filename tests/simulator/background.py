"""The executor for work beside the tick thread, in simulated time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from typing_extensions import override

from tests.simulator.loop import Loop


class SimulatedExecutor(Executor):
    """Does one thing after the other, each at some moment of the time that it takes."""

    def __init__(self, loop: Loop, duration: Callable[[], float], before: Callable[..., None]) -> None:
        """`before` is called with each job just before it is done."""
        self._loop = loop
        self._duration = duration
        self._before = before
        self._free_at = 0.0
        self._closed = False

    @override
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        begin = max(self._free_at, self._loop.now)
        work, rest = self._duration(), self._duration()
        self._free_at = begin + work + rest

        def run() -> None:
            if self._closed:
                return
            self._before(fn, *args)
            try:
                outcome = partial(future.set_result, fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 -- as every executor does
                outcome = partial(future.set_exception, error)
            self._loop.after(rest, lambda: None if self._closed else outcome())

        self._loop.at(begin + work, run)
        return future

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True

"""An asyncio event loop in simulated time, for the coroutines of one process.

Rules kept here:

1. All that is ready is done in one go, at one moment of the simulation: how many rounds asyncio makes of it, which
   differs between releases of Python, changes nothing.
2. While the machine is paused nothing is done. When its process has ended nothing is done any more, and its coroutines
   are closed; what they then try to do has no effect.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Handle, Task, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

from typing_extensions import override

from replidict.testing.simulator.loop import Loop
from replidict.testing.simulator.violation import Violation

Returned = TypeVar("Returned")

MOST_AT_ONCE = 100_000
"""Callbacks that a program makes without letting time pass. One that makes more has no end."""


class ProgramLoop(AbstractEventLoop):
    """The event loop of one process, until the process ends."""

    def __init__(self, world: Loop, is_paused: Callable[[], bool]) -> None:
        self._world, self._is_paused = world, is_paused
        self._ready: deque[Handle] = deque()
        self._coming = False
        self._tasks: list[Task[Any]] = []
        self.over = False
        """Whether the process has ended."""

    def end(self) -> None:
        """The process is gone."""
        self.over = True
        self._ready.clear()
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(None)  # so that what they still want to wait for fails
        try:
            for task in self._tasks:
                if not task.done():
                    _close(task.get_coro())
        finally:
            asyncio._set_running_loop(outer)
        self._tasks.clear()

    def resume(self) -> None:
        """The machine is not paused any more."""
        if self._ready:
            self._arrange()

    def _arrange(self) -> None:
        if not self._coming and not self.over:
            self._coming = True
            self._world.at(self._world.now, self._run_ready)

    def _run_ready(self) -> None:
        self._coming = False
        if self._is_paused():
            return
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(MOST_AT_ONCE):
                if not self._ready:
                    return
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
            raise Violation("progress", f"a program made {MOST_AT_ONCE:,} steps without letting time pass")
        finally:
            asyncio._set_running_loop(outer)

    def _due(self, handle: TimerHandle) -> None:
        if not handle.cancelled() and not self.over:
            self._ready.append(handle)
            self._arrange()

    # -- what asyncio calls -------------------------------------------------------------------------------------------

    @override
    def time(self) -> float:
        return self._world.now

    @override
    def call_soon(  # type: ignore[override]  # whose callback is tied to its arguments
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, self, context)
        if not self.over:
            self._ready.append(handle)
            self._arrange()
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    @override
    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    @override
    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        handle = TimerHandle(when, callback, args, self, context)
        self._world.at(when, partial(self._due, handle))
        return handle

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """It is left out when it is due."""

    @override
    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    @override
    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None, **more: Any) -> Task[Any]:
        task: Task[Any] = Task(coro, loop=self, name=None if name is None else str(name), context=context, **more)
        self._tasks = [each for each in self._tasks if not each.done()] + [task]
        return task

    @override
    def is_running(self) -> bool:
        return not self.over

    @override
    def is_closed(self) -> bool:
        return self.over

    @override
    def get_debug(self) -> bool:
        return False

    @override
    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note errors that no one retrieved, such as those of tasks of a process that is gone."""


def _close(coroutine: Coroutine[Any, Any, Any] | Any) -> None:
    """Run the `finally` blocks of a coroutine whose process is gone, so that what a test notes there is right."""
    try:
        coroutine.close()
    except BaseException:  # noqa: BLE001 -- a program that is gone has nobody to tell
        pass

"""How a coroutine waits for an answer of its simulated node."""

from __future__ import annotations

import asyncio

from replidict.errors import ClosedError
from replidict.testing.simulator.program_loop import ProgramLoop


class Bell:
    """Rung by the node, waited for by the coroutine that made it. It may be rung and waited for again."""

    def __init__(self) -> None:
        """Raises `ClosedError` in a process that has ended."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ProgramLoop)
        if loop.over:
            raise ClosedError("this process has ended")
        self._loop = loop
        self._rung = False
        self._waiting: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Something has happened."""
        self._rung = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done() and not self._loop.over:
            self._waiting.set_result(None)

    async def wait(self, seconds: float | None) -> bool:
        """Wait until it rings, for so many seconds at most; None: for as long as it takes. Returns whether it did."""
        if not self._rung:
            self._waiting = self._loop.create_future()
            timer = None if seconds is None else self._loop.call_later(seconds, self._wake)
            try:
                await self._waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        rung, self._rung = self._rung, False
        return rung

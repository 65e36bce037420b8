"""Threads in which calls on the dict wait, bounded in number; what is above the bound is told so at once.

Each kind of work has its own lane, so that writes which wait for a quorum hold up no probe, and listings, which compute
and do not wait, never run side by side: the node's own thread shares the interpreter with them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from replidict.errors import OutcomeUnknown
from replidict.http.problems import Problem

Returned = TypeVar("Returned")


class Lane:
    """So many threads, and room for so many calls that wait for one. For the event loop's thread."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, f"replidict http {name}")
        self._room = threads + waiting

    async def run(self, call: Callable[[float], Returned], seconds: float, *, writes: bool = False) -> Returned:
        """What the call returns, which is told how many of these seconds are left when it begins.

        Raises what it raises; `Problem` when there is no room, or a thread was free too late; `OutcomeUnknown` when
        it `writes` and is given up after it began.
        """
        if self._room == 0:
            raise Problem("busy", "too many requests are under way at this node")
        deadline = time.monotonic() + seconds

        def begin() -> Returned:
            left = deadline - time.monotonic()
            if left <= 0 < seconds:
                raise Problem("busy", f"this request was not begun within {seconds:g} s: too many are under way")
            return call(max(left, 0.0))

        self._room -= 1
        try:
            under_way = self._pool.submit(begin)
            return await asyncio.wrap_future(under_way)
        except asyncio.CancelledError:
            if writes and not under_way.cancel():  # what can be cancelled had not begun
                raise OutcomeUnknown(
                    "this node is being stopped, and this write was under way: it may or may not be done"
                ) from None
            raise
        finally:
            self._room += 1

    def close(self) -> None:
        """Begin nothing more. What is under way ends in its own time, at the latest when the dict is closed."""
        self._pool.shutdown(wait=False, cancel_futures=True)

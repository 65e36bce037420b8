"""Bounded pools of threads for calls that may block; what exceeds the bound is refused at once.

Each kind of work has a bulkhead of its own, so that writes waiting for a quorum do not delay probes. Listings, which
compute instead of waiting, never run in parallel, because they share the interpreter with the node's own thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from replidict.call import Call
from replidict.errors import OutcomeUnknown
from replidict.http.problems import Problem
from replidict.monotonic_clock import clock
from replidict.thread_pool import Workers

Returned = TypeVar("Returned")


class Bulkhead:
    """A bounded pool of threads with a bounded queue. For use from the event loop's thread."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        self._pool = Workers(f"replidict http {name}", threads)
        self._room = threads + waiting

    async def run(self, call: Callable[[float], Returned], seconds: float, *, writes: bool = False) -> Returned:
        """Run a call in a thread and return its result. The call is told how many of the seconds are left when it
        begins.

        Raises what it raises; `Problem` when there is no room, or a thread was free too late; `OutcomeUnknown` when
        it `writes` and is given up after it began.
        """
        if self._room == 0:
            raise Problem("busy", "too many requests are under way at this node")
        deadline = clock() + seconds

        def begin() -> Returned:
            left = deadline - clock()
            if left <= 0 < seconds:
                raise Problem("busy", f"this request did not begin within {seconds:g} s: too many are under way")
            return call(max(left, 0.0))

        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        under_way = Call(begin)

        def work() -> None:
            under_way.run()
            try:
                loop.call_soon_threadsafe(lambda: None if done.done() else done.set_result(None))
            except RuntimeError:
                pass  # the loop has ended, and with it whoever waited

        self._room -= 1
        try:
            if not self._pool.put(under_way, work):
                raise Problem("busy", "this node can't start another thread")
            await done
            return under_way.result()
        except asyncio.CancelledError:
            begun = not under_way.withdraw()
            if begun and writes:  # what can be cancelled had not begun
                raise OutcomeUnknown(
                    "this node is being stopped, and this write was under way: it may or may not be done"
                ) from None
            raise
        finally:
            self._room += 1

    def close(self) -> None:
        """Begin nothing more. What is under way ends in its own time, at the latest when the dict is closed."""
        self._pool.close()

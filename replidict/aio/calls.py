"""How a coroutine submits a write or a linearizable read and waits for it, as `node.blocking_calls` does for threads.

Rules kept here:

1. A cancelled call stops waiting at once, and `CancelledError` propagates.
2. A write whose caller was cancelled is not taken back: it is applied, or given up when its time is over.
3. A call that needs a thread gets one of its own. It waits for that thread even when it is cancelled, so that nothing
   goes on after the call has ended.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from replidict.aio.inbox import Bell, Inbox
from replidict.api.held_lock import Held, check_given_back, send_back
from replidict.api.internals import Inside
from replidict.errors import NotCommitted, ReplidictError, raise_anew
from replidict.machine import commands as cmd
from replidict.monotonic_clock import clock
from replidict.node.blocking_calls import given_up, is_current, is_recent, not_current
from replidict.node.linearizable_reads import Read
from replidict.node.proposals import Write, result_of
from replidict.node.steps import Steps
from replidict.own_threads import OWN_THREADS

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Returned = TypeVar("Returned")


class Calls(Generic[K, V]):
    """Makes the calls of one dict, from any number of event loops."""

    def __init__(self, inside: Inside[K, V]) -> None:
        self.inside = inside
        self._inboxes: WeakKeyDictionary[AbstractEventLoop, Inbox] = WeakKeyDictionary()

    def bell(self) -> Bell:
        """A bell for the coroutine that calls this."""
        loop = asyncio.get_running_loop()
        inbox = self._inboxes.get(loop)
        if inbox is None:
            inbox = self._inboxes.setdefault(loop, Inbox(loop, self.inside.node.step_end))
        return Bell(inbox)

    async def make(self, steps: Steps[Returned]) -> Returned:
        """Make the steps, one after the other."""
        try:
            prepared, seconds = next(steps)
            while True:
                try:
                    result = await self.write(*prepared, seconds)
                except ReplidictError as error:
                    prepared, seconds = steps.throw(error)
                else:
                    prepared, seconds = steps.send(result)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def write(self, operation: cmd.Operation, size: int, seconds: float) -> cmd.Result:
        """Have an operation of about so many bytes done, and return what it gives."""
        node = self.inside.node
        if node.failure is not None:
            raise_anew(node.failure)
        bell = self.bell()
        write = Write(operation, size, bell.ring)
        node.proposals.submit(write)
        try:
            answered = await bell.wait(seconds)
        except BaseException:
            node.proposals.leave(write, seconds)  # rule 2
            raise
        if not answered:
            error = given_up(node, write, seconds)
            if isinstance(error, NotCommitted) or not bell.rung:
                raise error
            # else the answer came at the last moment
        return result_of(write)

    async def make_current(self, seconds: float) -> None:
        """Return when this node's copy includes all that was acknowledged anywhere before; else `ReadTimeout`."""
        node = self.inside.node
        if is_current(node):
            return
        bell = self.bell()
        read = Read(bell.ring)
        node.reads.submit(read)
        try:
            if not await bell.wait(seconds):
                raise not_current(seconds)
        except BaseException:
            read.abandoned = True
            raise
        if read.error is not None:
            raise_anew(read.error)

    async def make_recent(self, max_staleness: float, seconds: float) -> None:
        """The same, for what was acknowledged up to `max_staleness` seconds ago."""
        if not is_recent(self.inside.node, max_staleness):
            await self.make_current(seconds)

    async def give_back(self, held: Held) -> None:
        """Give back what was held. Raises `LockLost`. It is sent before anything is waited for."""
        bell = self.bell()
        write = send_back(held, bell.ring)
        if write is not None and await bell.wait(self.inside.timeout):
            check_given_back(held, write)


async def in_thread(function: Callable[[], Returned]) -> Returned:
    """Return what a blocking function returns, called in a thread of its own (rule 3)."""
    outcome: Future[Returned] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 -- the caller's to handle
            outcome.set_exception(error)

    # A plain thread, not one of `own_threads`: in those, `close` does not wait.
    threading.Thread(target=run, name=f"{OWN_THREADS}aio", daemon=True).start()
    over: asyncio.Future[Returned] = asyncio.wrap_future(outcome)
    try:
        await ended(over)
    except CancelledError:
        over.exception()  # or asyncio says that nobody has taken it
        raise
    return over.result()


async def ended(future: asyncio.Future[Any], seconds: float | None = None) -> None:
    """Wait for the end of work that must not outlive its caller, for `seconds` at most. If the caller is cancelled
    meanwhile, however often, `CancelledError` is raised afterwards."""
    deadline = None if seconds is None else clock() + seconds
    cancelled: CancelledError | None = None
    while not future.done():
        left = None if deadline is None else deadline - clock()
        if left is not None and left <= 0:
            break
        try:
            await asyncio.wait([future], timeout=left)
        except CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled

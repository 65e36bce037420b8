"""Locks and semaphores with coroutine methods."""

from __future__ import annotations

import asyncio
from typing import Any

from replidict.aio.calls import Calls
from replidict.aio.inbox import Bell
from replidict.api.held_lock import Held
from replidict.api.lock import NotHeldError
from replidict.api.lock_waiting import is_taken, not_obtained, obtaining, seconds_for
from replidict.errors import ReplidictError
from replidict.node.lock_requests import Wanted
from replidict.node.node import Node


async def obtain(node: Node, bell: Bell, wanted: Wanted, seconds: float | None, *, wait: bool = True) -> Held | None:
    """Ask for a lock and wait until it is granted: see `api.lock_waiting.obtaining`."""
    waits = obtaining(node, wanted, seconds, wait, bell.ring)
    try:
        left = next(waits)
        while True:
            left = waits.send(await bell.wait(left))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        waits.close()  # it may have been cancelled


class Lock:
    """A lock of the whole cluster, or a semaphore, with the protocol of `asyncio.Lock`.

    `async with lock as held:` raises `LockTimeout` if it is not obtained within the dict's timeout; the block is never
    entered without the lock. If the block ends without an error and the lock was lost meanwhile, `LockLost` is raised.
    Any number of tasks and event loops may use one object: whoever comes while it is held stands in line.

    Example:
        >>> lock = a.lock("report")
        >>> await lock.acquire(timeout=5)
        True
        >>> await lock.release()
    """

    def __init__(self, calls: Calls[Any, Any], wanted: Wanted) -> None:
        self._calls, self._wanted = calls, wanted
        self._all: dict[int, tuple[int, Held]] = {}  # by token: the task that acquired it, what is held

    @property
    def name(self) -> str:
        """The name, the same in the whole cluster."""
        return self._wanted.name

    @property
    def held(self) -> Held | None:
        """What this task acquired last or, if it has nothing, any task."""
        held = [held for _, held in list(self._all.values())]
        mine = [held for task, held in list(self._all.values()) if task == _task()]
        return next(reversed(mine or held), None)

    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for the lock, for `timeout` seconds at most (-1: for as long as it takes).

        With `blocking=False` it is obtained only if it is free now; the answer may take the dict's timeout. If this is
        cancelled, the request is withdrawn, and what was granted meanwhile is given back.

        Returns:
            Whether it was obtained. If not, whatever was asked for on the way is taken back.

        Raises:
            ValueError: A timeout that makes no sense.
            ReplidictError: The name is that of a lock of another kind.
            ClosedError, StorageError: The node has stopped.
        """
        seconds = seconds_for(blocking, timeout)
        inside = self._calls.inside
        held = await obtain(
            inside.node, self._calls.bell(), self._wanted, seconds if blocking else inside.timeout, wait=blocking
        )
        if held is None:
            return False
        self._all[held.token] = _task(), held
        return True

    async def release(self) -> None:
        """Give it back: what this task acquired last, or any, if it has nothing.

        That the next one may have it is waited for, for the dict's timeout at most; it is sent in any case, also if
        this is cancelled.

        Raises:
            RuntimeError: It is not held.
            LockLost: It was lost before. It is not held any more, and can be acquired again.
        """
        while True:
            held = self.held
            if held is None:
                raise NotHeldError(f"release of the lock {self.name!r}, which is not held")
            if self._all.pop(held.token, None) is not None:  # else another thread has taken it
                break
        await self._calls.give_back(held)

    def locked(self) -> bool:
        """Whether anybody in the cluster holds it (or no permit is free), in this node's copy."""
        return is_taken(self._calls.inside.node, self._wanted)

    async def __aenter__(self) -> Held:
        seconds = self._calls.inside.timeout
        if not await self.acquire(timeout=seconds):
            raise not_obtained(self._calls.inside.node, self.name, seconds)
        held = self.held
        assert held is not None
        return held

    async def __aexit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            await self.release()
        except (ReplidictError, RuntimeError):
            if kind is None:
                raise

    def __repr__(self) -> str:
        held = f"{len(self._all)} of {self._wanted.permits} permits held" if self._wanted.permits > 1 else (
            "locked" if self._all else "unlocked"
        )  # fmt: skip
        return f"<replidict.aio.Lock object {self.name!r}, {held} here, at {id(self):#x}>"


def _task() -> int:
    return id(asyncio.current_task())

"""The coroutine methods for leases, locks, semaphores and leadership."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from replidict.aio.calls import Calls
from replidict.aio.leadership import Leadership
from replidict.aio.lease import Granting
from replidict.aio.lock import Lock
from replidict.api.held_lock import Held
from replidict.api.lock_arguments import wanted_lock, wanted_permit
from replidict.api.replicated_dict import ReplicatedDict
from replidict.errors import raise_anew
from replidict.node.call_arguments import ttl_of
from replidict.status import LockInfo

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Coordination(Generic[K, V]):
    """Part of `AsyncDict`."""

    sync: ReplicatedDict[K, V]
    _calls: Calls[K, V]

    def lease(self, ttl: float = 10.0) -> Granting:
        """A new lease, renewed by the node's own thread; see `ReplicatedDict.lease` for arguments and errors.

        Returns:
            What gives the lease when it is awaited, or entered by `async with`, which revokes the lease at its end. If
            that is cancelled, the lease is given back.

        Example:
            >>> async with a.lease(ttl=5) as lease:
            ...     await a.set("workers/7", "10.0.0.7:8000", lease=lease)
            1
            >>> "workers/7" in a
            False
        """
        return Granting(self._calls, ttl_of(ttl))

    def lock(self, name: str, *, ttl: float = 10.0, shared: bool = False, info: str = "") -> Lock:
        """A lock that one process of the cluster has at a time; see `ReplicatedDict.lock` for arguments and errors.

        Example:
            >>> async with a.lock("report") as held:
            ...     await a.set("report/total", 17, fence=held)
            1
        """
        return Lock(self._calls, wanted_lock(name, ttl, shared, info))

    def semaphore(self, name: str, permits: int, *, ttl: float = 10.0, info: str = "") -> Lock:
        """A semaphore: `permits` holders in the whole cluster at a time; see `ReplicatedDict.semaphore`."""
        return Lock(self._calls, wanted_permit(name, permits, ttl, info))

    def locks(self) -> tuple[LockInfo, ...]:
        """The holders of all locks and permits, in this node's copy; `await barrier()` first to include every grant."""
        return self.sync.locks()

    async def break_lock(self, name: str, *, token: int) -> bool:
        """Take a lock from its holder, who sees it as lost; see `ReplicatedDict.break_lock`.

        If this is cancelled, it is not taken back.
        """
        operations, seconds = self._calls.inside.operations, self._calls.inside.timeout
        return await self._calls.make(operations.break_lock(name, token, seconds))

    def run_as_leader(
        self, name: str, work: Callable[[Held], Awaitable[object]], *, ttl: float = 10.0, info: str = ""
    ) -> Leadership:
        """Have `work(held)` awaited in one process of the cluster at a time, in a task of its own.

        It begins at once; see `ReplicatedDict.run_as_leader` for arguments and errors. When the lock is lost, the work
        is cancelled.

        Args:
            name: What is led: the name of a lock.
            work: Gets what is held, as `fence=` of what it writes; a coroutine function.
            ttl: Seconds after which another one leads when this process is gone, or cut off.
            info: What `locks` and `leader` are to say of this candidate.

        Returns:
            The candidacy, with `is_leader`, `error`, `stop` and `wait`, and an asynchronous context manager.

        Example:
            >>> async def sweep(held):
            ...     await a.set("swept", True, fence=held)
            >>> async with a.run_as_leader("sweeper", sweep) as candidate:
            ...     await candidate.wait()
            >>> a["swept"]
            True
        """
        if not callable(work):
            raise ValueError(f"work={work!r}: must be a coroutine function that takes what is held")
        if self._calls.inside.node.failure is not None:
            raise_anew(self._calls.inside.node.failure)
        return Leadership(self._calls, wanted_lock(name, ttl, False, info), work)

    def leader(self, name: str) -> LockInfo | None:
        """The leader of `name`, in this node's copy; None if there is none."""
        return self.sync.leader(name)

"""`Lock` and `Semaphore` of the cluster, with the methods of those in `threading` (how they wait: `lock_waiting`)."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque

from typing_extensions import override

from replidict.api.held_lock import Held, give_back
from replidict.api.lock_waiting import is_taken, not_obtained, obtain, refuse_in_node_thread, seconds_for
from replidict.errors import LockLost, ReplidictError
from replidict.monotonic_clock import clock
from replidict.node.lock_requests import Wanted
from replidict.node.node import Node


class _Block(ABC):
    """The `with` block of a lock or a semaphore."""

    def __init__(self, node: Node, wanted: Wanted, timeout: float) -> None:
        self._node, self._wanted, self._timeout = node, wanted, timeout

    @property
    @abstractmethod
    def held(self) -> Held | None: ...

    @abstractmethod
    def acquire(self, *, timeout: float) -> bool: ...

    @abstractmethod
    def release(self) -> None: ...

    def __enter__(self) -> Held:
        if not self.acquire(timeout=self._timeout):
            raise not_obtained(self._node, self._wanted.name, self._timeout)
        held = self.held
        assert held is not None
        return held

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.release()
        except (ReplidictError, RuntimeError):
            if kind is None:
                raise


class Lock(_Block):
    """A lock that one process of the cluster holds at a time, with the methods of `threading.Lock`.

    The object owns the lock, and not a thread: any thread may release it. `with lock as held:` raises `LockTimeout` if
    the lock can't be acquired within the dict's timeout; the block never runs without the lock. If the block ends
    without an error and the lock was lost meanwhile, `LockLost` is raised. `ReplicatedDict.lock` makes it.

    Example:
        >>> with d.lock("report") as held:
        ...     d.set("report", "ready", fence=held)
        1
    """

    def __init__(self, node: Node, wanted: Wanted, timeout: float) -> None:
        super().__init__(node, wanted, timeout)
        self._mine = threading.Lock()
        self._held: deque[Held] = deque(maxlen=1)  # whoever takes it out gives it back

    @property
    def name(self) -> str:
        """The name of the lock in the cluster."""
        return self._wanted.name

    @property
    @override
    def held(self) -> Held | None:
        """The `Held` after `acquire`; None if the lock is not held by this object."""
        try:
            return self._held[-1]
        except IndexError:
            return None

    @override
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock.

        Args:
            blocking: Whether to wait until it is free. If not, the answer of the cluster may still take the dict's
                timeout.
            timeout: Seconds to wait; -1: for as long as it takes.

        Returns:
            Whether it was acquired. If not, the request was withdrawn.

        Raises:
            ValueError: `timeout` makes no sense.
            ReplidictError: The name is that of a semaphore.
            ClosedError, StorageError: The node has stopped.
        """
        seconds = seconds_for(blocking, timeout)
        refuse_in_node_thread(self.name)
        begun = clock()
        if not self._mine.acquire(blocking, timeout):
            return False
        held = None
        try:
            left = seconds if seconds is None else max(seconds - (clock() - begun), 0.0)
            held = obtain(self._node, self._wanted, left if blocking else self._timeout, wait=blocking)
            if held is not None:
                self._held.append(held)
        finally:
            if held is None:
                self._mine.release()
        return held is not None

    @override
    def release(self) -> None:
        """Release the lock. It waits until the next one can have it, for the dict's timeout at most.

        Raises:
            RuntimeError: The lock is not held.
            LockLost: The lock was lost before. It is not held any more, and can be acquired again.
        """
        try:
            held = self._held.pop()
        except IndexError:
            raise RuntimeError(f"release of the lock {self.name!r}, which is not held") from None
        try:
            give_back(held, self._timeout)
        finally:
            self._mine.release()

    def locked(self) -> bool:
        """Return whether anybody in the cluster holds the lock, as this node's copy says.

        Raises:
            ClosedError, StorageError: The node has stopped.
        """
        return is_taken(self._node, self._wanted)

    def __repr__(self) -> str:
        held = self.held
        state, token = ("unlocked", "") if held is None else ("locked", f"token {held.token}, ")
        return f"<{state} replidict.Lock object {self.name!r}, {token}at {id(self):#x}>"


class NotHeldError(RuntimeError, ValueError):
    """A release of more than was acquired: a `RuntimeError` as for locks, a `ValueError` as in `threading`."""


class Semaphore(_Block):
    """A number of permits in the whole cluster, with the methods of `threading.BoundedSemaphore`.

    One object may hold several permits. `with semaphore as held:` works as for `Lock`. `ReplicatedDict.semaphore` makes
    it.

    Example:
        >>> semaphore = d.semaphore("downloads", permits=1)
        >>> with semaphore:
        ...     semaphore.acquire(blocking=False)
        False
    """

    def __init__(self, node: Node, wanted: Wanted, timeout: float) -> None:
        super().__init__(node, wanted, timeout)
        self._all: dict[int, tuple[int, Held]] = {}  # by token: who acquired it, what is held

    @property
    def name(self) -> str:
        """The name of the semaphore in the cluster."""
        return self._wanted.name

    @property
    @override
    def held(self) -> Held | None:
        """The permit that this thread acquired last; if it has none, the last of any thread; None: there is none."""
        found = self._find()
        return None if found is None else found[1]

    def _find(self) -> tuple[int, Held] | None:
        """The token of a permit, and it: the last one of this thread, or of any if it has none."""
        me, mine, last = threading.get_ident(), None, None
        for number, (thread, held) in list(self._all.items()):
            last = number, held
            if thread == me:
                mine = last
        return mine or last

    def _take(self, n: int) -> list[Held]:
        """Take out `n` permits, one step each. If there are fewer, put them back and raise."""
        taken: list[tuple[int, tuple[int, Held]]] = []
        while len(taken) < n:
            found = self._find()
            if found is None:
                self._all.update(reversed(taken))
                raise NotHeldError(f"release of {n} permits of {self.name!r}, and {len(taken)} are held")
            entry = self._all.pop(found[0], None)
            if entry is not None:  # else another thread, or a signal handler, has taken it
                taken.append((found[0], entry))
        return [held for _, (_, held) in taken]

    @override
    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Acquire a permit.

        Args:
            blocking: Whether to wait until one is free, as for `Lock.acquire`.
            timeout: Seconds to wait; None: for as long as it takes.

        Returns:
            Whether it was acquired.

        Raises:
            ValueError, ReplidictError, ClosedError, StorageError: As `Lock.acquire`.
        """
        seconds = seconds_for(blocking, -1 if timeout is None else timeout)
        held = obtain(self._node, self._wanted, seconds if blocking else self._timeout, wait=blocking)
        if held is not None:
            self._all[held.token] = threading.get_ident(), held
        return held is not None

    @override
    def release(self, n: int = 1) -> None:
        """Release permits, those that this thread acquired first.

        Args:
            n: The number of permits.

        Raises:
            ValueError: This object holds fewer permits (this is a `RuntimeError`, too), or `n` is below 1.
            LockLost: A permit was lost before. It is not held any more.
        """
        if n < 1:
            raise ValueError("n must be one or more")
        lost = None
        for held in self._take(n):
            try:
                give_back(held, self._timeout)
            except LockLost as error:
                lost = error
        if lost is not None:
            raise lost

    def locked(self) -> bool:
        """Return whether no permit is free, as this node's copy says.

        Raises:
            ClosedError, StorageError: The node has stopped.
        """
        return is_taken(self._node, self._wanted)

    def __repr__(self) -> str:
        held = f"{len(self._all)} of {self._wanted.permits} permits held here"
        return f"<replidict.Semaphore object {self.name!r}, {held}, at {id(self):#x}>"

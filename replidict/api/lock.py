"""Locks and semaphores as a program holds them, with the protocol of those in `threading`."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from replidict.errors import LockLost, LockTimeout, OutcomeUnknown, ReplidictError
from replidict.machine.state_machine import StateMachine
from replidict.node.blocking_calls import rounded
from replidict.node.locks import Request, State, Wanted
from replidict.node.node import Node
from replidict.node.proposals import result_of


class Held:
    """A lock, or a permit of a semaphore, that this process was granted. Give it as `fence=` to writes."""

    def __init__(self, node: Node, request: Request) -> None:
        self._node, self._request = node, request
        # What nobody refers to any more, nobody can give back.
        weakref.finalize(self, node.locks.forgotten.append, request).atexit = False

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._request.name

    @property
    def token(self) -> int:
        """The fencing token: larger than that of every grant before, in the whole cluster."""
        return self._request.token

    @property
    def lost(self) -> threading.Event:
        """Set once when the lock must be taken for lost, whether or not anybody can be reached then."""
        return self._request.lost

    def check(self) -> None:
        """Return if nobody else can have been granted the lock yet.

        That is so now, and may be no more when the next line of the program runs: what must not happen without the lock
        is a write with `fence=`, or takes the token along.

        Raises:
            LockLost: The lock is lost, or may be; or it was given back.
        """
        self._node.locks.see_to(self._request)

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called once, when the lock is lost; now, if it is. It is not if the lock is given back.

        It runs in a thread of its own, and may use the dict.
        """
        self._node.locks.tell_when_lost(self._request, callback)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, token {self.token}{', lost' if self.lost.is_set() else ''}>"


class Patience:
    """What ends a wait for a lock from another thread."""

    def __init__(self) -> None:
        self.woken = threading.Semaphore(0)
        self.over = False

    def end(self) -> None:
        """Wait no more."""
        self.over = True
        self.woken.release()


def obtain(
    node: Node, wanted: Wanted, seconds: float | None, *, wait: bool = True, patience: Patience | None = None
) -> Request | None:
    """Ask for a lock and wait until it is granted, for `seconds` at most (None: for as long as it takes).

    None: it was not, and this process is not in line any more. Raises what has ended the node, and `ReplidictError`
    when the name is that of something else.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    patience = patience or Patience()
    while True:
        request = node.locks.ask(wanted, wait, patience.woken.release)
        try:
            while request.state in (State.ASKED, State.WAITING):
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                if patience.over or not patience.woken.acquire(timeout=left):
                    node.locks.withdraw(request)
                    return None
        except BaseException:  # Ctrl-C
            node.locks.withdraw(request)
            raise
        if request.state is State.HELD:
            return request
        if request.state is State.REFUSED:
            node.locks.withdraw(request)
            return None
        if request.error is not None:
            raise request.error
        # Its lease was lost on the way: it stands in line again, with another one, at the end.


def give_back(node: Node, request: Request, seconds: float) -> None:
    """Give back what was held. Raises `LockLost` if it was lost before, and is not held either way.

    That others have it is waited for, for so many seconds at most: it is sent in any case.
    """
    try:
        node.locks.see_to(request)
    except LockLost:
        node.locks.withdraw(request)
        raise
    done = threading.Event()
    write = node.locks.release(request, done.set)
    if write is None:
        node.locks.see_to(request)
        return
    if done.wait(seconds):
        try:
            held = result_of(write)
        except OutcomeUnknown:
            return  # the node has stopped: its lease is given back as well, or ends
        if held is not True:
            raise LockLost(f"the lock {request.name!r} was lost: it is not held any more, says the log")


class Lock:
    """A lock of the whole cluster, one holder at a time, with the protocol of `threading.Lock`.

    It is owned by this object, not by a thread: any thread may release it, and while one has it, others that acquire it
    by the same object wait. `with lock as held:` raises `LockTimeout` if it is not obtained within the dict's timeout;
    the block is never entered without the lock. If the block ends without an error and the lock was lost meanwhile,
    `LockLost` is raised.

    Example:
        >>> with d.lock("report") as held:  # doctest: +SKIP
        ...     d.set("report/total", total(), fence=held)
    """

    def __init__(self, node: Node, wanted: Wanted, timeout: float) -> None:
        self._node, self._wanted, self._timeout = node, wanted, timeout
        self._mine = threading.Lock()
        self.held: Held | None = None
        """What is held, after `acquire`."""

    @property
    def name(self) -> str:
        """The name, the same in the whole cluster."""
        return self._wanted.name

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for the lock, for `timeout` seconds at most (-1: for as long as it takes).

        With `blocking=False` it is obtained only if it is free now; the answer may take the dict's timeout.

        Returns:
            Whether it was obtained. If not, whatever was asked for on the way is taken back.

        Raises:
            ValueError: A timeout that makes no sense.
            ReplidictError: The name is that of a semaphore.
            ClosedError, StorageError: The node has stopped.
        """
        seconds = seconds_for(blocking, timeout)
        begun = time.monotonic()
        if not self._mine.acquire(blocking, timeout):
            return False
        request = None
        try:
            left = seconds if seconds is None else max(seconds - (time.monotonic() - begun), 0.0)
            request = obtain(self._node, self._wanted, left if blocking else self._timeout, wait=blocking)
            if request is not None:
                self.held = Held(self._node, request)
        finally:
            if request is None:
                self._mine.release()
        return request is not None

    def release(self) -> None:
        """Give the lock back.

        That the next one may have it is waited for, for the dict's timeout at most; it is sent in any case.

        Raises:
            RuntimeError: It is not held.
            LockLost: It was lost before. It is not held any more, and can be acquired again.
        """
        held, self.held = self.held, None
        if held is None:
            raise RuntimeError(f"release of the lock {self.name!r}, which is not held")
        try:
            give_back(self._node, held._request, self._timeout)
        finally:
            self._mine.release()

    def locked(self) -> bool:
        """Whether anybody in the cluster holds it, as this node's copy says."""
        return is_taken(self._node, self._wanted)

    def __enter__(self) -> Held:
        if not self.acquire(timeout=self._timeout):
            raise not_obtained(self._node, self.name, self._timeout)
        assert self.held is not None
        return self.held

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.release()
        except (ReplidictError, RuntimeError):
            if kind is None:
                raise

    def __repr__(self) -> str:
        state, token = ("unlocked", "") if self.held is None else ("locked", f"token {self.held.token}, ")
        return f"<{state} replidict.Lock object {self.name!r}, {token}at {id(self):#x}>"


class _NotHeldError(RuntimeError, ValueError):
    """Released more often than acquired: a `RuntimeError` as for locks, a `ValueError` as in `threading`."""


class Semaphore:
    """A number of permits in the whole cluster, with the protocol of `threading.BoundedSemaphore`.

    One object may hold several permits. `with semaphore as held:` is as for `Lock`.

    Example:
        >>> with d.semaphore("downloads", 3) as held:  # doctest: +SKIP
        ...     download()
    """

    def __init__(self, node: Node, wanted: Wanted, timeout: float) -> None:
        self._node, self._wanted, self._timeout = node, wanted, timeout
        self._mutex = threading.Lock()
        self._all: list[tuple[int, Held]] = []  # (the thread that acquired it, what is held)

    @property
    def name(self) -> str:
        """The name, the same in the whole cluster."""
        return self._wanted.name

    @property
    def held(self) -> Held | None:
        """The permit acquired last by this thread, or by any if it has none."""
        with self._mutex:
            mine = self._find()
            return None if mine is None else self._all[mine][1]

    def _find(self) -> int | None:
        me = threading.get_ident()
        of_me = [number for number, (thread, _) in enumerate(self._all) if thread == me]
        return of_me[-1] if of_me else len(self._all) - 1 if self._all else None

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Wait for a permit, as `Lock.acquire` does for the lock; `timeout=None` waits for as long as it takes."""
        seconds = seconds_for(blocking, -1 if timeout is None else timeout)
        request = obtain(self._node, self._wanted, seconds if blocking else self._timeout, wait=blocking)
        if request is not None:
            with self._mutex:
                self._all.append((threading.get_ident(), Held(self._node, request)))
        return request is not None

    def release(self, n: int = 1) -> None:
        """Give `n` permits back, first those that this thread acquired.

        Raises:
            ValueError: This object does not hold so many (a `RuntimeError` as well), or `n` is below 1.
            LockLost: One was lost before. It is not held any more.
        """
        if n < 1:
            raise ValueError("n must be one or more")
        with self._mutex:
            if n > len(self._all):
                raise _NotHeldError(f"release of {n} permits of {self.name!r}, and {len(self._all)} are held")
            released = [self._all.pop(self._find() or 0)[1] for _ in range(n)]
        lost = None
        for held in released:
            try:
                give_back(self._node, held._request, self._timeout)
            except LockLost as error:
                lost = error
        if lost is not None:
            raise lost

    def locked(self) -> bool:
        """Whether no permit is free, as this node's copy says."""
        return is_taken(self._node, self._wanted)

    def __enter__(self) -> Held:
        if not self.acquire(timeout=self._timeout):
            raise not_obtained(self._node, self.name, self._timeout)
        held = self.held
        assert held is not None
        return held

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.release()
        except (ReplidictError, RuntimeError):
            if kind is None:
                raise

    def __repr__(self) -> str:
        held = f"{len(self._all)} of {self._wanted.permits} permits held here"
        return f"<replidict.Semaphore object {self.name!r}, {held}, at {id(self):#x}>"


def seconds_for(blocking: Any, timeout: float) -> float | None:
    """For how many seconds to wait; None: without an end. As in `threading`, with the same errors."""
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout == -1:
        return None
    if not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError("timeout value is too large")
    return timeout


def is_taken(node: Node, wanted: Wanted) -> bool:
    """Whether a lock is held, or all permits are, as a node's copy says."""

    def look(machine: StateMachine) -> bool:
        lock = machine.coordination.locks.by_name.get(wanted.name)
        return lock is not None and len(lock.holders) >= max(wanted.permits, 1)

    return node.call_and_wait(lambda: look(node.machine))


def not_obtained(node: Node, name: str, seconds: float) -> LockTimeout:
    """What is raised where a block can't be entered."""
    lock = node.machine.coordination.locks.by_name.get(name)
    held = "" if lock is None else "; ".join(f"{t.holder} {t.info}".strip() for t in list(lock.holders.values())[:3])
    why = f"it is held by {held}" if held else "no majority of the cluster could be reached in time"
    return LockTimeout(f"the lock {name!r} was not obtained within {rounded(seconds)} s: {why}. It is not held")

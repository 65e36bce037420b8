"""Locks and semaphores of the cluster, with the methods of those in `threading`, and fencing tokens."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from replidict.errors import LockLost, LockTimeout, NotCommitted, OutcomeUnknown, ReplidictError, waits_for_itself
from replidict.latch import Latch
from replidict.machine.state_machine import StateMachine
from replidict.monotonic_clock import clock
from replidict.node.blocking_calls import rounded
from replidict.node.lock_requests import Request, State, Wanted
from replidict.node.node import Node
from replidict.node.proposals import Write, result_of
from replidict.own_threads import in_node_thread


class Held:
    """A lock, or a permit of a semaphore, that this process holds.

    A write with `fence=held` is applied only if the lock is still held then, as the log says.
    """

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
        """The fencing token: larger than that of every earlier grant in the whole cluster."""
        return self._request.token

    @property
    def lost(self) -> threading.Event:
        """An event that is set once the lock must be assumed lost, whether or not the cluster can be reached."""
        return self._request.lost

    def check(self) -> None:
        """Return if nobody else can have been granted the lock yet; otherwise raise.

        The answer may be out of date when the next line of the program runs. Protect what others must not do meanwhile
        by a write with `fence=`, or by passing on the token.

        Raises:
            LockLost: The lock was lost, may have been lost, or was released.
        """
        self._node.locks.see_to(self._request)

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Have a function called once when the lock is lost; now, if it is. It is not called if the lock is released.

        Args:
            callback: It runs in a thread of its own, and may use the dict.
        """
        self._node.locks.tell_when_lost(self._request, callback)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, token {self.token}{', lost' if self.lost.is_set() else ''}>"


class Patience:
    """How one thread waits for a lock, and how another thread ends that wait."""

    def __init__(self) -> None:
        self._bell = threading.Lock()
        self._bell.acquire()
        self.over = False

    def ring(self) -> None:
        """Something has happened. For any thread."""
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it rings already

    def wait(self, node: Node, seconds: float | None) -> bool:
        """Wait until it rings, for `seconds` at most. Returns whether it rang and the wait was not ended."""
        return not self.over and node.wait(self._bell, True, -1 if seconds is None else seconds)

    def end(self) -> None:
        """End the wait."""
        self.over = True
        self.ring()


def obtain(
    node: Node, wanted: Wanted, seconds: float | None, *, wait: bool = True, patience: Patience | None = None
) -> Held | None:
    """Ask for a lock and wait until it is granted: see `obtaining`."""
    _refuse_in_node_thread(wanted.name)
    patience = patience or Patience()
    waits = obtaining(node, wanted, seconds, wait, patience.ring)
    try:
        left = next(waits)
        while True:
            left = waits.send(patience.wait(node, left))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        waits.close()  # it may have been interrupted (Ctrl-C)


def obtaining(
    node: Node, wanted: Wanted, seconds: float | None, wait: bool, ring: Callable[[], object]
) -> Generator[float | None, bool, Held | None]:
    """Ask for a lock and wait until it is granted, for `seconds` at most (None: for as long as it takes).

    It yields for how long to wait until something rings, and is sent whether there is any use in going on. It gives
    None if the lock was not granted, and this process is not in line any more; so it is, too, if this is closed before
    it has ended. Raises what has ended the node, and `ReplidictError` when the name is that of something else.
    """
    clock = node.engine.clock
    deadline = None if seconds is None else clock() + seconds
    while True:
        request = node.locks.ask(wanted, wait, ring)
        try:
            while request.state in (State.ASKED, State.WAITING):
                left = None if deadline is None else max(deadline - clock(), 0.0)
                if not (yield left):
                    node.locks.withdraw(request)
                    return None
            if request.state is State.HELD:
                return Held(node, request)
        except BaseException:
            node.locks.withdraw(request)
            raise
        if request.state is State.REFUSED:
            node.locks.withdraw(request)
            return None
        if request.error is not None:
            raise request.error
        # Its lease was lost on the way: it stands in line again, with another one, at the end.


def _refuse_in_node_thread(name: str) -> None:
    if in_node_thread():
        raise waits_for_itself(NotCommitted, f"the lock {name!r} was not asked for, and is not held")


def give_back(held: Held, seconds: float) -> None:
    """Give back what was held. Raises `LockLost` if it was lost before, and is not held either way.

    That others have it is waited for, for so many seconds at most, and not in the thread of a node: it is sent in any
    case.
    """
    done = Latch()
    write = send_back(held, done.set)
    if write is not None and done.wait(0.0 if in_node_thread() else seconds):
        check_given_back(held, write)


def send_back(held: Held, done: Callable[[], object]) -> Write | None:
    """Send the release of a lock; `done` is called when it is applied. Raises `LockLost` as `give_back` does.

    None: somebody else is just doing so.
    """
    locks, request = held._node.locks, held._request
    try:
        locks.see_to(request)
    except LockLost:
        locks.withdraw(request)
        raise
    write = locks.release(request, done)
    if write is None:
        locks.see_to(request)
    return write


def check_given_back(held: Held, write: Write) -> None:
    """Check the result of that write. Raises `LockLost` if there was nothing to release."""
    try:
        was_held = result_of(write)
    except OutcomeUnknown:
        return  # the node has stopped: its lease is given back as well, or ends
    if was_held is not True:
        raise LockLost(f"the lock {held.name!r} was lost: the log says that it is no longer held")


class Lock:
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
        self._node, self._wanted, self._timeout = node, wanted, timeout
        self._mine = threading.Lock()
        self._held: deque[Held] = deque(maxlen=1)  # whoever takes it out gives it back

    @property
    def name(self) -> str:
        """The name of the lock in the cluster."""
        return self._wanted.name

    @property
    def held(self) -> Held | None:
        """The `Held` after `acquire`; None if the lock is not held by this object."""
        try:
            return self._held[-1]
        except IndexError:
            return None

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
        _refuse_in_node_thread(self.name)
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
        held = self.held
        state, token = ("unlocked", "") if held is None else ("locked", f"token {held.token}, ")
        return f"<{state} replidict.Lock object {self.name!r}, {token}at {id(self):#x}>"


class NotHeldError(RuntimeError, ValueError):
    """A release of more than was acquired: a `RuntimeError` as for locks, a `ValueError` as in `threading`."""


class Semaphore:
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
        self._node, self._wanted, self._timeout = node, wanted, timeout
        self._all: dict[int, tuple[int, Held]] = {}  # by token: who acquired it, what is held

    @property
    def name(self) -> str:
        """The name of the semaphore in the cluster."""
        return self._wanted.name

    @property
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
    """The error for a `with` block that can't be entered."""
    lock = node.machine.coordination.locks.by_name.get(name)
    held = "" if lock is None else "; ".join(f"{t.holder} {t.info}".strip() for t in list(lock.holders.values())[:3])
    why = f"it is held by {held}" if held else "no majority of the cluster could be reached in time"
    return LockTimeout(f"the lock {name!r} was not obtained within {rounded(seconds)} s: {why}. It is not held")

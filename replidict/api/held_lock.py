"""`Held`: a lock that this process holds, and how it is released."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from replidict.errors import LockLost, OutcomeUnknown, ReplidictError
from replidict.latch import Latch
from replidict.node.lock_requests import Request
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


def is_held(held: Held | None) -> bool:
    """Whether something is held, and not lost."""
    if held is None:
        return False
    try:
        held.check()
    except ReplidictError:
        return False
    return True


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

"""How a thread or a coroutine asks for a lock and waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

from replidict.api.held_lock import Held
from replidict.errors import LockTimeout, NotCommitted, waits_for_itself
from replidict.machine.state_machine import StateMachine
from replidict.node.blocking_calls import rounded
from replidict.node.lock_requests import State, Wanted
from replidict.node.node import Node
from replidict.own_threads import in_node_thread


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
    refuse_in_node_thread(wanted.name)
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
        request = node.locks.request(wanted, ring)
        try:
            node.locks.ask(request, wanted, wait)
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


def refuse_in_node_thread(name: str) -> None:
    """Raise `NotCommitted` in a node's thread, which must not wait for a lock."""
    if in_node_thread():
        raise waits_for_itself(NotCommitted, f"the lock {name!r} was not asked for, and is not held")


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

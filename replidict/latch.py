"""`Latch`: a flag that threads wait for. Unlike `threading.Event`, it can be set in signal handlers and finalizers.

An `Event` has a lock inside, which is held for a moment by every thread that waits or sets. A signal handler or a
finalizer may interrupt a thread just then, and would wait for a lock that can't be released before it returns. Here
every step is one call into C, and no lock is held that another caller needs.
"""

from __future__ import annotations

import threading
from collections import deque


class Latch:
    """A flag that is set once, safe in any thread, signal handler or finalizer."""

    __slots__ = ("_waiting", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._waiting: deque[threading.Lock] = deque()  # each caller's own, released by `set`

    def set(self) -> None:
        """Set the flag and wake all waiting threads. Idempotent."""
        self.is_set = True  # before looking who waits: whoever comes later sees it
        while True:
            try:
                self._waiting.popleft().release()
            except IndexError:
                return

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, for `timeout` seconds at most. Returns whether it is set."""
        if self.is_set:
            return True
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        try:
            if not self.is_set:
                mine.acquire(timeout=-1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX))
        finally:
            try:
                self._waiting.remove(mine)
            except ValueError:
                pass  # `set` took it out
        return self.is_set


class SetOnce(threading.Event):
    """A `threading.Event` for programs to wait for. It is set once, and uses a `Latch` inside.

    A node's thread may set it while a thread is interrupted that waits for it, and a signal handler may do either.
    """

    def __init__(self) -> None:
        super().__init__()
        self._latch = Latch()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._latch.is_set

    def set(self) -> None:
        """Set it and wake all waiting threads. Idempotent."""
        self._latch.set()

    def clear(self) -> None:
        """Raise `RuntimeError`: what it tells of can't be undone."""
        raise RuntimeError("this event is set once and for all: it can't be cleared")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for `timeout` seconds at most. Returns whether it is set."""
        return self._latch.wait(timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {'set' if self.is_set() else 'not set'}>"

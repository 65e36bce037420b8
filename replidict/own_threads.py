"""How the threads of this package are started, recognized and joined.

Rules kept here:

1. The threads are daemons, and live until the package ends them, whatever becomes of the main thread. The executors of
   the standard library don't: they take no more work once the main thread has ended.
2. Starting and joining hold no lock that a signal handler or a finalizer in the same thread could need.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import call
from threading import get_ident

from replidict.forks import in_forked_child
from replidict.latch import Latch
from replidict.monotonic_clock import clock

OWN_THREADS = "replidict "
"""How their names begin."""

STACK_BYTES = 8 * 1024 * 1024
"""What their stacks may grow to, whatever `threading.stack_size` the program has chosen for its own threads: SQLite,
OpenSSL and a traceback need more than the smallest. It takes address space, and memory only as far as it is used."""

_FIRST_STEPS = 0.1
"""Seconds in which a thread that the system has made says so."""

_LAST_STEPS = 1.0
"""Seconds for which `join` waits until the interpreter, too, has taken note that a thread has ended."""

_idents: set[int] = set()
_stepping: set[int] = set()  # those of them in which nodes live


def _forget() -> None:
    _idents.clear()
    _stepping.clear()


in_forked_child(_forget)


def in_own_thread() -> bool:
    """Whether the caller runs in a thread of this package: of any open dict of this process."""
    return get_ident() in _idents


def in_node_thread() -> bool:
    """Whether the caller runs in the thread of a node of this process: that must wait for no node, because the other
    one may need this one to go on."""
    return get_ident() in _stepping


@contextmanager
def node_thread() -> Iterator[None]:
    """While this lasts the calling thread is that of a node."""
    ident = get_ident()
    _stepping.add(ident)
    try:
        yield
    finally:
        _stepping.discard(ident)


def _begins(thread: threading.Thread) -> bool:
    """Whether a thread has begun, or is just about to: whoever was interrupted while starting it can't know."""
    patience = clock() + _FIRST_STEPS
    while thread.ident is None and clock() < patience:
        time.sleep(0.001)
    return thread.ident is not None


class OwnThread:
    """One thread of this package."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._to_start = deque([self._thread])  # whoever takes it out starts it
        self._over = Latch()

    def start(self) -> None:
        """Begin, unless it was begun. Raises `RuntimeError` if the system has no thread left; try again then."""
        taken: deque[threading.Thread] = deque()
        try:
            if not self._to_start:
                return
            taken.extend(map(call, [self._to_start.pop]))  # one call into C, so that no signal comes between
            before = threading.stack_size()
            try:
                threading.stack_size(STACK_BYTES)
                taken[0].start()
            finally:
                threading.stack_size(before)
        except IndexError:
            return  # another thread has taken it
        except BaseException as error:  # also one that a signal handler raises, somewhere in between
            if taken and (isinstance(error, RuntimeError) or not _begins(taken[0])):
                self._to_start.extend(taken)
            raise

    @property
    def begun(self) -> bool:
        """Whether it was begun."""
        return not self._to_start

    def _run(self) -> None:
        ident = get_ident()
        _idents.add(ident)
        try:
            self._target()
        finally:
            _idents.discard(ident)
            self._over.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, for `timeout` seconds at most, if it was begun. Returns whether it has ended."""
        if self._to_start:
            return True
        if not self._over.wait(timeout):
            return False
        # `Thread.join` takes locks that an interrupted caller of it holds; these few steps end by themselves.
        patience = clock() + _LAST_STEPS
        while self._thread.is_alive() and clock() < patience:
            time.sleep(0.0001)
        return True

"""Threads for work that may wait: made when they are needed, few, and gone when there is nothing to do."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

IDLE = 5.0  # seconds after which a thread without work ends


class Workers:
    """So many threads at most, for one kind of work. For any thread."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._most = name, threads
        self._state = threading.Condition()
        self._work: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    def put(self, key: Hashable, work: Callable[[], None]) -> bool:
        """Have something done, which must not raise. False if there is no thread to do it, and none can be made."""
        with self._state:
            if self._closed:
                return False
            self._work[key] = work
            if self._idle >= len(self._work):
                self._state.notify()
            elif len(self._threads) < self._most:
                # A daemon, so that what somebody waits for can't keep the program from ending.
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.add(thread)
                try:
                    thread.start()
                except RuntimeError:  # the system has no more
                    self._threads.discard(thread)
                    if not self._threads:
                        self._work.clear()
                        return False
            return True

    def withdraw(self, key: Hashable) -> bool:
        """Whether what was put under this key had not begun, and won't."""
        with self._state:
            return self._work.pop(key, None) is not None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            work()
            del work  # or it is kept alive until there is more

    def _next(self) -> Callable[[], None] | None:
        with self._state:
            while not self._work and not self._closed:
                self._idle += 1
                woken = self._state.wait(IDLE)
                self._idle -= 1
                if not woken and not self._work:
                    break
            if self._work:
                return self._work.popitem(last=False)[1]
            self._threads.discard(threading.current_thread())
            return None

    def close(self) -> None:
        """Begin nothing more."""
        with self._state:
            self._closed = True
            self._work.clear()
            self._state.notify_all()

    def join(self) -> None:
        """Wait for what is under way."""
        with self._state:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

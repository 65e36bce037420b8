"""A small pool of threads for work that may block; they are started when needed and end when idle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from queue import Empty, SimpleQueue

from replidict.own_threads import OwnThread

IDLE = 5.0  # seconds after which a thread without work ends


class Workers:
    """A limited number of threads for one kind of work. For any thread; nothing here holds a lock."""

    def __init__(self, name: str, threads: int) -> None:
        self._name = name
        self._free = list(range(threads))  # places for threads that do not run
        self._work: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()
        self._signals: SimpleQueue[None] = SimpleQueue()  # one for each that was put
        self._threads: dict[int, OwnThread] = {}
        self._idle: set[int] = set()
        self._closed = False

    def put(self, key: Hashable, work: Callable[[], None]) -> bool:
        """Have something done, which must not raise. False if there is no thread to do it, and none can be made."""
        if self._closed:
            return False
        self._work[key] = work
        self._signals.put(None)
        if self._closed or (len(self._idle) < len(self._work) and not self._start() and not self._threads):
            return not self.withdraw(key)
        return True

    def _start(self) -> bool:
        """Start another thread, if the limit allows. False if the system can't start one."""
        try:
            place = self._free.pop()
        except IndexError:
            return True
        # They are daemons, so that what somebody waits for can't keep the program from ending.
        thread = self._threads[place] = OwnThread(lambda: self._run(place), self._name)
        try:
            thread.start()
        except RuntimeError:
            self._leave(place)
            return False
        except BaseException:  # of a signal handler
            if not thread.begun:
                self._leave(place)
            raise
        return True

    def _leave(self, place: int) -> None:
        del self._threads[place]
        self._free.append(place)

    def withdraw(self, key: Hashable) -> bool:
        """Whether what was put under this key had not begun, and won't."""
        return self._work.pop(key, None) is not None

    def _run(self, place: int) -> None:
        while (work := self._next(place)) is not None:
            work()
            del work  # or it is kept alive until there is more
        self._leave(place)
        if self._work and not self._closed:  # looked at after leaving: `put` may have counted on this thread
            self._start()

    def _next(self, place: int) -> Callable[[], None] | None:
        while not self._closed:
            self._idle.add(place)
            try:
                self._signals.get(timeout=IDLE)
            except Empty:
                return None
            finally:
                self._idle.discard(place)
            try:
                return self._work.popitem(last=False)[1]
            except KeyError:
                pass  # withdrawn
        return None

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True
        self._work.clear()
        for _ in range(len(self._threads)):
            self._signals.put(None)

    def join(self) -> None:
        """Wait for what is under way."""
        for thread in list(self._threads.values()):
            thread.join()

"""Simulated time: a heap of events, and the trace of those that happened.

Rules kept here:

1. What is due at the same moment happens in the order it was asked for. Nothing else decides, so a run is a function
   of its seed.
2. Whatever can be seen from outside (messages, commits, faults, answers) goes into the trace, whose digest is the run's
   identity: two runs with equal digests were equal to the byte.
"""

from __future__ import annotations

import hashlib
import heapq
import struct
from collections import deque
from collections.abc import Callable

_pack_time = struct.Struct("d").pack


class Timer:
    """A scheduled event; `cancel` removes it."""

    __slots__ = ("action", "time")

    def __init__(self, time: float, action: Callable[[], None]) -> None:
        self.time = time
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Have it not happen."""
        self.action = None


class Loop:
    """The true time of a simulation, which no node ever sees."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._order = 0
        self._heap: list[tuple[float, int, Timer]] = []

    def at(self, time: float, action: Callable[[], None]) -> Timer:
        """Have something done at a time; not before now."""
        timer = Timer(max(time, self.now), action)
        self._order += 1
        heapq.heappush(self._heap, (timer.time, self._order, timer))
        return timer

    def after(self, delay: float, action: Callable[[], None]) -> Timer:
        """Have something done in `delay` seconds."""
        return self.at(self.now + delay, action)

    def run_until(self, end: float, enough: Callable[[], bool] | None = None) -> None:
        """Go on to `end`, or until `enough` says so after an event."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            time, _, timer = heapq.heappop(heap)
            action, timer.action = timer.action, None
            if action is not None:
                self.now = time
                self.events += 1
                action()
                if enough is not None and enough():
                    return
        self.now = max(self.now, end)


class Trace:
    """The trace of a run: a digest of all events, and the last of them in words."""

    def __init__(self, loop: Loop, keep: int | None = 400, *, shows_messages: bool = True) -> None:
        self._loop = loop
        self._hash = hashlib.blake2b(digest_size=16)
        self._lines: deque[tuple[float, str, str, object]] = deque(maxlen=keep)
        self._shows_messages = shows_messages

    def note(self, who: str, what: str, detail: object = "") -> None:
        """Note an event. `detail` is shown by `str`; it must not change afterwards."""
        now = self._loop.now
        self._hash.update(b"%b %b %b %b\n" % (_pack_time(now), who.encode(), what.encode(), str(detail).encode()))
        self._lines.append((now, who, what, detail))

    def message(self, who: str, what: str, data: bytes, detail: object) -> None:
        """A message went by; its bytes count for the digest, `detail` is shown, if any is."""
        now = self._loop.now
        self._hash.update(b"%b %b %b " % (_pack_time(now), who.encode(), what.encode()))
        self._hash.update(data)
        if self._shows_messages:
            self._lines.append((now, who, what, detail))

    def digest(self) -> str:
        """Stands for all that happened."""
        return self._hash.hexdigest()

    def lines(self) -> list[str]:
        """The last lines, readable."""
        shown = []
        for time, who, what, detail in self._lines:
            text = str(detail)
            shown.append(f"{time:10.5f} {who:<12} {what:<10} {text if len(text) < 300 else text[:300] + '...'}")
        return shown

"""Statistics of a node's last minutes for the status page: writes, their latencies, and elections.

Rules kept here:

1. While nobody looks, a step costs one comparison, and a batch of writes one count.
2. Only the node's thread writes. Any thread may read: it copies what it needs by single calls into C.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import frexp, ldexp

INTERVAL = 2.0
"""Seconds that are counted together."""

INTERVALS = 150
"""How many of them are remembered: five minutes."""

ELECTIONS = 8
"""How many of the last elections are remembered."""

_STEPS = 16  # of duration in each doubling: a percentile is right to 5 %


@dataclass(frozen=True)
class Counted:
    """What happened in one interval."""

    ago: int
    """How many intervals ago: 0 is the one that goes on."""

    writes: int
    """Commands that changed the dict, from all nodes, as they were applied here."""

    p50: float | None
    """Seconds that half of the writes of this node's own clients took; None if there were none."""

    p99: float | None
    """Seconds that 99 in 100 of them took."""


@dataclass(frozen=True)
class Election:
    """A leader that this node heard of."""

    term: int
    address: str
    ago: float
    """Seconds since then."""


@dataclass(frozen=True)
class Recent:
    """The last minutes of a node."""

    interval: float
    """Seconds of one interval."""

    intervals: int
    """How many of them are remembered."""

    counted: tuple[Counted, ...]
    """Those in which something happened, the oldest first."""

    elections: tuple[Election, ...]
    """The last ones, the newest first."""


class _Interval:
    """One interval: how far the dict was before and after, and how many writes took how long."""

    __slots__ = ("after", "before", "number", "took")

    def __init__(self, number: int, revision: int) -> None:
        self.number = number
        self.before = self.after = revision
        self.took: dict[int, int] = {}


class Activity:
    """The counts of one node."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._revision = 0
        self._led: tuple[int, str | None] = (0, None)
        self._intervals: deque[_Interval] = deque(maxlen=INTERVALS)
        self._elections: deque[tuple[int, str, float]] = deque(maxlen=ELECTIONS)

    def begin_at(self, revision: int) -> None:
        """Go on from a state that came as a whole, or was there before."""
        self._revision = revision

    def look(self, revision: int, term: int, leader: str | None) -> None:
        """Note the dict's revision and the leader, after each step."""
        if revision != self._revision:
            self._current().after = revision
            self._revision = revision
        if leader != self._led[1] or term != self._led[0]:
            self._led = (term, leader)
            if leader is not None:
                self._elections.append((term, leader, self._clock()))

    def count(self, writes: int, since: float) -> None:
        """So many writes of this node's clients are answered; the first of them was queued at this time."""
        took = self._current().took
        step = _step(self._clock() - since)
        took[step] = took.get(step, 0) + writes

    def _current(self) -> _Interval:
        number = int(self._clock() / INTERVAL)
        if not self._intervals or self._intervals[-1].number != number:
            self._intervals.append(_Interval(number, self._revision))
        return self._intervals[-1]

    def recent(self) -> Recent:
        """The last minutes; for any thread."""
        now = self._clock()
        number = int(now / INTERVAL)
        counted = []
        for each in self._intervals.copy():
            took = each.took.copy()
            if number - each.number < INTERVALS:
                p50, p99 = _percentile(took, 0.5), _percentile(took, 0.99)
                counted.append(Counted(max(number - each.number, 0), each.after - each.before, p50, p99))
        elections = [Election(term, address, max(now - at, 0.0)) for term, address, at in self._elections.copy()]
        return Recent(INTERVAL, INTERVALS, tuple(counted), tuple(reversed(elections)))


def _step(seconds: float) -> int:
    share, doublings = frexp(seconds or 1e-6)  # seconds = share * 2 ** doublings, and share is from a half to one
    return _STEPS * doublings + int(2 * _STEPS * share) - _STEPS


def _percentile(took: dict[int, int], share: float) -> float | None:
    """The time within which this share of the writes was answered."""
    left = share * sum(took.values())
    for step in sorted(took):
        left -= took[step]
        if left <= 0:
            doublings, part = divmod(step, _STEPS)
            return ldexp((_STEPS + part + 0.5) / (2 * _STEPS), doublings)
    return None

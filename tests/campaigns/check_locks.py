"""Locks: one holder at a time, by its own checks; fences that hold; the next one in time. Pure; all times are those of
one clock, in seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

Window = tuple[float, float, frozenset[int]]
"""From when to when a fault lasted, and which processes it befell."""

AFTER_DEATH = 2.0  # seconds after its ttl within which the next one has the lock of a holder that died
ELECTION = 3.0  # seconds that each other fault meanwhile may cost


@dataclass
class Hold:
    """A lock that was acquired, and what its holder found."""

    name: str
    token: int
    pid: int
    wanted: float
    granted: float
    """When the holder was told."""
    passed: list[float] = field(default_factory=list)
    """Before each check that passed."""
    released: float | None = None
    """Before the release, if that succeeded."""

    @property
    def sure_until(self) -> float | None:
        """Up to when it surely held the lock; None: no check passed."""
        return max(self.passed, default=None)


@dataclass(frozen=True)
class Wait:
    """A request that waited for a lock, whatever came of it."""

    name: str
    pid: int
    since: float
    until: float


def check_holders(holds: Iterable[Hold]) -> list[str]:
    """No two holders of a lock whose checks passed overlap, and later ones have larger tokens."""
    wrong: list[str] = []
    by_name: defaultdict[str, list[Hold]] = defaultdict(list)
    tokens: dict[int, Hold] = {}
    for hold in holds:
        if (other := tokens.setdefault(hold.token, hold)) is not hold:
            wrong.append(f"{hold.name} and {other.name} were both granted with the token {hold.token}")
        if hold.sure_until is not None:
            by_name[hold.name].append(hold)
    for name, held in by_name.items():
        held.sort(key=lambda hold: hold.token)
        latest = held[0]
        for one, other in pairwise(held):
            latest = max(latest, one, key=lambda hold: hold.sure_until or 0.0)
            assert latest.sure_until is not None
            if other.granted <= latest.sure_until:
                wrong.append(
                    f"{name}: process {latest.pid} with the token {latest.token} had a check pass at "
                    f"{latest.sure_until:.6f}, and process {other.pid} with the token {other.token} was told at "
                    f"{other.granted:.6f} that it has it"
                )
    return wrong


def check_fences(writes: Mapping[int, tuple[str, int]]) -> list[str]:
    """In the order of the log, no fenced write comes after one with a larger token. `writes`: name and token, by
    revision."""
    wrong, largest = [], dict[str, int]()
    for revision in sorted(writes):
        name, token = writes[revision]
        if token < largest.get(name, 0):
            wrong.append(f"{name}: revision {revision} was written with the token {token}, after {largest[name]}")
        largest[name] = max(token, largest.get(name, 0))
    return wrong


class Succession:
    """Who had each lock after whom."""

    def __init__(self, holds: Sequence[Hold], waits: Iterable[Wait], windows: Sequence[Window]) -> None:
        self._windows = windows
        self._waits: defaultdict[str, list[Wait]] = defaultdict(list)
        for wait in waits:
            self._waits[wait.name].append(wait)
        self._holds: defaultdict[str, list[Hold]] = defaultdict(list)
        for hold in sorted(holds, key=lambda hold: hold.token):
            self._holds[hold.name].append(hold)

    def _next(self) -> Iterable[tuple[Hold, Hold | None]]:
        for held in self._holds.values():
            yield from zip(held, [*held[1:], None], strict=True)

    def _waited(self, name: str, since: float, until: float) -> bool:
        """Whether a process that nothing befell waited for this lock all the time."""
        return any(
            wait.since < since and wait.until > until and not self._faults(since, until, wait.pid)
            for wait in self._waits[name]
        )

    def _faults(self, since: float, until: float, pid: int | None = None) -> int:
        """How many faults there were then, of this process or of any."""
        return sum(begin < until and end > since and (pid is None or pid in pids) for begin, end, pids in self._windows)

    def after_release(self) -> list[float]:
        """Seconds from a release until the next one, which waited, was told; without those that a fault touched."""
        return [
            then.granted - hold.released
            for hold, then in self._next()
            if hold.released is not None
            and then is not None
            and then.wanted < hold.released
            and not self._faults(hold.released - ELECTION, then.granted)
        ]

    def after_death(self, deaths: Mapping[int, float], ttl: float) -> tuple[list[float], list[str]]:
        """Seconds from the death of a holder until the next one was told, and what took too long though somebody
        waited."""
        took, wrong = [], []
        for hold, then in self._next():
            died = deaths.get(hold.pid)
            if died is None or hold.released is not None or (hold.sure_until or 0.0) < died - 1.0:
                continue
            limit = died + ttl + AFTER_DEATH
            limit += ELECTION * max(self._faults(died, limit) - 1, 0)
            granted = inf if then is None else then.granted
            if then is not None:
                took.append(granted - died)
            if granted > limit and self._waited(hold.name, died, limit):
                wrong.append(
                    f"{hold.name}: its holder, process {hold.pid}, died at {died:.3f}, and the next one was told "
                    f"{granted - died:.2f} s later, with a ttl of {ttl:g} s"
                )
        return took, wrong

"""When keys with a ttl, and leases, went: never early, never late, never without a reason. Pure; all times are those of
one clock, in seconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

LATE_AT_MOST = 0.5  # seconds after its ttl within which a key goes, while there is a leader
NEAR = 3.0  # seconds after a kill or pause of the leader: what is due then is told apart


@dataclass(frozen=True)
class Stored:
    """A key that was stored with a ttl."""

    key: str
    ttl: float
    call: float
    """Before the call."""
    ret: float | None
    """When it was acknowledged; None: it was not."""


@dataclass(frozen=True)
class Granted:
    """A lease, with a key that is attached to it."""

    key: str
    ttl: float
    call: float
    died: float | None
    """When its process was still alive just before its end; None: it lived as long as anybody looked."""


@dataclass
class Expired:
    """What the keys with a ttl did."""

    violations: list[str] = field(default_factory=list)
    early: float = inf
    """By how many seconds the one that went first outlived its ttl."""
    late: list[float] = field(default_factory=list)
    """Seconds after their ttl, of those that nothing disturbed."""
    late_disturbed: list[float] = field(default_factory=list)
    """The same, of those that a kill or a pause of the leader may have held up."""


Leaderless = Callable[[float, float], float]
"""For how many seconds at a time there was no leader between two moments, at most."""


def disturbed(due: float, disturbances: Sequence[float]) -> bool:
    """Whether the leader was killed or paused shortly before this was due."""
    at = bisect_right(disturbances, due + LATE_AT_MOST) - 1
    return at >= 0 and disturbances[at] > due - NEAR


def is_late(due: float, went: float | None, looked_until: float, leaderless: Leaderless) -> bool:
    """Whether what was due went later than allowed, or never although somebody looked."""
    end = looked_until if went is None else went
    return end > due + LATE_AT_MOST + leaderless(due, end)


def check_keys(
    stored: Iterable[Stored],
    gone: Mapping[str, float],
    disturbances: Sequence[float],
    looked_until: float,
    leaderless: Leaderless,
    *,
    late_allowed: bool = False,
) -> Expired:
    """Each key went no sooner than its ttl after the call, and in time. `gone` says when the first watcher saw it."""
    found = Expired()
    for each in stored:
        went = gone.get(each.key)
        if went is not None:
            found.early = min(found.early, went - each.call - each.ttl)
            if went < each.call + each.ttl:
                found.violations.append(
                    f"{each.key} with a ttl of {each.ttl:g} s went {went - each.call:.3f} s after it was asked for"
                )
        if each.ret is None:
            continue
        due = each.ret + each.ttl
        near = disturbed(due, disturbances)
        if went is not None:
            (found.late_disturbed if near else found.late).append(went - due)
        if is_late(due, went, looked_until, leaderless) and (went is None or not late_allowed):
            when = "never went" if went is None else f"went {went - due:.2f} s late"
            without = leaderless(due, looked_until if went is None else went)
            found.violations.append(
                f"{each.key} with a ttl of {each.ttl:g} s {when}, of which {without:.2f} s had no leader"
            )
    return found


def check_leases(
    leases: Iterable[Granted],
    gone: Mapping[str, float],
    lost: Iterable[str],
    looked_until: float,
    leaderless: Leaderless,
    *,
    late_allowed: bool = False,
) -> list[str]:
    """No lease ends while its process lives, and each ends in time after its death."""
    wrong = []
    living_lost = set(lost)
    for each in leases:
        went, died = gone.get(each.key), each.died
        if each.key in living_lost:
            wrong.append(f"the holder of {each.key} was told that it is lost")
        if died is None or (went is not None and went < died):
            if went is not None:
                wrong.append(
                    f"{each.key} went, {went - each.call:.2f} s after its lease was granted, though its holder lived"
                )
            continue
        if is_late(died + each.ttl, went, looked_until, leaderless) and (went is None or not late_allowed):
            when = "never went" if went is None else f"went {went - died:.2f} s after"
            wrong.append(f"{each.key} of a lease of {each.ttl:g} s {when} its holder's death")
    return wrong


def check_kept(kept: Mapping[str, int], gone: Mapping[str, int]) -> list[str]:
    """What was made permanent stays. Both say at which revision, and a key may go before it is made permanent."""
    return [
        f"{key} was made permanent at revision {revision}, and went at {gone[key]}"
        for key, revision in kept.items()
        if gone.get(key, 0) > revision
    ]

"""When keys with a ttl, and leases, went: never early, never late, never without a reason. Pure; all times are those of
one clock, in seconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

UNDISTURBED = 0.5  # seconds after its ttl within which a key goes
DISTURBED = 3.0  # seconds after a leader's kill, or pause, within which what was due goes


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


@dataclass(frozen=True)
class Disturbance:
    """A kill or a pause of the leader."""

    at: float
    served: float
    """When a write was acknowledged that was asked for after it: there is a leader again."""

    def limit(self) -> float:
        """By when all that was due meanwhile has gone."""
        return max(self.at + DISTURBED, self.served + UNDISTURBED)


def held_up(due: float, disturbances: Sequence[Disturbance]) -> Disturbance | None:
    """The last disturbance that may hold up what is due now; None: nothing does."""
    at = bisect_right(disturbances, due + UNDISTURBED, key=lambda each: each.at) - 1
    return disturbances[at] if at >= 0 and disturbances[at].limit() > due else None


def limit_of(due: float, disturbance: Disturbance | None) -> float:
    """By when what is due now has gone."""
    return max(due + UNDISTURBED, disturbance.limit() if disturbance is not None else 0.0)


def check_keys(
    stored: Iterable[Stored],
    gone: Mapping[str, float],
    disturbances: Sequence[Disturbance],
    looked_until: float,
    *,
    late_allowed: bool = False,
    busy: Callable[[float, float], float] = lambda since, until: 0.0,
) -> Expired:
    """Each key went no sooner than its ttl after the call, and in time. `gone` says when the first watcher saw it;
    `busy`, by how many seconds the machine was late between two moments."""
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
        disturbance = held_up(due, disturbances)
        limit = limit_of(due, disturbance)
        if went is not None:
            (found.late if disturbance is None else found.late_disturbed).append(went - due)
        if (inf if went is None else went) > limit and (went is None or not late_allowed) and looked_until > limit:
            why = (
                "nothing disturbed"
                if disturbance is None
                else f"killed or paused {due - disturbance.at:.2f} s before it was due"
            )
            when = (
                "never went"
                if went is None
                else f"went {went - due:.2f} s late, the machine {busy(due, went) * 1e3:.0f} ms"
            )
            found.violations.append(f"{each.key} with a ttl of {each.ttl:g} s {when} (the leader: {why})")
    return found


def check_leases(
    leases: Iterable[Granted],
    gone: Mapping[str, float],
    lost: Iterable[str],
    disturbances: Sequence[Disturbance],
    looked_until: float,
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
        due = died + each.ttl
        disturbance = held_up(due, disturbances)
        limit = limit_of(due, disturbance)
        if (inf if went is None else went) > limit and (went is None or not late_allowed) and looked_until > limit:
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

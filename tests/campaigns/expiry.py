"""Expiry: keys with a ttl and leases on every node, while leaders are killed every two seconds, and paused.

It begins without a fault; then leaders are killed; then they are paused for three seconds; then one node has two busy
loops, while leaders are killed. A violation is a key that goes before its ttl is over, counted from before the call, or
later than half a second after it while there is a leader; a lease that ends though its
process lives, or does not end in time after its death; a key that was made permanent, and goes.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from replidict import LeaseLost
from tests.campaigns.account import Account, distribution
from tests.campaigns.check_expiry import NEAR, Granted, Leaderless, Stored, check_kept, check_keys, check_leases
from tests.campaigns.faults import Busyness, longest_gap
from tests.campaigns.run import WORK, campaign_of, finish
from tests.campaigns.work import Journals, Work, read
from tests.processes import Process, leader

TTLS = (0.5, 1.0, 3.0, 6.0)
LEASE_TTL = 10.0  # the default
EVERY = 2.0  # seconds between two kills
PAUSED = 3.0
THREADS = 2  # that store keys, in each process
PAUSE = 0.1  # seconds between two keys of one thread, on average

# -- in the process of a node ---------------------------------------------------------------------------------------


def loops(work: Work, ttls: list[float]) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """Threads that store keys, one that has leases, and a watch of everything."""
    watch = work.d.watch()
    return (
        [partial(store, work, number, ttls) for number in range(THREADS)],
        [partial(hold, work), partial(work.follow, "everything", watch)],
    )


def store(work: Work, number: int, ttls: list[float]) -> None:
    """Keys with a ttl, each of its own; some are made permanent before it is over."""
    d, rng, count = work.d, work.rng, 0
    while not work.stopping.is_set():
        work.pause(PAUSE)
        count += 1
        key, ttl = f"t {work.name}.{number}.{count}", rng.choice(ttls)
        kept = ttl > 2 and rng.random() < 0.1
        kind = "keep" if kept else "store"
        told = work.call(kind, {"key": key, "ttl": ttl}, d.set, key, count, ttl=ttl, timeout=5)
        if kept and told.error is None:
            work.call("make permanent", {"key": key}, d.set, key, count, timeout=1)


def hold(work: Work) -> None:
    """A lease with a key, as long as this process lives; and whether it is lost."""
    key = f"l {work.name}"
    lease = None
    while lease is None and not work.stopping.is_set():
        try:
            lease = work.d.lease(LEASE_TTL)
            work.call("lease", {"key": key, "ttl": LEASE_TTL}, work.d.set, key, 1, lease=lease)
        except Exception as error:  # noqa: BLE001 -- a node that has just been opened may have no leader yet
            work.journal.note("no lease", error=str(error))
    while lease is not None and not work.over.is_set():
        try:
            lease.check()
        except LeaseLost as error:
            work.journal.note("lost", key=key, error=str(error))
            break
        work.over.wait(0.05)


# -- the campaign ---------------------------------------------------------------------------------------------------


class Disturbances:
    """Kills and pauses of the leader, and when they were."""

    def __init__(self, nodes: list[Process], paused: float, say: Callable[[str], None]) -> None:
        self._nodes, self._paused, self._say = nodes, paused, say
        self.start = time.monotonic()
        self.deaths: dict[int, float] = {}
        self.times: list[float] = []
        self.kills: list[float] = []
        self.pauses = 0
        self.hogs = 0

    def kill(self) -> None:
        """Kill the leader, and have it back before the next one."""
        victim = leader(self._nodes)
        at = time.monotonic()
        self.deaths[victim.pid] = at
        self.times.append(at)
        self.kills.append(at)
        victim.kill()
        victim.start(wait=False)
        self._say(f"{at - self.start:6.1f} s  killed the leader, {victim.path.name}")
        victim.do("wait_ready", 30)
        time.sleep(max(at + EVERY - time.monotonic(), 0.0))

    def pause(self) -> None:
        """Stop the leader's process for a while."""
        victim = leader(self._nodes)
        self.times.append(time.monotonic())
        self.pauses += 1
        self._say(f"{time.monotonic() - self.start:6.1f} s  paused the leader, {victim.path.name}")
        victim.pause()
        time.sleep(self._paused)
        victim.resume()
        # What its process does then may be held up by another election.
        self.times.append(time.monotonic())
        time.sleep(self._paused)

    def hog(self, seconds: float) -> None:
        """Have a follower's process run two busy loops, while leaders are killed."""
        hogged = next(node for node in self._nodes if node is not leader(self._nodes))
        self._say(f"{time.monotonic() - self.start:6.1f} s  two busy loops in {hogged.path.name}")
        hogged.do("run", WORK, "hog", 2, seconds)
        self.hogs += 1
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if leader(self._nodes) is hogged:
                self.times.append(time.monotonic())
                hogged.call("transfer_leadership")  # it is not to be killed: its holder is to live
            else:
                self.kill()

    def between_kills(self) -> float:
        """The median of the time between two kills that follow each other."""
        gaps = [b - a for a, b in zip(self.kills, self.kills[1:], strict=False)]
        return round(median(gaps), 2) if gaps else 0.0


def run(
    root: Path,
    *,
    seconds: float,
    say: Callable[[str], None] = lambda line: None,
    ttls: tuple[float, ...] = TTLS,
    paused: float = PAUSED,
    late_allowed: bool = False,
) -> dict[str, Any]:
    """One campaign: the summary. What is late counts as a violation unless that is allowed."""
    account, journals = Account(), root / "journals"
    with ExitStack() as stack:
        busy = stack.enter_context(Busyness())
        nodes = stack.enter_context(campaign_of("tests.campaigns.expiry", root, journals, work={"ttls": ttls}))
        disturbances = Disturbances(nodes, paused, say)
        start = disturbances.start
        time.sleep(0.2 * seconds)
        while time.monotonic() < start + 0.6 * seconds:
            disturbances.kill()
        while time.monotonic() < start + 0.8 * seconds:
            disturbances.pause()
        disturbances.hog(0.2 * seconds)
        elapsed = time.monotonic() - start
        finish(nodes, account, settle=max(ttls) + 2.0)
    noted = read(journals)
    figures = checked(account, noted, disturbances, late_allowed)
    return {
        "seconds": round(elapsed, 1),
        **figures,
        "kills of the leader": len(disturbances.kills),
        "seconds between two kills, median": disturbances.between_kills(),
        "pauses of the leader": disturbances.pauses,
        "times with busy loops": disturbances.hogs,
        "errors": noted.errors(),
        "machine": busy.summary(),
        "violations": account.violations[:20],
    }


def without_leader(noted: Journals) -> Leaderless:
    """How long nothing was acknowledged to anybody: while there is a leader, something always is."""
    moments = sorted(call.ret for call in noted.calls if call.ok and call.ret is not None)

    def longest(since: float, until: float) -> float:
        inside = moments[bisect_left(moments, since) : bisect_right(moments, until)]
        return longest_gap(since, [*inside, until])

    return longest


def checked(account: Account, noted: Journals, disturbances: Disturbances, late_allowed: bool) -> dict[str, Any]:
    """All checks; what is found goes to the account, and figures are returned."""
    gone: dict[str, float] = {}
    gone_at: dict[str, int] = {}
    for note in noted.notes:
        for kind, key, *_ in note.what["events"] if note.kind == "told" else ():
            if kind == "expire":
                gone.setdefault(key, note.at)
                gone_at[key] = note.what["revision"]
    stored = [
        Stored(call.what["key"], call.what["ttl"], call.call, call.ret if call.ok else None)
        for call in noted.of("store")
        if not call.surely_not
    ]
    leases = [
        Granted(call.what["key"], call.what["ttl"], call.call, disturbances.deaths.get(call.pid))
        for call in noted.of("lease")
        if call.ok
    ]
    lost = [note.what["key"] for note in noted.notes if note.kind == "lost"]
    looked_until = max((note.at for note in noted.notes if note.kind == "read"), default=0.0)
    leaderless = without_leader(noted)
    found = check_keys(stored, gone, disturbances.times, looked_until, leaderless, late_allowed=late_allowed)
    account.violations += found.violations + noted.broken()
    account.violations += check_leases(leases, gone, lost, looked_until, leaderless, late_allowed=late_allowed)
    permanent = {call.what["key"]: call.value for call in noted.of("make permanent") if call.ok}
    account.violations += check_kept(permanent, gone_at)
    return {
        "keys with a ttl": len(stored),
        "went": len(gone),
        "earliest, ms after its ttl": round(found.early * 1e3, 2),
        "late, undisturbed": distribution(found.late),
        "late, near a kill or a pause of the leader": distribution(found.late_disturbed),
        "longest without any acknowledged write, near a kill or a pause": distribution(
            leaderless(at, at + NEAR) for at in disturbances.times
        ),
        "leases": len(leases),
        "leases whose holder lived to the end": sum(each.died is None for each in leases),
        "made permanent": len(permanent),
    }

"""Locks: holders of three locks on every node, which are killed, stopped for longer than the ttl, and cut off.

Each holder checks, and writes with its fence whatever the check says. A violation is two holders whose checks passed at
one time; a fenced write that comes after one of a later holder; a lock that the next in line does not have within its
ttl and two seconds after its holder's death; a lock, a waiter or a lease that is left at the end. How long a release
takes to reach the next in line is reported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from replidict import LockLost, ReplicatedDict
from replidict.api.lock import Lock
from tests.campaigns.account import Account, distribution
from tests.campaigns.check_locks import Hold, Succession, Wait, check_fences, check_holders
from tests.campaigns.faults import Busyness, Faults, Trouble
from tests.campaigns.run import campaign_of, finish
from tests.campaigns.work import Journals, Work, read
from tests.clusters import wait_until
from tests.processes import Network, Process

NAMES = ("red", "green", "blue")
TTL = 2.0
THREADS = 2  # that want locks, in each process
STEP = 0.01  # seconds between two checks of a holder
FENCED = "fenced "
FAULTS = (
    "kill one", "kill the leader", "pause one", "pause the leader", "cut off one", "cut off the leader",
    "one hears nothing", "the leader is not heard",
)  # fmt: skip

# -- in the process of a node ---------------------------------------------------------------------------------------


def loops(work: Work, ttl: float) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """Threads that want locks, and a watch of what is written with fences."""
    watch = work.d.watch(prefix=FENCED)
    return [partial(hold_locks, work, ttl)] * THREADS, [partial(work.follow, "fenced", watch)]


def hold_locks(work: Work, ttl: float) -> None:
    """Acquire one lock after the other, hold it for a while, and release it."""
    while not work.stopping.is_set():
        lock = work.d.lock(work.rng.choice(NAMES), ttl=ttl)
        told = work.call("acquire", {"lock": lock.name}, acquire, lock, 4 * ttl)
        if told.value is not None:
            hold(work, lock, told.value, work.rng.choice((0.0, 0.02, 0.05, ttl / 2, ttl)))
            work.call("release", {"lock": lock.name, "token": told.value}, lock.release)
        work.pause(0.01)


def acquire(lock: Lock, seconds: float) -> int | None:
    """The token; None if it was not to be had."""
    held = lock.held if lock.acquire(timeout=seconds) else None
    return None if held is None else held.token


def hold(work: Work, lock: Lock, token: int, seconds: float) -> None:
    """Check, and write with the fence, again and again."""
    end, held, last = time.monotonic() + seconds, lock.held, False
    assert held is not None
    while not last:
        last = time.monotonic() >= end or work.stopping.is_set()  # so one that was stopped too long writes once more
        before = time.monotonic()
        try:
            held.check()
        except LockLost:
            work.journal.note("lost", lock=lock.name, token=token)
        else:
            work.journal.note("checked", lock=lock.name, token=token, at=before)
        what = {"lock": lock.name, "token": token}
        told = work.call("write", what, work.d.set, FENCED + lock.name, token, fence=held, timeout=2)
        if told.error == LockLost.__name__:
            break
        time.sleep(STEP)


def left(d: ReplicatedDict[Any, Any]) -> list[str]:
    """What is held, waited for or open, as this node's copy says."""
    found = [f"{info.name} is held by {info.holder}, with {info.waiters} waiters" for info in d.locks()]
    status = d.status()
    return (
        found
        + [f"{status.waiting} wait"] * (status.waiting > 0)
        + [f"{status.leases} leases are open"] * (status.leases > 0)
    )


# -- the campaign ---------------------------------------------------------------------------------------------------


def run(
    root: Path,
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    plan: Sequence[str] = (),
    ttl: float = TTL,
    late_allowed: bool = False,
) -> dict[str, Any]:
    """One campaign: the summary. What is late counts as a violation unless that is allowed."""
    account, rng, journals = Account(), random.Random(seed), root / "journals"
    with ExitStack() as stack:
        busy = stack.enter_context(Busyness())
        network = stack.enter_context(Network(3))
        nodes = stack.enter_context(
            campaign_of("tests.campaigns.locks", root, journals, network=network, work={"ttl": ttl})
        )
        lasting = (ttl + 0.5,) if plan else (0.5, ttl + 0.5, 2 * ttl)
        faults = Faults(nodes, network, rng, lasting).only(*FAULTS)
        trouble = Trouble(nodes, faults, account, say)
        for _ in trouble.plan(seconds, plan, rng):
            pass
        elapsed = time.monotonic() - trouble.start
        finish(nodes, account)
        account.violations += ghosts(nodes, ttl)
    noted = read(journals)
    return {
        "seconds": round(elapsed, 1),
        **checked(account, noted, faults, ttl, late_allowed),
        "faults": trouble.summary(),
        "errors": noted.errors(),
        "machine": busy.summary(),
        "violations": account.violations[:20],
    }


def ghosts(nodes: list[Process], ttl: float) -> list[str]:
    """What is left when nobody wants a lock any more; leases of those that were killed end with their ttl."""
    found: list[str] = []

    def nothing() -> bool:
        found[:] = [f"{node.path.name}: {line}" for node in nodes for line in node.do("run", __name__, "left")]
        return not found

    try:
        wait_until(nothing, "no lock is held and no lease is open", ttl + 10)
    except AssertionError:
        pass
    return found


def checked(account: Account, noted: Journals, faults: Faults, ttl: float, late_allowed: bool) -> dict[str, Any]:
    """All checks; what is found goes to the account, and figures are returned."""
    acquired = [call for call in noted.of("acquire") if call.ok and call.value is not None]
    holds = {
        (call.pid, call.value): Hold(call.what["lock"], call.value, call.pid, call.call, call.ret or inf)
        for call in acquired
    }
    for note in noted.notes:
        if note.kind == "checked":
            holds[note.pid, note.what["token"]].passed.append(note.what["at"])
    for call in noted.of("release"):
        if call.ok:
            holds[call.pid, call.what["token"]].released = call.call
    fenced = {
        note.what["revision"]: (event[1], event[2])
        for note in noted.notes
        if note.kind == "told" and note.what["change"] == "changes"
        for event in note.what["events"]
    }
    waits = [
        Wait(call.what["lock"], call.pid, call.call, call.ret or faults.deaths.get(call.pid, inf))
        for call in noted.of("acquire")
    ]
    succession = Succession(list(holds.values()), waits, faults.windows)
    after_death, late = succession.after_death(faults.deaths, ttl)
    account.violations += check_holders(holds.values()) + check_fences(fenced) + noted.broken()
    account.violations += [] if late_allowed else late
    writes = list(noted.of("write"))
    after_release = succession.after_release()
    return {
        "locks acquired": len(holds),
        "checks passed": sum(len(hold.passed) for hold in holds.values()),
        "checks that found the lock lost": sum(note.kind == "lost" for note in noted.notes),
        "fenced writes": sum(call.ok for call in writes),
        "fenced writes refused": sum(call.error == LockLost.__name__ for call in writes),
        "release to the next in line": distribution(after_release),
        "of these above 20 ms": sum(each > 0.02 for each in after_release),
        "death of the holder to the next in line": distribution(after_death),
    }

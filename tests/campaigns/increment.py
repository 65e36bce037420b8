"""Increments of two counters from 64 threads on three nodes, under faults.

The end is what was acknowledged, and at most what is unknown besides; no two calls get the same value, and none gets
less than one that returned before it began.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from tests.campaigns.account import Account, distribution
from tests.campaigns.faults import Busyness, Faults, Trouble
from tests.campaigns.run import campaign_of, finish
from tests.campaigns.work import Call, Work, read
from tests.processes import Network

THREADS = (22, 21, 21)  # on each node
PAUSE = 0.03  # seconds between two calls of a thread, on average
COUNTERS = {"ones": 1, "sevens": 7}
FAULTS = ("kill one", "kill the leader", "kill two", "kill all", "pause the leader", "cut off the leader")

# -- in the process of a node ---------------------------------------------------------------------------------------


def loops(work: Work) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """Threads that count."""
    port = int(str(work.d.status().address).rsplit(":", 1)[1])
    return [lambda: count_up(work)] * THREADS[port % 3], []


def count_up(work: Work) -> None:
    """Increment one of the counters, again and again."""
    while not work.stopping.is_set():
        key = work.rng.choice(list(COUNTERS))
        work.call("increment", {"key": key}, work.d.increment, key, COUNTERS[key], timeout=5)
        work.pause(PAUSE)


# -- the campaign ---------------------------------------------------------------------------------------------------


def check_counter(key: str, by: int, calls: Iterable[Call], final: int) -> tuple[list[str], dict[str, int]]:
    """What is wrong with one counter, and its figures. Pure."""
    wrong: list[str] = []
    values: set[int] = set()
    returned: list[tuple[float, int]] = []  # of calls that began before this one, and returned
    acknowledged = unknown = largest = 0
    for call in sorted(calls, key=lambda each: each.call):
        if not call.ok:
            unknown += not call.surely_not
            continue
        acknowledged += 1
        assert call.ret is not None
        while returned and returned[0][0] < call.call:
            largest = max(largest, heappop(returned)[1])
        if call.value <= largest:
            wrong.append(f"{key}: a call got {call.value} after another one had got {largest}")
        if call.value in values or call.value % by:
            wrong.append(f"{key}: a call got {call.value}, which another one got, or none can get")
        values.add(call.value)
        heappush(returned, (call.ret, call.value))
    if not acknowledged * by <= final <= (acknowledged + unknown) * by or final % by:
        wrong.append(f"{key} is {final} after {acknowledged} acknowledged and {unknown} unknown increments by {by}")
    return wrong, {"value": final, "by": by, "acknowledged": acknowledged, "unknown": unknown}


def run(
    root: Path,
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    plan: Sequence[str] = (),
) -> dict[str, Any]:
    """One campaign: the summary. With a plan it is over when these faults are, in this order."""
    account, rng, journals = Account(), random.Random(seed), root / "journals"
    with ExitStack() as stack:
        busy = stack.enter_context(Busyness())
        network = stack.enter_context(Network(3))
        nodes = stack.enter_context(
            campaign_of("tests.campaigns.increment", root, journals, network=network, options={"log_retain": 500})
        )
        faults = Faults(nodes, network, rng, (0.3,) if plan else (0.3, 1.0, 2.0)).only(*FAULTS)
        trouble = Trouble(nodes, faults, account, say)
        for _ in trouble.plan(seconds, plan, rng):
            pass
        elapsed = time.monotonic() - trouble.start
        content = finish(nodes, account)
    noted = read(journals)
    account.violations += noted.broken()
    counters = {}
    for key, by in COUNTERS.items():
        calls = [call for call in noted.calls if call.what["key"] == key]
        wrong, counters[key] = check_counter(key, by, calls, content.get(key, 0))
        account.violations += wrong
    return {
        "seconds": round(elapsed, 1),
        "counters": counters,
        "an increment": distribution(call.ret - call.call for call in noted.calls if call.ok and call.ret is not None),
        "faults": trouble.summary(),
        "errors": noted.errors(),
        "machine": busy.summary(),
        "violations": account.violations[:20],
    }

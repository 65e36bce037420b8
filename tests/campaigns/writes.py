"""Writes: adds, counters and registers from every node, under faults of every kind.

A violation is an acknowledged write that is lost or applied twice, nodes that differ, a counter that does not add up, a
history that is not linearizable, a node that stopped, or clients that were not served again within 10 s after a fault.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from tests.campaigns.account import Account
from tests.campaigns.faults import Faults, Trouble, longest_gap
from tests.history import Operation
from tests.linearizability import check
from tests.processes import Answer, Died, Network, Process, Refused, equal_copies, processes, start_all

TIMEOUT = 5.0  # of each operation, seconds
BURST = 20  # adds under way at a time, per client
REGISTERS = 4  # keys that histories are recorded of, at a time
EPOCH = 4.0  # seconds after which the histories go on with new keys


class Told(Account):
    """What the clients were told."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])  # surely, perhaps
        self.history: list[Operation] = []
        self.errors: defaultdict[str, int] = defaultdict(int)
        self.served: list[tuple[float, float]] = []  # call and return of what was acknowledged

    def note(self, answer: Answer) -> None:
        """Any operation's end."""
        with self.mutex:
            if answer.ok and answer.ret is not None:
                self.served.append((answer.call, answer.ret))
            elif answer.error is not None:
                self.errors[answer.error] += 1
                if answer.error not in ("Died", "NotCommitted", "OutcomeUnknown", "ReadTimeout"):
                    self.violations.append(f"{answer.error}: {answer.message}")


class Clients:
    """The load: on each node some that add, one that counts, some that read and write registers."""

    def __init__(self, nodes: list[Process], account: Told, seed: int) -> None:
        self._account = account
        self._stopping = threading.Event()
        self._started = time.monotonic()
        loops: list[tuple[Callable[[Process, str, random.Random], None], str]] = [
            (self._add, "a"), (self._count, "c"), (self._registers, "r"), (self._registers, "s")
        ]  # fmt: skip
        self._threads = [
            threading.Thread(
                target=loop, args=(node, f"{letter}{number}", random.Random(f"{seed} {letter}{number}")), daemon=True
            )
            for number, node in enumerate(nodes)
            for loop, letter in loops
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the load; every operation has its answer then."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "every operation ends"

    def _wait(self, node: Process) -> None:
        while not node.alive and not self._stopping.is_set():
            self._stopping.wait(0.01)

    def _add(self, node: Process, name: str, rng: random.Random) -> None:
        account, number = self._account, 0
        while not self._stopping.is_set():
            burst: dict[str, Future[Answer]] = {}
            for _ in range(BURST):
                number += 1
                burst[f"{name}-{number}"] = node.submit("add", f"{name}-{number}", number, timeout=TIMEOUT)
            for key, future in burst.items():
                answer = future.result(90)
                account.note(answer)
                value = int(key.partition("-")[2])
                if answer.value is True:
                    account.added[key] = value
                elif answer.ok:
                    account.violated(f"add({key!r}) returned False the first time: applied twice")
                elif not answer.surely_not:
                    account.maybe_added[key] = value
            self._wait(node)

    def _count(self, node: Process, name: str, rng: random.Random) -> None:
        """Increments of a shared counter, by compare-and-set: once per success."""
        account = self._account
        while not self._stopping.is_set():
            key = f"counter{rng.randrange(2)}"
            read = node.call("get", key, linearizable=True, timeout=TIMEOUT)
            account.note(read)
            if read.ok and read.value is None:
                account.note(node.call("add", key, 0, timeout=TIMEOUT))
            elif read.ok:
                answer = node.call("compare_and_set", key, read.value, read.value + 1, timeout=TIMEOUT)
                account.note(answer)
                with account.mutex:
                    account.counted[key][0] += answer.value is True
                    account.counted[key][1] += not answer.ok and not answer.surely_not
            self._wait(node)

    def _registers(self, node: Process, name: str, rng: random.Random) -> None:
        account, number, seen = self._account, 0, 0
        while not self._stopping.is_set():
            epoch = int((time.monotonic() - self._started) / EPOCH)
            key = f"register{epoch}-{rng.randrange(REGISTERS)}"
            number += 1
            value = int(f"{number}{ord(name[0]) % 10}{name[1:]}")
            kind = rng.choices(["get", "set", "compare_and_set", "pop"], [5, 3, 3, 1])[0]
            argument: Any = None
            if kind == "get":
                answer = node.call("get", key, linearizable=True, timeout=TIMEOUT)
            elif kind == "set":
                argument = value
                answer = node.call("set", key, value, timeout=TIMEOUT)
            elif kind == "compare_and_set":
                argument = (seen, value)
                answer = node.call("compare_and_set", key, seen, value, timeout=TIMEOUT)
            else:
                answer = node.call("pop", key, None)
            account.note(answer)
            if kind == "get" and answer.value is not None:
                seen = answer.value
            if not answer.surely_not and (answer.ok or kind != "get"):
                operation = Operation(name, answer.call, answer.ret, kind, key, argument, answer.value)
                with account.mutex:
                    account.history.append(operation)
            self._wait(node)


class Watchers:
    """One that watches everything in each process, as long as that lives."""

    def __init__(self, account: Told) -> None:
        self._account = account
        self._of: dict[int, int] = {}
        self.told = 0

    def attend(self, nodes: list[Process]) -> None:
        """Have those watch that do not: their process is new."""
        for number, node in enumerate(nodes):
            if self._of.get(number) != node.pid:
                node.do("watch", timeout=30)
                self._of[number] = node.pid

    def compare(self, nodes: list[Process]) -> None:
        """Each holds what its node holds, and any two were told the same where both looked."""
        known: dict[int, int] = {}
        for node in nodes:
            found = node.do("watched", timeout=60)
            for wrong in found["wrong"]:
                self._account.violated(f"a watcher of {node.path.name}: {wrong}")
            self.told += len(found["told"])
            for revision, checksum in found["told"]:
                if known.setdefault(revision, checksum) != checksum:
                    self._account.violated(f"watchers were told different things of revision {revision}")
                    break


def run(
    root: Path,
    *,
    seconds: float,
    seed: int,
    nodes: int = 3,
    say: Callable[[str], None] = lambda line: None,
    plan: Sequence[str] = (),
) -> dict[str, Any]:
    """One campaign: the summary. With a plan it is over when these faults are, in this order."""
    account, rng = Told(), random.Random(seed)
    outages: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        network = stack.enter_context(Network(nodes))
        # A short log, so that nodes that were away meet compaction and snapshots too.
        members = stack.enter_context(processes(root, nodes, network=network, options={"log_retain": 500}))
        clients = Clients(members, account, seed)
        faults = Faults(members, network, rng, (0.3, 1.0, 2.5) if plan else (0.3, 1.0, 2.0, 4.0, 5.5))
        watchers = Watchers(account)
        watchers.attend(members)
        installed: dict[int, int] = {}  # snapshots, by process
        trouble = Trouble(members, faults, account, say)
        for kind, began in trouble.plan(seconds, plan, rng):
            installed.update({node.pid: node.status().get("installed", 0) for node in members})
            watchers.attend(members)
            with account.mutex:
                returns = sorted(ret for _, ret in account.served if ret >= began)
            outages[kind].append(longest_gap(began, returns))
        clients.stop()
        content: dict[str, Any] = {}
        try:
            start_all(members)
            content = equal_copies(members)
            watchers.attend(members)
            watchers.compare(members)
            equal = True
        except (AssertionError, Died, Refused) as error:
            account.violated(f"{type(error).__name__}: {error}")
            equal = False
        installed.update({node.pid: node.status().get("installed", 0) for node in members})
    found = summary(account, content, equal, trouble.recoveries, outages)
    return {
        "seed": seed,
        "seconds": seconds,
        **found,
        "snapshots_installed": sum(installed.values()),
        "told": watchers.told,
    }


def summary(
    account: Told,
    content: dict[str, Any],
    equal: bool,
    recoveries: dict[str, list[float]],
    outages: dict[str, list[float]],
) -> dict[str, Any]:
    """The account, as JSON."""
    lost = account.lost(content)
    counters = {}
    for key, (surely, perhaps) in sorted(account.counted.items()):
        counters[key] = account.adds_up(key, content.get(key, 0), surely, perhaps)
    verdict = check(account.history, seconds=120)
    if verdict.outcome == "not linearizable":
        account.violated(str(verdict))
    returns = sorted(ret for _, ret in account.served)
    return {
        "operations_acknowledged": len(account.served),
        "writes_acknowledged_and_kept": len(account.added) - len(lost),
        "lost": len(lost),
        "errors": dict(account.errors),
        "counters": counters,
        "history": {"operations": len(account.history), "verdict": verdict.outcome},
        "nodes_equal": equal,
        "longest_time_without_any_answer": round(max(b - a for a, b in pairwise(returns)), 2),
        "faults": {
            kind: {
                "count": len(times),
                "all_served_again_median": round(median(times), 2),
                "all_served_again_max": round(max(times), 2),
                "longest_without_any_answer": round(max(outages[kind]), 2),
            }
            for kind, times in sorted(recoveries.items())
        },
        "violations": account.violations[:20],
    }

"""What befalls the nodes of a campaign, one thing at a time, and how soon they serve again."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import inf

from tests.campaigns.account import Account, distribution
from tests.clusters import wait_until
from tests.processes import Network, Process, leader

SERVED_WITHIN = 10.0  # seconds after the end of a fault, once all dicts are open
CHANGE_WITHIN = 60.0  # seconds for a change of the members


class Faults:
    """What can befall the nodes: one thing at a time, for a while, then it ends."""

    def __init__(self, nodes: list[Process], network: Network, rng: random.Random, lasting: Sequence[float]) -> None:
        self._network = network
        self._lasting = lasting
        self._rng = rng
        self._nodes = nodes
        self.deaths: dict[int, float] = {}
        """When each process that was killed was still alive, by its pid."""
        self.windows: list[tuple[float, float, frozenset[int]]] = []
        """From when to when processes were dead, stopped or cut off, and which."""
        self.kinds: dict[str, Callable[[], None]] = {
            "kill one": lambda: self._kill([rng.choice(nodes)]),
            "kill the leader": lambda: self._kill([leader(nodes)]),
            "kill two": lambda: self._kill(rng.sample(nodes, 2)),
            "kill all": lambda: self._kill(nodes),
            "pause one": lambda: self._pause([rng.choice(nodes)]),
            "pause the leader": lambda: self._pause([leader(nodes)]),
            "pause all": lambda: self._pause(nodes),
            "cut off one": lambda: self._cut_off(rng.choice(nodes)),
            "cut off the leader": lambda: self._cut_off(leader(nodes)),
            "one hears nothing": lambda: self._cut_off(rng.choice(nodes), outgoing=False),
            "the leader is not heard": lambda: self._cut_off(leader(nodes), incoming=False),
        }

    def with_changes_of_members(self) -> Faults:
        """Add that a node is removed, its disk wiped, and joins again."""
        self.kinds["replace one"] = lambda: self._replace(self._rng.choice(self._nodes))
        return self

    def only(self, *kinds: str) -> Faults:
        """Let nothing but these happen."""
        self.kinds = {kind: self.kinds[kind] for kind in kinds}
        return self

    @contextmanager
    def _for_a_while(self, nodes: list[Process]) -> Iterator[None]:
        """Note that something befalls these meanwhile."""
        began, pids = time.monotonic(), frozenset(node.pid for node in nodes)
        yield
        self.windows.append((began, time.monotonic(), pids))

    def _last(self) -> None:
        time.sleep(self._rng.choice(self._lasting))

    def _kill(self, nodes: list[Process]) -> None:
        with self._for_a_while(nodes):
            for node in nodes:
                self.deaths[node.pid] = time.monotonic()
                node.kill()
            self._last()
            for node in nodes:
                node.start(wait=False)

    def _pause(self, nodes: list[Process]) -> None:
        with self._for_a_while(nodes):
            for node in nodes:
                node.pause()
            self._last()
            for node in nodes:
                node.resume()

    def _cut_off(self, node: Process, *, incoming: bool = True, outgoing: bool = True) -> None:
        assert node.address is not None
        with self._for_a_while([node]):
            self._network.isolate({node.address}, incoming=incoming, outgoing=outgoing)
            self._last()
            self._network.heal()

    def _replace(self, node: Process) -> None:
        other = self._rng.choice([each for each in self._nodes if each is not node])
        assert node.address is not None and other.address is not None
        wait_until(lambda: self._removed(node, other), f"{node.path.name} is removed", CHANGE_WITHIN)
        self.deaths[node.pid] = time.monotonic()
        node.kill()
        shutil.rmtree(node.path)
        node.join(other.address)
        node.start(wait=False)
        wait_until(lambda: self._votes(node, other), f"{node.path.name} votes", CHANGE_WITHIN)

    @staticmethod
    def _removed(node: Process, other: Process) -> bool:
        answer = other.call("remove_peer", node.address, timeout=10.0)
        return answer.ok or "is no member" in answer.message

    @staticmethod
    def _votes(node: Process, other: Process) -> bool:
        answer = other.call("members")
        return answer.ok and node.address in [address for address, voter, *_ in answer.value if voter]


class Trouble:
    """Faults, one after the other, until the time is over; and what they cost."""

    def __init__(self, nodes: list[Process], faults: Faults, account: Account, say: Callable[[str], None]) -> None:
        self.recoveries: defaultdict[str, list[float]] = defaultdict(list)
        self._nodes, self._faults, self._account, self._say = nodes, faults, account, say
        self.start = time.monotonic()

    def plan(self, seconds: float, plan: Sequence[str], rng: random.Random) -> Iterator[tuple[str, float]]:
        """Have faults happen: those of the plan, however long that takes, or without one any, for so long. Yields each
        and when it began, once all nodes serve again."""
        left, within = list(plan), inf if plan else SERVED_WITHIN
        while left if plan else time.monotonic() - self.start < seconds:
            time.sleep(rng.uniform(0.3, 1.0) if plan else rng.uniform(0.5, 2.5))
            kind = left.pop(0) if plan else rng.choice(list(self._faults.kinds))
            began = time.monotonic()
            self._faults.kinds[kind]()
            recovery, of_open_dicts = served_again(self._nodes)
            self.recoveries[kind].append(recovery)
            self._say(f"{time.monotonic() - self.start:6.1f} s  {kind:<24} all served again after {recovery:.2f} s")
            if of_open_dicts > within:
                self._account.violated(f"{kind}: not all nodes served again within {within:g} s")
            yield kind, began

    def summary(self) -> dict[str, dict[str, float]]:
        """How often each fault happened, and how many seconds it took at most until all nodes served again."""
        return {
            kind: {"count": len(times), "all served again, at most": round(max(times), 2)}
            for kind, times in sorted(self.recoveries.items())
        }


def served_again(nodes: list[Process]) -> tuple[float, float]:
    """Seconds until a write was acknowledged on every node, from now, and from when all processes had opened their
    dicts; infinite if one was not within the time allowed."""
    start = time.monotonic()
    for node in nodes:
        node.wait_open()
    opened = time.monotonic()
    probes = [node.submit("set", f"probe {number}", 1, timeout=2 * SERVED_WITHIN) for number, node in enumerate(nodes)]
    answers = [probe.result(90) for probe in probes]
    end = time.monotonic() if all(answer.ok for answer in answers) else inf
    return end - start, end - opened


def longest_gap(began: float, moments: Sequence[float]) -> float:
    """The longest time without any of these, from the beginning to the last."""
    return max((b - a for a, b in pairwise([began, *moments])), default=0.0)


class Busyness:
    """How busy the machine is: by how much longer than it asked for a thread sleeps. A figure that is late says nothing
    of replidict if the machine was late itself."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sleep, daemon=True)

    def _sleep(self) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            time.sleep(0.01)
            self._late.append(time.monotonic() - before - 0.01)

    def __enter__(self) -> Busyness:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def summary(self) -> dict[str, float]:
        """The load now, and how late the thread woke."""
        late = distribution(self._late)
        return {
            "load": round(os.getloadavg()[0], 1),
            "late by, p99 ms": late["p99 ms"],
            "late by, max ms": late["max ms"],
        }

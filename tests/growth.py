"""The life of a cluster in real processes: it grows from one node, replaces each of them once, and shrinks again, under
load from every living node and with kill -9s in between; and then the account.

    python -m tests.growth [--most 5] [--left 3] [--seed N] [--json FILE]

Prints what happens, and at the end a summary as JSON. Exit status 1 if an acknowledged write is lost, a refused one is
there, nodes differ, a node that was removed did not stop by itself, or a write took longer than `--stall` seconds while
there were a majority and its leader. (What is wanted is two election timeouts, one second; the summary has the
figure. The bound is wider, so that a busy machine is no reason to fail.)
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clusters import wait_until
from tests.processes import Answer, Process, equal_copies, leader, own_addresses

TIMEOUT = 10.0  # of each operation, seconds
CHANGE_WITHIN = 60.0  # seconds for a change of the members, whatever befalls it
CLIENTS = 2  # writers on each node


class Load:
    """Writers on every node, and what they were told."""

    def __init__(self, nodes: list[Process]) -> None:
        self.added: dict[str, int] = {}
        self.maybe_added: dict[str, int] = {}
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.took: list[tuple[float, float, str]] = []  # call, end and node of each write
        self.excused: list[tuple[float, float]] = []  # when there was no leader, or no majority, for a good reason
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(node, f"{number}.{client}"), daemon=True)
            for number, node in enumerate(nodes)
            for client in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def _write(self, node: Process, name: str) -> None:
        number = 0
        while not self._stopping.is_set():
            if not node.alive:
                self._stopping.wait(0.02)
                continue
            number += 1
            key = f"{name}-{number}"
            answer = node.call("add", key, number, timeout=TIMEOUT)
            with self._mutex:
                self._note(node, key, number, answer)
            if not answer.ok:
                self._stopping.wait(0.02)

    def _note(self, node: Process, key: str, number: int, answer: Answer) -> None:
        if answer.error != "Died":
            self.took.append((answer.call, answer.ret or time.monotonic(), str(node.path.name)))
        if answer.value is True:
            self.added[key] = number
        elif answer.ok:
            self.wrong.append(f"add({key!r}) returned False the first time: applied twice")
        else:
            self.errors[str(answer.error)] += 1
            if not answer.surely_not:
                self.maybe_added[key] = number
            if answer.error not in ("Died", "NotCommitted", "OutcomeUnknown", "RemovedError"):
                self.wrong.append(f"{answer.error}: {answer.message}")

    @contextmanager
    def excuse(self) -> Iterator[None]:
        """Writes that wait meanwhile do so for a good reason."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.excused.append((start, time.monotonic()))

    def stop(self) -> None:
        """Every write has its answer then."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "every write ends"

    def longest(self, *, excused: bool) -> float:
        """Seconds that a write took at most, of those that had an excuse, or of the others."""
        return max(
            (
                end - call
                for call, end, _ in self.took
                if excused == any(call < until and end > since for since, until in self.excused)
            ),
            default=0.0,
        )


class Life:
    """What happens to the cluster, one thing after the other."""

    def __init__(self, root: Path, most: int, rng: random.Random, say: Callable[[str], None]) -> None:
        addresses = own_addresses(most)
        self.nodes = [
            Process(root / f"n{number}", address, timeout=30, options={"log_retain": 500})
            for number, address in enumerate(addresses)
        ]
        self.members: list[Process] = []
        self.kills: Counter[str] = Counter()
        self._rng, self._say, self._start = rng, say, time.monotonic()
        self.nodes[0].start()
        self.members.append(self.nodes[0])
        self.load = Load(self.nodes)

    def _tell(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._start:6.1f} s  {len(self.members)} members  {what}")

    def _asked(self, *others: Process) -> Process:
        return self._rng.choice([node for node in self.members if node not in others and node.alive])

    def come(self, node: Process, *, killed: bool) -> None:
        """A node joins, by way of any member, and becomes a voter; perhaps it is killed on the way, once."""
        began = time.monotonic()
        node.join(str(self._asked(node).address))
        if killed:
            node.start(wait=False)
            time.sleep(self._rng.uniform(0.2, 1.2))
            node.kill()
            self.kills["joining"] += 1
        node.start()
        self.members.append(node)
        wait_until(lambda: str(node.address) in self._voters(), f"{node.path.name} is a voter", CHANGE_WITHIN)
        self._tell(f"{node.path.name} is in after {time.monotonic() - began:.2f} s")

    def _voters(self) -> list[str]:
        answer = self._asked().call("members")
        return [address for address, voter, *_ in answer.value if voter] if answer.ok else []

    def go(self, node: Process, *, down: bool) -> None:
        """A member is removed, by way of another, while it runs or after it was killed; then its disk is wiped."""
        if down:
            with self._kill(node):
                self.members.remove(node)
            self._remove(node)
            node.kill()
        else:
            self.members.remove(node)
            self._remove(node)
            wait_until(lambda: node.status().get("role") == "removed", f"{node.path.name} has stopped by itself")
            node.close()
        shutil.rmtree(node.path)
        self._tell(f"{node.path.name} is out{', which was down' if down else ''}")

    def _remove(self, node: Process) -> None:
        deadline = time.monotonic() + CHANGE_WITHIN
        while True:
            answer = self._asked(node).call("remove_peer", node.address, timeout=TIMEOUT)
            if answer.ok or "is no member" in answer.message:
                return
            assert time.monotonic() < deadline, f"could not remove {node.path.name}: {answer}"

    @contextmanager
    def _kill(self, node: Process) -> Iterator[None]:
        """Kill -9; excused until the rest has a leader again, if this one led."""
        led = node.status().get("is_leader", False)
        self.kills["leader" if led else "follower"] += 1
        with self.load.excuse() if led or len(self.members) < 3 else _nothing():
            node.kill()
            yield
            if len(self.members) > 1:
                leader([each for each in self.members if each.alive])

    def trouble(self) -> None:
        """One member, the leader or any, is killed, and starts again after a moment."""
        node = leader(self.members) if self._rng.random() < 0.5 else self._asked()
        led = node.status().get("is_leader", False)
        with self.load.excuse() if led or len(self.members) < 3 else _nothing():
            node.kill()
            self.kills["leader" if led else "follower"] += 1
            if self._rng.random() < 0.5:
                time.sleep(self._rng.uniform(0.1, 1.5))
            node.start()
            leader(self.members)
        assert node.call("wait_ready", 30).value is True
        self._tell(f"{node.path.name} was killed{', which led,' if led else ''} and is back")

    def end(self) -> None:
        """Whatever happened, no process is left."""
        self.load.stop()
        for node in self.nodes:
            node.kill()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def run(
    root: Path, *, most: int, replaced: int, left: int, seed: int, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """A whole life: the summary. So many of the nodes are replaced."""
    rng = random.Random(seed)
    life = Life(root, most, rng, say)
    load = life.load
    try:
        for number, node in enumerate(life.nodes[1:]):
            life.come(node, killed=number % 2 == 1)
            life.trouble()
        for number, node in enumerate(rng.sample(life.nodes, replaced)):
            life.go(node, down=number % 2 == 1)
            life.trouble()
            life.come(node, killed=number % 3 == 1)
        while len(life.members) > left:
            life.go(rng.choice(life.members), down=False)
            life.trouble()
        load.stop()
        content = equal_copies(life.members)
        assert sorted(life._voters()) == sorted(str(node.address) for node in life.members)
    finally:
        life.end()
    lost = sorted(key for key, value in load.added.items() if content.get(key) != value)
    strange = sorted(key for key in content if key not in load.added and key not in load.maybe_added)
    wrong = list(load.wrong)
    if lost:
        wrong.append(f"{len(lost)} acknowledged writes are lost: {lost[:10]}")
    if strange:
        wrong.append(f"{len(strange)} writes that were refused are there: {strange[:10]}")
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - life._start, 1),
        "acknowledged": len(load.added),
        "lost": len(lost),
        "errors": dict(load.errors),
        "kills": dict(life.kills),
        "longest_write": round(load.longest(excused=False), 3),
        "longest_write_without_leader_or_majority": round(load.longest(excused=True), 3),
        "wrong": wrong[:20],
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=5, help="nodes that the cluster grows to")
    parser.add_argument("--left", type=int, default=3, help="nodes that it shrinks to")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--stall", type=float, default=3.0, help="seconds that a write may take")
    parser.add_argument("--json", type=Path, default=None, help="write the summary to this file, too")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="replidict-growth-") as directory:
        found = run(
            Path(directory), most=arguments.most, replaced=arguments.most, left=arguments.left, seed=seed,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
    if found["longest_write"] > arguments.stall:
        found["wrong"].append(f"a write took {found['longest_write']:g} s")
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

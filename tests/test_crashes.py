"""Processes that die at the worst moments, power that fails: nothing acknowledged is lost (design, sections 2, 11)."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from replidict import ReplicatedDict
from tests.campaigns import writes
from tests.clusters import wait_until
from tests.processes import Answer, Process, cut_power, equal_copies, leader, processes, start_all

BIG = 2_100  # pairs in an update: the state table follows at the next commit


def test_kills_under_load(tmp_path: Path) -> None:
    """Kill -9 of one, of the leader, of two, of all, under load from every node: every acknowledged write is on
    every node, once, the nodes are equal, and the histories are linearizable (promises 1 to 3)."""
    plan = ["kill one", "kill the leader", "kill all", "kill two"]
    found = writes.run(tmp_path, seconds=0, seed=1, plan=plan)
    assert found["violations"] == []
    assert found["writes_acknowledged_and_kept"] > 500
    assert found["history"]["operations"] > 100
    assert {kind: found["faults"][kind]["count"] for kind in plan} == dict.fromkeys(plan, 1)


def test_pauses_and_partitions_under_load(tmp_path: Path) -> None:
    """A leader that is stopped or cut off, one way or both, loses nothing and serves nothing stale (promises 1, 2)."""
    plan = ["pause the leader", "cut off the leader", "the leader is not heard", "one hears nothing"]
    found = writes.run(tmp_path, seconds=0, seed=2, plan=plan)
    assert found["violations"] == []
    assert found["writes_acknowledged_and_kept"] > 500


# -- cut at a step of a commit --------------------------------------------------------------------------------------

COMMIT = [
    ["BEGIN IMMEDIATE"],
    ["BEGIN IMMEDIATE", "after"],
    ["INSERT INTO log"],
    ["INSERT INTO log", "after"],
    ["COMMIT"],
    ["COMMIT", "after"],
]
LARGE = [
    ["INSERT INTO large_value"],
    ["INSERT INTO large_value", "after"],
    ["INSERT INTO large_value", "COMMIT"],
    ["INSERT INTO large_value", "COMMIT", "after"],
    ["INSERT INTO large_state"],
    ["INSERT INTO large_state", "after"],
    ["DELETE FROM large_state"],
    ["INSERT INTO large_state", "COMMIT"],
]
FLUSH = [
    ["INSERT INTO state"],
    ["INSERT INTO state", "INSERT INTO state"],
    ["INSERT INTO state", "INSERT OR REPLACE INTO session"],
    ["INSERT INTO state", "INSERT OR REPLACE INTO session", "INSERT OR REPLACE INTO fact"],
    ["INSERT INTO state", "DELETE FROM log WHERE idx <="],
    ["INSERT INTO state", "DELETE FROM log WHERE idx <=", "after"],
    ["INSERT INTO state", "COMMIT"],
    ["INSERT INTO state", "COMMIT", "after"],
]
BIRTH = [
    ["CREATE TABLE"],
    ["PRAGMA user_version ="],
    ["INSERT OR REPLACE INTO fact", "after"],
    ["FSYNC .*new$"],
    ["FSYNC .*new$", "after"],
    ["RENAME .*new$"],
    ["RENAME .*new$", "after"],
    ["PRAGMA journal_mode = WAL"],
    ["PRAGMA journal_mode = WAL", "after"],
    ["BEGIN IMMEDIATE", "COMMIT"],
]
INSTALL = [
    ["ATTACH", "DELETE FROM log$"],
    ["ATTACH", "INSERT OR ROLLBACK INTO state SELECT"],
    ["ATTACH", "INSERT OR ROLLBACK INTO session SELECT", "after"],
    ["ATTACH", "INSERT OR REPLACE INTO fact SELECT", "after"],
    ["ATTACH", "COMMIT"],
    ["ATTACH", "COMMIT", "after"],
]


def name(steps: list[str]) -> str:
    return "-".join(steps)


class Writer:
    """Writes to one node, one operation after the other, and what its dict must be like then."""

    def __init__(self, node: Process) -> None:
        self._node = node
        self.content: dict[Any, Any] = {}
        self.with_unanswered: dict[Any, Any] = {}
        self.count = 0

    def write(self) -> bool:
        """One operation; whether it was acknowledged."""
        self.count += 1
        number, after = self.count, dict(self.content)
        if number % 5 == 3:
            after.update((f"big{each}", number) for each in range(BIG))
            answer = self._node.call("update", [(f"big{each}", number) for each in range(BIG)])
        elif number % 5 == 2:
            after["large"] = f"{number} {'x' * 50_000}"
            answer = self._node.call("set", "large", after["large"])
        elif number % 5 == 4:
            after.pop("k1", None)
            answer = self._node.call("pop", "k1", None)
        else:
            after[f"k{number % 4}"] = number
            answer = self._node.call("set", f"k{number % 4}", number)
        self.with_unanswered = after
        if answer.ok:
            self.content = after
        assert answer.ok or answer.error == "Died", answer
        return answer.ok


def test_a_node_cut_within_a_commit(tmp_path: Path) -> None:
    """A single node that dies at any step of a commit has, when it comes back, what was acknowledged; of what was not,
    all or nothing (promises 1 and 4)."""
    with processes(tmp_path, 1) as (node,):
        writer = Writer(node)
        for steps in [*COMMIT, *LARGE, *FLUSH]:
            armed = node.call("arm", *steps)
            assert armed.ok or armed.error == "Died", "it may be in the midst of a commit of its own"
            start = writer.count
            while writer.write():
                assert writer.count < start + 20, f"{steps} was never reached"
            node.wait_dead()
            node.start()
            found = list(node.snapshot().items())
            assert found in (list(writer.content.items()), list(writer.with_unanswered.items())), steps
            writer.content = dict(found)


@pytest.mark.parametrize("steps", BIRTH, ids=name)
def test_a_node_cut_while_it_is_born(tmp_path: Path, steps: list[str]) -> None:
    """A node that dies while its file is made starts as if nothing had been, and keeps what it is then told."""
    node = Process(tmp_path / "n")
    try:
        node.start(cut=steps, wait=False)
        node.call("set", "early", 1)
        node.wait_dead()
    finally:
        node.kill()
    with ReplicatedDict[str, int](tmp_path / "n") as opened:
        assert opened in ({}, {"early": 1})
        opened["k"] = 1
    with ReplicatedDict[str, int](tmp_path / "n") as opened:
        assert opened["k"] == 1


class Load:
    """`add`s on every node until it ends, and those that were acknowledged."""

    def __init__(self, nodes: list[Process]) -> None:
        self.acknowledged: dict[str, int | str] = {}
        self.repeated: list[str] = []
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(node, f"{number}-{each}"), daemon=True)
            for number, node in enumerate(nodes)
            for each in range(2)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, node: Process, which: str) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            key = f"{which}-{number}"
            if number % 40 == 0:
                answer: Answer = node.call("update", [(f"big{each}", number) for each in range(BIG)])
            else:
                value = number if number % 9 else f"{number} {'x' * 20_000}"
                answer = node.call("add", key, value)
                if answer.value is True:
                    self.acknowledged[key] = value
                elif answer.ok:
                    self.repeated.append(key)
            if answer.error == "Died":
                wait_until(lambda: node.alive or self._stopping.is_set(), "the node is started again")

    def wait_more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        enough = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= enough, f"{count} more writes are acknowledged")

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)

    def check(self, nodes: list[Process]) -> None:
        """All of it is on every node, once."""
        content = equal_copies(nodes)
        lost = [key for key, number in self.acknowledged.items() if content.get(key) != number]
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged writes are lost"
        assert not self.repeated


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_a_member_cut_within_a_commit(tmp_path: Path, leads: bool) -> None:
    """A leader or a follower that dies at a step of a commit, with load on every node: nothing acknowledged is lost
    or done twice, and the nodes are equal when it is back (promises 1 and 3)."""
    with processes(tmp_path, 3, options={"log_retain": 50}) as nodes:
        load = Load(nodes)
        try:
            for steps in [
                ["INSERT INTO log", "after"],
                ["COMMIT"],
                ["COMMIT", "after"],
                FLUSH[1],
                FLUSH[-3],
                FLUSH[-1],
            ]:
                load.wait_more(20)
                first = leader(nodes)
                node = first if leads else next(each for each in nodes if each is not first)
                node.call("arm", *steps)
                node.wait_dead()
                load.wait_more(20)
                node.start(wait=False)
        finally:
            load.stop()
        start_all(nodes)
        load.check(nodes)


def test_a_follower_cut_while_it_installs_a_snapshot(tmp_path: Path) -> None:
    """A follower that dies at any step of installing a snapshot begins anew and ends up equal."""
    with processes(tmp_path, 3, options={"log_retain": 20}) as nodes:
        late = next(each for each in nodes if each is not leader(nodes))
        others = [each for each in nodes if each is not late]
        written: dict[Any, Any] = {}
        for steps in [*INSTALL, None]:
            late.kill()
            for number in range(30):
                written[f"k{len(written)}"] = number
                others[number % 2].do("set", f"k{len(written) - 1}", number)
            for number in range(2):
                pairs = [(f"big{each}", f"{steps} {number}") for each in range(BIG)]
                written.update(pairs)
                others[0].do("update", pairs)
            others[0].do("set", "last", str(steps))
            written["last"] = str(steps)
            late.start(cut=steps, wait=False)
            if steps is not None:
                late.wait_dead()
        assert equal_copies(nodes) == written


def test_power_fails_everywhere_at_once(tmp_path: Path) -> None:
    """All machines lose their power: what was not synced is gone, what was being written is torn, and every
    acknowledged write is there (promise 1)."""
    rng = random.Random(3)
    with processes(tmp_path, 3) as nodes:
        load = Load(nodes)
        try:
            for _ in range(4):
                load.wait_more(50)
                time.sleep(rng.random() * 0.05)  # not a wait: any moment will do
                cut_power(nodes, rng)
                for node in nodes:
                    node.start(wait=False)
        finally:
            load.stop()
        start_all(nodes)
        load.check(nodes)

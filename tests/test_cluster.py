"""Three nodes over real sockets: one dict, whichever node is asked, whichever node is missing (promises 1 to 4, 9)."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from replidict import Options
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, open_member, wait_until
from tests.test_dict import exact, in_threads


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dict]]:
    """Three nodes for all tests that do no harm to them."""
    with cluster(tmp_path_factory.mktemp("cluster"), timeout=60) as opened:
        wait_until(lambda: all(len(node.status().connected) == 2 for node in opened), "all are connected")
        yield opened


@pytest.fixture
def nodes(shared: list[Dict]) -> list[Dict]:
    """The three nodes, empty."""
    shared[0].clear()
    for node in shared:
        node.barrier()
    return shared


def in_step(nodes: list[Dict]) -> None:
    """Wait until every node's copy includes all that was acknowledged."""
    for node in nodes:
        node.barrier(timeout=60)


def followers_of(nodes: list[Dict]) -> list[Dict]:
    leader = leader_of(nodes)
    return [node for node in nodes if node is not leader]


# -- one dict -------------------------------------------------------------------------------------------------------


def test_written_anywhere_read_everywhere(nodes: list[Dict]) -> None:
    """What is written on any node is read on all: at once if linearizable, else soon (promise 2)."""
    for number, writer in enumerate(nodes):
        writer["hello", number] = {"distributed": [number]}
        for reader in nodes:
            assert reader.get(("hello", number), linearizable=True) == {"distributed": [number]}
    in_step(nodes)
    assert nodes[0] == nodes[1] == nodes[2] == {("hello", number): {"distributed": [number]} for number in range(3)}


def test_every_mutating_method_from_every_node(nodes: list[Dict]) -> None:
    """Each method works from a follower as from the leader, and the caller sees its effect at once (promise 2)."""
    for node in nodes:
        node.clear()
        assert node.snapshot() == {}
        revision = node.set("a", 1)
        assert node["a"] == 1 and node.revision >= revision
        assert node.add("a", 2) is False and node.add("b", 2) is True
        assert node["b"] == 2
        assert node.setdefault("c", 3) == 3 and node.setdefault("c", 4) == 3
        assert node["c"] == 3
        assert node.compare_and_set("c", 3, 4) is True and node.compare_and_set("c", 3, 5) is False
        assert node["c"] == 4
        found = node.versioned("c")
        assert found is not None
        assert node.replace("c", 5, revision=found.revision) is True
        assert node.replace("c", 6, revision=found.revision) is False
        assert node["c"] == 5
        node.update({"d": 6}, e=7)
        assert list(node.items()) == [("a", 1), ("b", 2), ("c", 5), ("d", 6), ("e", 7)]
        node |= {"f": 8}
        assert node.popitem() == ("f", 8)
        assert "f" not in node
        assert node.pop("e") == 7 and node.pop("e", None) is None
        with pytest.raises(KeyError):
            node.pop("e")
        del node["d"]
        assert list(node) == ["a", "b", "c"]
        with pytest.raises(KeyError):
            del node["d"]
        in_step(nodes)
        assert nodes[0].snapshot() == nodes[1].snapshot() == nodes[2].snapshot() == {"a": 1, "b": 2, "c": 5}


def test_order_is_the_same_on_every_node(nodes: list[Dict]) -> None:
    """Insertion order, keys' types and revisions are the same on every node, whoever wrote what (promises 5 and 9)."""

    def write(node: Dict, name: int) -> None:
        for number in range(30):
            node[name, number] = number
            if number % 7 == 3:
                node.pop((name, number - 2), None)
                node.update({(name, number): "again", (name, number + 0.5): "new", 1: "int"})
            if number % 10 == 5:
                node[True] = "bool"
                node.popitem()

    in_threads(*(lambda node=node, name=name: write(node, name) for name, node in enumerate(nodes * 2)))
    in_step(nodes)
    moments = [[(exact(key), node.versioned(key)) for key in node] for node in nodes]
    assert len(moments[0]) > 100
    assert moments[0] == moments[1] == moments[2]
    assert nodes[0].revision == nodes[1].revision == nodes[2].revision


def test_read_your_writes(nodes: list[Dict]) -> None:
    """A plain read includes every write that returned on that node, without waiting for anybody (promise 2)."""

    def write(node: Dict, name: int) -> None:
        for number in range(30):
            node[name] = number
            assert node[name] == number
            node.update({(name, "a"): number, (name, "b"): number})
            assert (node[name, "a"], node[name, "b"]) == (number, number)
            del node[name]
            assert name not in node

    in_threads(*(lambda node=node, name=name: write(node, name) for name, node in enumerate(nodes)))


def test_plain_reads_never_go_back(nodes: list[Dict]) -> None:
    """What a node has shown once it never takes back, and no node shows more than was committed (promise 2)."""
    stop = threading.Event()
    writer = nodes[0]
    writer["n"] = 0

    def write() -> None:
        try:
            for number in range(1, 150):
                writer["n"] = number
        finally:
            stop.set()

    def read(node: Dict) -> None:
        last = 0
        while not stop.is_set():
            now = node.get("n", 0)
            assert now >= last
            last = now
            strong = node.get("n", 0, linearizable=True)
            assert strong >= last
            last = strong

    in_step(nodes)
    in_threads(write, *(lambda node=node: read(node) for node in nodes))


def test_linearizable_reads_see_what_returned_before(nodes: list[Dict]) -> None:
    """A linearizable read, a barrier and a bounded read on any node include what returned on another (promise 2)."""
    for number in range(20):
        writer, reader, other = nodes[number % 3], nodes[(number + 1) % 3], nodes[(number + 2) % 3]
        revision = writer.set("n", number)
        assert reader.get("n", linearizable=True) == number
        found = other.versioned("n", linearizable=True)
        assert found == (number, revision)
        reader.barrier()
        assert reader["n"] == number
        assert other.get("n", max_staleness=0) == number
        assert other.get("n", max_staleness=60.0) == number


def test_counter(nodes: list[Dict]) -> None:
    """Threads on three nodes that count with compare_and_set, each on what it read, lose no count (promises 2, 3)."""
    nodes[0]["count"] = 0

    def count(node: Dict) -> None:
        for _ in range(10):
            while True:
                seen = node.get("count", 0, linearizable=True)
                if node.compare_and_set("count", seen, seen + 1):
                    break

    in_threads(*(lambda node=node: count(node) for node in nodes * 4))
    assert nodes[1].get("count", linearizable=True) == 120


def test_each_goes_to_one(nodes: list[Dict]) -> None:
    """What several nodes take with `popitem` and `pop` at once goes to exactly one of them (promises 3 and 4)."""
    nodes[0].update({number: number for number in range(120)})
    in_step(nodes)
    taken: list[Any] = []

    def take(node: Dict) -> None:
        for number in range(10):
            taken.append(node.popitem()[0])
            taken.append(node.pop(number, None))

    in_threads(*(lambda node=node: take(node) for node in nodes * 2))
    found = [each for each in taken if each is not None]
    assert sorted(found) == sorted({*range(10), *range(60, 120)})


def test_updates_are_atomic_on_every_node(nodes: list[Dict]) -> None:
    """No node shows half of an update that another node made (promise 4)."""
    stop = threading.Event()

    def write() -> None:
        try:
            for number in range(60):
                nodes[0].update(dict.fromkeys(range(20), number))
        finally:
            stop.set()

    def read(node: Dict) -> None:
        while not stop.wait(0.0005):  # three that never pause would leave the writer no processor
            assert len(set(node.snapshot().values())) <= 1
            assert len(node) in (0, 20)

    in_threads(write, *(lambda node=node: read(node) for node in nodes))


def test_large_values(nodes: list[Dict]) -> None:
    """Values of megabytes go from a follower to all, and one does not hold up the small ones for good."""
    follower = followers_of(nodes)[0]
    large = bytes(range(256)) * 4096 * 3
    in_threads(
        lambda: follower.set("large", large),
        lambda: follower.set("small", 1),
        lambda: nodes[0].set("other", [large[:999]]),
    )
    in_step(nodes)
    for node in nodes:
        assert node == {"large": large, "small": 1, "other": [large[:999]]}


def test_status(nodes: list[Dict]) -> None:
    """status() says who is who: one leader, known to all, everybody connected, equal indexes when all is quiet."""
    leader = leader_of(nodes)
    nodes[0]["a"] = 1
    in_step(nodes)
    wait_until(lambda: len({node.status().commit_index for node in nodes}) == 1, "all know what is committed")
    addresses = {node.status().address for node in nodes}
    for node in nodes:
        status = node.status()
        assert status.role == ("leader" if node is leader else "follower")
        assert status.is_leader is (node is leader)
        assert status.leader == leader.status().address
        assert status.term == leader.status().term >= 1
        assert status.applied_index == status.commit_index == leader.status().commit_index
        assert (status.revision, status.keys) == (node.revision, 1)
        assert set(status.peers) == set(status.connected) == addresses - {status.address}
        assert status.log_entries > 0 and status.log_bytes > 0
        assert status.cluster_id == leader.status().cluster_id
        with pytest.raises(AttributeError):
            status.term = 5  # type: ignore[misc]
    assert len({node.status().node_id for node in nodes}) == 3
    assert all(node.wait_ready(30) for node in nodes)


# -- without faults, nothing is done twice --------------------------------------------------------------------------


LOAD_SECONDS = float(os.environ.get("REPLIDICT_LOAD_SECONDS", "5"))


def test_load_without_faults(tmp_path: Path) -> None:
    """64 threads and no fault: no follower deletes an entry, and the leader sends none twice (E1)."""
    # A long election timeout: other tests on the same processors are no fault of a leader's.
    with cluster(tmp_path, timeout=60, options=Options(heartbeat=0.2, election_timeout=4)) as nodes:
        wait_until(lambda: all(len(node.status().connected) == 2 for node in nodes), "all are connected")
        leader = leader_of(nodes)
        term = leader.status().term
        until = time.monotonic() + LOAD_SECONDS
        written: Counter[int] = Counter()

        def write(node: Dict, name: int) -> None:
            while written[name] < 25 or time.monotonic() < until:
                node[name, written[name] % 100] = "x" * 50
                written[name] += 1

        in_threads(*(lambda name=name: write(nodes[name % 3], name) for name in range(64)))
        in_step(nodes)
        assert leader.status().term == term, "an election: this machine is too busy for this test to mean anything"
        assert [host_of(node).node.store.log.deleted_entries for node in nodes] == [0, 0, 0]
        assert [host_of(node).node.engine.replication.entries_resent for node in nodes] == [0, 0, 0]
        assert nodes[0] == nodes[1] == nodes[2]
        assert len(nodes[0]) == sum(min(count, 100) for count in written.values())
        assert nodes[0].revision == written.total()


# -- with faults ----------------------------------------------------------------------------------------------------


class Cluster:
    """Nodes that can be closed and opened again."""

    def __init__(self, root: Path, stack: ExitStack, **arguments: Any) -> None:
        self._root, self._stack, self._arguments = root, stack, {"timeout": 60, **arguments}
        self._addresses = free_addresses(3)
        self.nodes = [self._open(number) for number in range(3)]
        for node in self.nodes:
            assert node.wait_ready(30)

    def _open(self, number: int) -> Dict:
        return self._stack.enter_context(open_member(self._root, self._addresses, number, **self._arguments))

    def reopen(self, number: int) -> Dict:
        """Open it again, on the same directory and address."""
        self.nodes[number] = self._open(number)
        return self.nodes[number]

    def leader(self) -> int:
        """The number of the leader."""
        return self.nodes.index(leader_of(self.nodes))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_the_leader_is_closed(tmp_path: Path, stack: ExitStack) -> None:
    """When the leader goes the others elect one and go on; it comes back and has everything (promises 1 and 3)."""
    three = Cluster(tmp_path, stack)
    for number in range(2):
        gone = three.leader()
        rest = [node for node in three.nodes if node is not three.nodes[gone]]
        three.nodes[gone]["before", number] = 1
        three.nodes[gone].close()
        rest[0]["still works", number] = True  # waits for the election
        assert rest[1].get(("still works", number), linearizable=True) is True
        assert leader_of(rest) in rest
        back = three.reopen(gone)
        back.barrier()
        assert back == rest[0].snapshot()
        back["after", number] = 1
    in_step(three.nodes)
    expected = {(name, number): 1 for number in range(2) for name in ("before", "still works", "after")}
    assert three.nodes[0] == three.nodes[1] == three.nodes[2] == expected


def test_writers_survive_a_change_of_leader(tmp_path: Path, stack: ExitStack) -> None:
    """Writers on the nodes that stay notice but a pause: every write returns, and is there once (promise 3)."""
    three = Cluster(tmp_path, stack)
    leader = three.nodes[three.leader()]
    rest = [node for node in three.nodes if node is not leader]
    stop = threading.Event()
    written: list[Any] = []

    def write(node: Dict, name: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            assert node.add((name, number), number) is True, "applied twice"
            written.append((name, number))

    def disturb() -> None:
        try:
            wait_until(lambda: len(written) > 50, "the writers write")
            leader.close()
            closed = len(written)
            wait_until(lambda: len(written) > closed + 50, "the writers go on")
        finally:
            stop.set()

    in_threads(disturb, *(lambda node=node, name=name: write(node, name) for name, node in enumerate(rest * 4)))
    in_step(rest)
    assert rest[0] == rest[1] == {key: key[1] for key in written}


def test_a_follower_that_was_away_catches_up(tmp_path: Path, stack: ExitStack) -> None:
    """A node that was away a while gets what it missed from the log, and asks nobody for a snapshot."""
    three = Cluster(tmp_path, stack)
    away = (three.leader() + 1) % 3
    three.nodes[away].close()
    leader = leader_of([node for number, node in enumerate(three.nodes) if number != away])
    for number in range(200):
        leader[number] = number
    back = three.reopen(away)
    back.barrier()
    assert back == leader.snapshot() == {number: number for number in range(200)}
    assert host_of(back).node.engine.snapshots.installed == 0


def test_a_node_far_behind_gets_a_snapshot(tmp_path: Path, stack: ExitStack) -> None:
    """A node whose entries are gone from every log gets a snapshot, while others go on writing."""
    three = Cluster(tmp_path, stack, options=Options(log_retain=20))
    three.nodes[0].update({("old", number): [number] for number in range(500)})
    away = (three.leader() + 1) % 3
    three.nodes[away].close()
    rest = [node for number, node in enumerate(three.nodes) if number != away]
    leader = leader_of(rest)
    held = leader.status().commit_index

    def fill(name: int) -> None:
        for number in range(60):
            leader[name, number] = "x" * 20

    def compacted() -> bool:
        in_threads(*(lambda name=name: fill(name) for name in range(8)))
        return bool(host_of(leader).node.store.log.start.index > held)

    wait_until(compacted, "the log no longer reaches back to when the node left")
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            leader["live", len(written)] = len(written)
            written.append(len(written))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        back = three.reopen(away)
        wait_until(lambda: host_of(back).node.engine.snapshots.installed >= 1, "the snapshot is installed")
        before = len(written)
        wait_until(lambda: len(written) > before + 20, "writes go on")
    finally:
        stop.set()
        writer.join(60)
    back["from the one that was away"] = 1
    in_step(three.nodes)
    assert len(back) > 1000
    for node in rest:
        assert exact(back.snapshot()) == exact(node.snapshot())
        assert back.revision == node.revision
        assert [back.versioned(key) for key in back] == [node.versioned(key) for key in node]
    back.close()
    again = three.reopen(away)
    again.barrier()
    assert exact(again.snapshot()) == exact(leader.snapshot())


def test_restart_of_all(tmp_path: Path, stack: ExitStack) -> None:
    """After a restart of every node everything is there: values, order, revisions, who is who (promise 1)."""
    three = Cluster(tmp_path, stack)
    for number in range(30):
        three.nodes[number % 3][number] = [number]
    three.nodes[1].pop(7)
    three.nodes[2][3] = "again"
    in_step(three.nodes)
    before = [(key, three.nodes[0].versioned(key)) for key in three.nodes[0]]
    revision = three.nodes[0].revision
    ids = [node.status().node_id for node in three.nodes]
    term = three.nodes[0].status().term
    for _ in range(2):
        for node in three.nodes:
            node.close()
        for number in range(3):
            three.reopen(number)
        in_step(three.nodes)
        for node in three.nodes:
            assert [(key, node.versioned(key)) for key in node] == before
            assert node.revision == revision
            assert node.status().term > term
        assert [node.status().node_id for node in three.nodes] == ids
    assert three.nodes[0].set("after", 1) == revision + 1


def test_no_two_leaders_acknowledge(tmp_path: Path, stack: ExitStack) -> None:
    """One of three alone, though it was the leader, acknowledges nothing; two of three do (promise 1)."""
    three = Cluster(tmp_path, stack)
    leader = three.leader()
    first, second = (number for number in range(3) if number != leader)
    three.nodes[first].close()
    three.nodes[leader]["two"] = 1
    three.nodes[second].close()
    calls: list[Callable[[], object]] = [
        lambda: three.nodes[leader].set("one", 1, timeout=1.5),
        lambda: three.nodes[leader].get("two", linearizable=True, timeout=1.5),
    ]
    ended: list[str] = []

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
            ended.append("answered")
        except Exception as error:  # noqa: BLE001 -- it is the answer
            ended.append(type(error).__name__)

    in_threads(*(lambda call=call: attempt(call) for call in calls))
    assert "ReadTimeout" in ended and "answered" not in ended
    assert three.nodes[leader]["two"] == 1
    assert three.nodes[leader].wait_ready(0) is False
    back = three.reopen(first)
    back.barrier()
    assert back["two"] == 1


def test_a_new_disk_is_not_the_same_node(tmp_path: Path, stack: ExitStack) -> None:
    """A node that lost its directory is refused by the others, not taken for the one that voted before."""
    three = Cluster(tmp_path, stack)
    lost = (three.leader() + 1) % 3
    in_step(three.nodes)
    wait_until(lambda: all(len(node.status().connected) == 2 for node in three.nodes), "everybody met everybody")
    three.nodes[lost].close()
    (tmp_path / f"n{lost}").rename(tmp_path / "lost")
    blank = three.reopen(lost)
    assert blank.wait_ready(1.5) is False
    rest = [node for number, node in enumerate(three.nodes) if number != lost]
    rest[0]["two are enough"] = 1
    assert all(blank.status().address not in node.status().connected for node in rest)
    assert blank.status().leader is None

"""Keys that expire, on real nodes: never early, whatever becomes of leaders and processes (promise 11)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replidict import ReplicatedDict
from replidict.machine import commands as cmd
from replidict.protocol import peer_messages
from replidict.protocol.peer_messages import AppendEntries, Propose
from tests.clusters import Dict, cluster, host_of, leader_of, wait_until


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dict]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        for node in nodes:
            node.submit("thread", 0).result()  # the thread for futures is there as long as the node
        yield nodes


def gone_after(d: Dict, key: str, begun: float) -> float:
    """When a key is gone here: seconds since then."""
    wait_until(lambda: key not in d, f"{key} is gone")
    return time.monotonic() - begun


def ticks(d: Dict) -> list[int]:
    """What the `Tick` entries in a node's log say."""
    log = host_of(d).node.engine.log
    found = []
    index = log.start.index + 1
    while index <= log.last_index:
        for entry in host_of(d).node.call(lambda i=index: log.entries_from(i, 1 << 20)).result():  # type: ignore[misc]
            if isinstance(tick := cmd.decode(entry.command), cmd.Tick):
                found.append(tick.milliseconds)
            index = entry.index + 1
    return found


@pytest.mark.parametrize("how", ["set", "add", "replace", "compare_and_set", "submit", "expire"])
def test_a_key_goes_when_its_time_is_over(nodes: list[Dict], how: str) -> None:
    """Whichever call gives the ttl, on whichever node: the key is there until then, and gone on all nodes after it."""
    d, key = nodes[len(how) % 3], f"key for {how}"
    if how != "add":
        revision = d.set(key, 1)
    begun = time.monotonic()
    match how:
        case "set":
            d.set(key, 2, ttl=0.4)
        case "add":
            assert d.add(key, 2, ttl=0.4)
        case "replace":
            assert d.replace(key, 2, revision=revision, ttl=0.4)
        case "compare_and_set":
            assert d.compare_and_set(key, 1, 2, ttl=0.4)
        case "submit":
            d.submit(key, 2, ttl=0.4).result()
        case "expire":
            assert d.expire(key, 0.4)
            assert d.versioned(key) == (1, revision)
    left = d.ttl(key)
    assert left is None or left <= 0.42
    for node in nodes:
        node.barrier()  # else a node that has not heard of the key yet seems to have lost it
        assert gone_after(node, key, begun) >= 0.4
    with pytest.raises(KeyError):
        d.ttl(key)
    assert not d.expire(key, 1)


def test_what_makes_a_key_permanent(nodes: list[Dict]) -> None:
    """A plain assignment, `update` and `expire(key, None)` make a key permanent; `setdefault` and `add` change nothing
    of a key that is there."""
    d = nodes[0]
    d.set("k", 1, ttl=900)
    assert d.setdefault("k", 2) == 1
    assert not d.add("k", 2)
    assert 800 < (d.ttl("k") or 0) <= 900.1
    d["k"] = 3
    assert d.ttl("k") is None
    d.set("k", 1, ttl=900)
    d.update({"k": 4})
    assert d.ttl("k") is None
    d.set("k", 1, ttl=900)
    assert d.expire("k", None)
    assert d.ttl("k") is None
    d.set("k", 1, ttl=900)
    assert d.pop("k") == 1
    d["k"] = 5
    assert d.ttl("k") is None


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), True, "1"])
def test_what_is_no_ttl(nodes: list[Dict], ttl: Any) -> None:
    """A ttl that is no positive finite number is a `ValueError`, and nothing is changed."""
    d = nodes[0]
    revision = d.revision
    calls: list[Callable[[], object]] = [
        lambda: d.set("k", 9, ttl=ttl),
        lambda: d.expire("k", ttl),
        lambda: d.lease(ttl),
        lambda: d.lock("x", ttl=ttl),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="ttl="):
            call()
    for wrong in ({"lease": 5}, {"fence": "x"}):
        with pytest.raises(ValueError, match="must be what"):
            d.set("k", 9, **wrong)
    assert d.revision == revision


def test_without_deadlines_nothing_ticks(tmp_path: Path) -> None:
    """A dict in which nothing expires has no `Tick` in its log, and no entry that is not a write of its user."""
    with ReplicatedDict[str, int](tmp_path / "n") as d:
        d["first"] = 0
        before = d.status().commit_index
        for number in range(20):
            d[f"k{number}"] = number
        assert d.status().commit_index == before + 20
        assert ticks(d) == []
        d.set("k", 1, ttl=0.1)
        gone_after(d, "k", 0)
        count = len(ticks(d))
        assert count == 2  # one that says when it began, one that says that it is over
        for number in range(20):
            d[f"k{number}"] = number
        assert len(ticks(d)) == count
        assert host_of(d).node.expiry.next_deadline() == float("inf")


def test_a_change_of_the_leader_neither_shortens_nor_restarts(nodes: list[Dict]) -> None:
    """A ttl that three leaders count is over when it is over: not earlier, and not a whole ttl later."""
    d = nodes[0]
    begun = time.monotonic()
    d.set("k", 1, ttl=4)
    for _ in range(3):
        leader = leader_of(nodes)
        leader.transfer_leadership()
        left = nodes[0].ttl("k")
        assert left is not None
        assert left + (time.monotonic() - begun) >= 3.9
    assert gone_after(d, "k", begun) >= 4
    shown = ticks(leader_of(nodes))
    assert shown == sorted(shown)


def test_a_restart_pauses(tmp_path: Path) -> None:
    """While all nodes are down no ttl passes: what was left is left, and what was due before is not there."""
    with ReplicatedDict[str, int](tmp_path / "n") as d:
        begun = time.monotonic()
        d.set("k", 1, ttl=1.0)
        d.set("long", 1, ttl=900)
        lock = d.lock("x", ttl=900)
        assert lock.acquire()
        token = d.locks()[0].token
    down = time.monotonic()
    while time.monotonic() < down + 1.2:
        time.sleep(0.05)
    up = time.monotonic()
    with ReplicatedDict[str, int](tmp_path / "n") as d:
        assert "k" in d
        assert 800 < (d.ttl("long") or 0) <= 900.1
        assert gone_after(d, "k", begun) >= 1.0 + (up - down)
        with d.lock("x") as held:
            assert held.token > token


def test_only_the_leader_says_what_time_it_is(nodes: list[Dict], caplog: pytest.LogCaptureFixture) -> None:
    """A `Tick` that a follower proposes does not get into the log: whatever it says, nothing expires."""
    leader = leader_of(nodes)
    follower = next(node for node in nodes if node is not leader)
    follower.set("k", 1, ttl=900)
    node = host_of(follower).node
    tick = Propose(node.engine.term, cmd.encode(cmd.Tick(10**12)))
    peer = node.engine.peers[leader.status().address or ""]
    assert node.call(lambda: node.engine.outbox.send(peer, tick)).result()
    wait_until(lambda: "neither a write nor a session" in caplog.text, "the leader complains")
    follower["other"] = 1
    assert max(ticks(leader)) < 10**12
    assert "k" in leader


def test_the_release_before_reads_what_carries_the_clock() -> None:
    """0.1.0 has no clock in its messages: it reads ours without it, and its own mean that there is none."""
    known = [
        (f.name, f.type, f.default)
        for f in msgspec.structs.fields(AppendEntries)
        if f.name not in ("clock", "digest", "agreed")
    ]
    old = msgspec.defstruct(
        "AppendEntries",
        [field[:2] if field[2] is msgspec.NODEFAULT else field for field in known],
        array_like=True, frozen=True, tag=3,
    )  # fmt: skip
    ours = AppendEntries(3, 2, 1, 0, [], 1, 2.0, 3.0, 4567)
    read = msgspec.msgpack.decode(peer_messages.encode(ours), type=old)
    assert (read.term, read.age) == (3, 3.0)  # type: ignore[attr-defined]
    assert peer_messages.decode(msgspec.msgpack.encode(read)) == msgspec.structs.replace(ours, clock=0)

"""Transactions whose keys end by themselves, or that need a lock; increments beside them (promises 11 to 13)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replidict import Held, LeaseLost, LockLost, NotCommitted, ReplicatedDict, Transaction
from replidict.machine import commands as cmd
from replidict.node import feature_level
from replidict.release import FIRST, LEVEL
from tests.clusters import Dict, cluster, host_of, wait_until
from tests.test_dict import QUICK

T = Transaction[Any, Any]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dict]]:
    with cluster(tmp_path_factory.mktemp("cluster"), options=QUICK) as nodes:
        yield nodes


@pytest.fixture
def d(tmp_path: Path) -> Iterator[Dict]:
    """One open dict."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=QUICK) as opened:
        yield opened


def commands(d: Dict, after: int) -> list[cmd.Command]:
    """What stands in a node's log behind this index."""
    log = host_of(d).node.engine.log
    entries = host_of(d).node.call(lambda: log.entries_from(after + 1, 1 << 20)).result()
    return [cmd.decode(entry.command) for entry in entries]


# -- keys that end ---------------------------------------------------------------------------------------------------


def test_a_key_of_a_transaction_goes_when_its_time_is_over(nodes: list[Dict]) -> None:
    """What a transaction stores with a ttl is there until then, and gone on all nodes after it; the rest stays."""
    d = nodes[1]
    began = time.monotonic()
    with d.transaction() as t:
        t.set("short", 1, ttl=0.4)
        t.set("long", 2, ttl=900)
        t["for ever"] = 3
    assert d.ttl("for ever") is None and 800 < (d.ttl("long") or 0) <= 900.1
    for node in nodes:
        wait_until(lambda node=node: "for ever" in node, "it is heard of")  # type: ignore[misc]
        wait_until(lambda node=node: "short" not in node, "it is gone")  # type: ignore[misc]
        assert time.monotonic() - began >= 0.4
        assert (node["long"], node["for ever"]) == (2, 3)


def test_a_key_of_a_transaction_goes_with_its_lease(nodes: list[Dict]) -> None:
    """What a transaction stores with a lease is there as long as that, however it ends; the rest stays."""
    d = nodes[2]
    with d.lease() as lease:
        with d.transaction() as t:
            t.set("leased", 1, lease=lease)
            t.set("both", 1, lease=lease, ttl=900)
            t["for ever"] = 4
        assert d["leased"] == d["both"] == 1
    assert [key for key in ("leased", "both", "for ever") if key in d] == ["for ever"]


def test_time_comes_before_a_transaction_with_a_ttl(d: Dict) -> None:
    """A transaction in which a ttl stands is preceded by what time it is, so that the ttl counts from then; another one
    is not."""
    d["plain"] = 0
    before = d.status().applied_index
    with d.transaction() as t:
        t["plain"] = 1
    assert [type(each) for each in commands(d, before)] == [cmd.Batch]
    before = d.status().applied_index
    with d.transaction() as t:
        t["plain"] = 2
        t.set("k", 1, ttl=900)
    assert [type(each) for each in commands(d, before)] == [cmd.Tick, cmd.TimedBatch]


def test_what_a_transaction_makes_of_the_end_of_a_key(d: Dict) -> None:
    """As outside: a write without a ttl makes a key permanent, an increment keeps what was there; the last write of a
    key counts, and a key that is removed and stored again has nothing of what it had."""

    def plain(t: T) -> Any:
        return t.set("k", 1)

    def mortal(t: T) -> Any:
        return t.set("k", 1, ttl=900)

    def one_key(t: T) -> None:
        t.set(True, 1, ttl=900)
        t.set(1, 2)

    cases: list[tuple[Callable[[T], object], bool]] = [
        (plain, False),
        (lambda t: t.update(k=1), False),
        (lambda t: t.increment("k"), True),
        (lambda t: t.setdefault("k", 7), True),
        (lambda t: (t.increment("k"), plain(t)), False),
        (lambda t: (plain(t), t.increment("k")), False),
        (lambda t: (plain(t), mortal(t)), True),
        (lambda t: (mortal(t), plain(t)), False),
        (lambda t: (mortal(t), t.increment("k")), True),
        (lambda t: (t.pop("k"), plain(t)), False),
        (lambda t: (t.pop("k"), t.increment("k")), False),
        (lambda t: (t.pop("k"), mortal(t)), True),
        (lambda t: (t.pop("k"), mortal(t), plain(t)), False),
        (one_key, True),
    ]
    for number, (body, ends) in enumerate(cases):
        d.set("k", 0, ttl=800)
        with d.transaction() as t:
            body(t)
        left = d.ttl("k")
        assert (left is not None) == ends, number
    assert list(map(repr, d.items())) == ["('k', 0)", "(True, 2)"] and d.ttl(1) is None
    d.set("k", 0, ttl=800)
    assert d.increment("k") == 1
    assert 700 < (d.ttl("k") or 0) <= 800.1
    assert d.increment("new") == 1 and d.ttl("new") is None


def test_a_lease_that_has_ended_refuses_the_whole(nodes: list[Dict]) -> None:
    """With a lease that has ended nothing of the transaction is written; the error is a `NotCommitted`, and the body
    is not run again for it."""
    d, runs = nodes[0], []
    with d.lease() as ended, d.lease() as open_lease:
        ended.revoke()
        d.set("kept", 1, ttl=900)
        before = d.snapshot(), d.revision

        def body(t: T) -> None:
            runs.append(t["kept"])
            t.set("kept", 2)
            t.set("x", 1, lease=open_lease)
            t.set("y", 1, lease=ended)

        with pytest.raises(LeaseLost, match="has ended") as caught:
            d.transact(body)
        with pytest.raises(LeaseLost), d.transaction() as t:
            body(t)
        assert isinstance(caught.value, NotCommitted) and not isinstance(caught.value, LockLost)
        assert (d.snapshot(), d.revision, runs) == (*before, [1, 1])
        assert d.ttl("kept") is not None


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), True, "1"])
def test_what_is_no_ttl_in_a_transaction(d: Dict, ttl: Any) -> None:
    """What is no ttl, lease or lock is refused where it is given, and nothing is written of what the body caught."""

    def never_called(t: T) -> None:
        pytest.fail("it was called")

    with d.transaction() as t:
        t["a"] = 1
        with pytest.raises(ValueError, match="ttl="):
            t.set("a", 2, ttl=ttl)
        with pytest.raises(ValueError, match="lease="):
            t.set("a", 2, lease=ttl)
    assert d.snapshot() == {"a": 1}
    for call in (lambda: d.transact(never_called, fence=ttl), lambda: d.transaction(fence=ttl).__enter__()):
        with pytest.raises(ValueError, match="fence="):
            call()


# -- fences ----------------------------------------------------------------------------------------------------------


def released(one: Dict, two: Dict) -> Held:
    with one.lock("fence") as held:
        pass
    return held


def broken(one: Dict, two: Dict) -> Held:
    held = one.lock("fence").__enter__()
    assert two.break_lock("fence", token=held.token)
    return held


@pytest.mark.parametrize("lose", [released, broken])
def test_a_transaction_with_a_fence_is_decided_in_the_log(
    nodes: list[Dict], lose: Callable[[Dict, Dict], Held]
) -> None:
    """It is written while the lock is held, and refused as a whole with `LockLost` once it is not, whatever the holder
    believes; `transact` does not try that again."""
    one, two = nodes[0], nodes[1]
    with one.lock("fence") as held:
        with one.transaction(fence=held) as t:
            t["f"], t["g"] = 1, 1
        assert one.transact(lambda t: t.increment("f"), fence=held) == 2
        assert (one["f"], one["g"]) == (2, 1)
    held, runs = lose(one, two), []
    with two.lock("fence"):
        before = one.snapshot(), one.revision

        def body(t: T) -> None:
            runs.append(1)
            t.set("f", 9, ttl=900)
            t["h"] = t.pop("g")

        with pytest.raises(LockLost, match="token") as caught:
            one.transact(body, fence=held)
        with pytest.raises(LockLost, match="token"), one.transaction(fence=held) as t:
            body(t)
        assert isinstance(caught.value, NotCommitted)
        one.barrier()
        assert (one.snapshot(), one.revision, len(runs)) == (*before, 2) and one.ttl("f") is None


def test_a_fence_does_not_hide_a_conflict(nodes: list[Dict]) -> None:
    """With the lock held, a body whose reads are not current any more runs again as ever."""
    d, runs = nodes[0], []
    d["f"] = 0

    def body(t: T) -> None:
        runs.append(t["f"])
        if len(runs) == 1:
            nodes[1].set("f", 5)
            d.barrier()
        t["f"] = t["f"] + 1

    with d.lock("fence") as held:
        d.transact(body, fence=held)
    assert (runs, d["f"]) == ([0, 5], 6)


# -- what others see -------------------------------------------------------------------------------------------------


def test_watchers_see_a_transaction_as_one_change(nodes: list[Dict]) -> None:
    """On every node all changes of a transaction come at once, in order, each with what was there before it."""
    d = nodes[0]
    d.update({"w/a": 1, "w/b": 2})
    for node in nodes:
        node.barrier()
    watches = [node.watch(prefix="w/") for node in nodes]
    with d.transaction() as t:
        t["w/b"] = 3
        t["unseen"] = 1
        t.set("w/c", 4, ttl=900)
        t.increment("w/c", 5)
        del t["w/a"]
        t["w/a"] = 6
    expected = [
        ("set", "w/b", 3, 2), ("set", "w/c", 4, None), ("set", "w/c", 9, 4), ("delete", "w/a", None, 1),
        ("set", "w/a", 6, None),
    ]  # fmt: skip
    for watch in watches:
        with watch:
            change = watch.next(60)
            assert change is not None and (change.revision, change.kind) == (t.revision, "changes")
            assert [(e.kind, e.key, e.value, e.previous) for e in change.events] == expected
            assert {e.revision for e in change.events} == {t.revision}
            assert watch.next(0) is None


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    """What a transaction attached to time is still attached when the node comes again."""
    with ReplicatedDict[Any, Any](tmp_path, options=QUICK) as d, d.transaction() as t:
        t.set("short", 1, ttl=1.5)
        t.set("long", 2, ttl=900)
        t["for ever"] = 3
    with ReplicatedDict[Any, Any](tmp_path, options=QUICK) as d:
        d.barrier()
        assert d.ttl("for ever") is None and 800 < (d.ttl("long") or 0) <= 900.1
        wait_until(lambda: "short" not in d, "it is gone")
        assert list(d) == ["long", "for ever"]


# -- among members of the last release -------------------------------------------------------------------------------


def test_on_level_1_it_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster with members of the last release increments, transactions, ttls, leases and locks are refused as
    `NotCommitted`, which says what is needed, and change nothing; when the level is raised, they work."""

    def each_of(d: Dict) -> list[Callable[[], object]]:
        return [
            lambda: d.increment("n"),
            lambda: d.transact(lambda t: t.set("t", t.get("t", 0) + 1)),
            lambda: d.transaction().__enter__().set("never", "sent"),
            lambda: d.set("k", 1, ttl=900),
            lambda: d.expire("plain", 900),
            lambda: d.lease().revoke(),
        ]

    with monkeypatch.context() as patch:
        patch.setattr(feature_level, "THIS", FIRST)
        with ReplicatedDict[Any, Any](tmp_path, options=QUICK, timeout=5) as d:
            d["plain"] = 1
            before = d.snapshot(), d.revision
            for number, call in enumerate(each_of(d)):
                if number == 2:
                    call()  # a transaction that never ends
                    continue
                with pytest.raises(NotCommitted, match=r"needs feature level 2.*has level 1"):
                    call()
            with pytest.raises(Exception, match="feature level 2"), d.lock("x", ttl=5):
                pytest.fail("entered without the lock")
            assert (d.snapshot(), d.revision) == before and d.status().feature_level == 1
    with ReplicatedDict[Any, Any](tmp_path, options=QUICK) as d:
        wait_until(lambda: d.status().feature_level == LEVEL, "the level is raised")
        for call in each_of(d):
            call()
        with d.lock("x") as held:
            d.transact(lambda t: t.increment("n"), fence=held)
        assert d.snapshot() == {"plain": 1, "n": 2, "t": 1, "k": 1}

"""Watches on real dicts: `watch`, what it begins with, what it gives, and how it ends."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replidict import (
    Change,
    ClosedError,
    EncodingError,
    Event,
    HistoryLost,
    Options,
    ReplicatedDict,
    Watch,
)
from replidict.api.watched_changes import ANY
from tests.clusters import Dict, alone, cluster, credentials, host_of, leader_of, wait_until

PATIENCE = 60.0  # seconds


@pytest.fixture(params=["own", "attached"])
def d(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dict]:
    with alone(tmp_path / "alone", request.param, timeout=PATIENCE) as opened:
        yield opened


def rest(watch: Watch[Any, Any]) -> list[Change[Any, Any]]:
    """All that is there to be read."""
    return list(iter(lambda: watch.next(0), None))


def fold(state: dict[Any, Any], changes: list[Change[Any, Any]]) -> dict[Any, Any]:
    """What a dict becomes by changes; the values before must be right."""
    for change in changes:
        if change.kind == "snapshot":
            state.clear()
        for event in change.events:
            assert change.kind == "snapshot" or event.previous == state.get(event.key)
            if event.kind == "set":
                state[event.key] = event.value
            else:
                del state[event.key]
    return state


def test_each_change_once_in_order_with_the_value_before(d: Dict) -> None:
    """A watch tells every way to change a key, with value and previous value, one `Change` a command."""
    d["old"] = 0
    with d.watch() as watch:
        assert watch.revision == d.revision == 1
        assert d.set("a", 1) == 2
        d.setdefault("b", [1])
        d.setdefault("b", [2])  # changes nothing
        assert d.add("a", 5) is False  # nor does this
        assert d.compare_and_set("a", 1, 2)
        assert d.replace("a", 3, revision=4)
        d.update({"a": 4, "c": 1})
        assert d.pop("a") == 4
        d.popitem()
        del d["b"]
        d.update({})
        d.clear()
        told = rest(watch)
    assert [(change.revision, change.kind) for change in told] == [(number, "changes") for number in range(2, 11)]
    assert [tuple(event[:4] for event in change.events) for change in told] == [
        (("set", "a", 1, None),),
        (("set", "b", [1], None),),
        (("set", "a", 2, 1),),
        (("set", "a", 3, 2),),
        (("set", "a", 4, 3), ("set", "c", 1, None)),
        (("delete", "a", None, 4),),
        (("delete", "c", None, 1),),
        (("delete", "b", None, [1]),),
        (("delete", "old", None, 0),),
    ]
    assert all(event.revision == change.revision for change in told for event in change.events)


def test_one_key_or_a_prefix(d: Dict) -> None:
    """Only changes of what is watched are told, keys are equal as in a dict, and of a command the rest is left out."""
    with d.watch(1) as one, d.watch(prefix="a/") as some, d.watch(prefix="") as texts:
        d[True] = "x"
        d.update({"a/1": 1, "b": 2, "a/2": 3, 1.0: "y"})
        del d[1]
        assert [change.events for change in rest(one)] == [
            (Event("set", True, "x", None, 1),),
            (Event("set", True, "y", "x", 2),),
            (Event("delete", True, None, "y", 3),),
        ]
        assert [[event.key for event in change.events] for change in rest(some)] == [["a/1", "a/2"]]
        assert [[event.key for event in change.events] for change in rest(texts)] == [["a/1", "b", "a/2"]]


def test_what_was_acknowledged_can_be_read_at_once(d: Dict) -> None:
    """When a write returns, its change is there to be read on this node; a watch that has nothing to tell has moved on
    to what is applied."""
    with d.watch() as all_keys, d.watch("other") as other:
        for number in range(300):
            revision = d.set("k", number)
            change = all_keys.next(0)
            assert change is not None and change.revision == revision == all_keys.revision
            assert other.next(0) is None and other.revision == revision
        assert all_keys.next(0) is None


def test_next_waits_for_a_change_and_no_longer(d: Dict) -> None:
    """`next` wakes for a change, and gives None when there was none within the timeout."""
    with d.watch("k") as watch:
        assert watch.next(0.01) is None
        threading.Timer(0.05, d.set, ("k", 1)).start()
        change = watch.next(PATIENCE)
        assert change is not None and change.events[0].value == 1
        for wrong in (-1, "1", True, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                watch.next(wrong)  # type: ignore[arg-type]


def test_arguments_are_checked(d: Dict) -> None:
    """What makes no sense is refused, by name, and nothing stays open."""
    for arguments in (
        {"prefix": 1}, {"key": "a", "prefix": "b"}, {"after": -1}, {"after": True}, {"after": "1"}, {"after": 2**63},
        {"after": 1, "snapshot": True},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"prefix|after"):
            d.watch(**arguments)
    with pytest.raises(EncodingError):
        d.watch([])
    assert d.status().watchers == 0
    with d.watch(), d.watch("a"):
        assert d.status().watchers == 2
    assert d.status().watchers == 0


def test_a_snapshot_and_what_follows_have_no_gap(d: Dict) -> None:
    """Watches that begin with the state while others write end up with the state, and no value before is wrong."""
    stop = threading.Event()

    def write(name: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            d.update({(name, number % 7): number, "both": (name, number)})
            d.pop((name, number % 5), None)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    watches = [d.watch(snapshot=True) for _ in range(20)]
    wait_until(lambda: d.revision > watches[-1].revision + 50, "there are more writes")
    stop.set()
    for thread in threads:
        thread.join()
    for watch in watches:
        told = rest(watch)
        assert [change.kind for change in told] == ["snapshot"] + ["changes"] * (len(told) - 1)
        assert fold({}, told) == d.snapshot()
        assert [change.revision for change in told] == list(range(told[0].revision, d.revision + 1))
        watch.close()
    with d.watch("both", snapshot=True) as watch:
        assert rest(watch)[0].events[0][:3] == ("set", "both", d["both"])
    with d.watch("absent", snapshot=True) as watch:
        assert rest(watch)[0].events == ()


def test_closing_a_watch_ends_it(d: Dict) -> None:
    """Iteration ends quietly, also while it waits in another thread; `next` raises `ClosedError`."""
    watch = d.watch()
    d["a"] = 1
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(watch))
    thread.start()
    wait_until(lambda: bool(found), "the iteration has begun")
    watch.close()
    thread.join(PATIENCE)
    assert len(found) == 1
    assert list(watch) == []
    with pytest.raises(ClosedError, match="watch is closed"):
        watch.next()
    watch.close()
    assert "closed" in repr(watch)


def test_closing_the_dict_ends_watches(tmp_path: Path) -> None:
    """Both ways to read raise `ClosedError` when the dict is closed, also where they wait; none can be opened."""
    d: Dict = ReplicatedDict(tmp_path / "d")
    watch, other = d.watch(), d.watch("k")
    errors: list[ClosedError] = []

    def wait(read: Any) -> None:
        try:
            read()
        except ClosedError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait, args=(read,)) for read in (watch.next, lambda: list(other))]
    for thread in threads:
        thread.start()
    d["a"] = 1
    threads[0].join(PATIENCE)
    d.close()
    threads[1].join(PATIENCE)
    assert [type(error) for error in errors] == [ClosedError]
    for read in (watch.next, lambda: next(other), d.watch):
        with pytest.raises(ClosedError, match="ReplicatedDict is closed"):
            read()
    watch.close()
    other.close()


def test_a_forgotten_watch_is_named_and_ends(d: Dict) -> None:
    """Who forgets to close a watch gets a `ResourceWarning`; neither a closed one nor one of a closed dict is named."""
    watch: Watch[Any, Any] = d.watch("settings")
    gone = weakref.ref(watch)
    assert watch.next(0) is None
    holder = [watch]
    del watch
    with pytest.warns(ResourceWarning, match="'settings'.* was not closed"):
        holder.clear()
    gc.collect()
    assert gone() is None and d.status().watchers == 0
    closed = d.watch()
    closed.close()
    of_closed = d.watch()
    d.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del closed, of_closed
        gc.collect()


def test_a_signal_handler_may_close_what_waits(d: Dict) -> None:
    """A handler that closes the very watch in which the main thread waits, and opens others, ends the wait."""
    watch = d.watch()

    def handle(*_: object) -> None:
        with d.watch(snapshot=True) as other:
            assert other.next(PATIENCE) is not None
        watch.close()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert list(watch) == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_forked_child_has_no_watch(d: Dict) -> None:
    """In a child a watch of the parent's dict says so, as the dict does."""
    with d.watch() as watch:
        child = os.fork()
        if child == 0:
            try:
                watch.next(0)
            except ClosedError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        d["a"] = 1
        assert watch.next(PATIENCE) is not None


def test_a_watcher_that_is_too_slow_is_told(tmp_path: Path) -> None:
    """What is dropped before it was read is a `HistoryLost`, again and again, with where to go on; `resync` gives the
    state instead."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=Options(history_entries=10)) as d:
        plain, again = d.watch(), d.watch(resync=True)
        for number in range(25):
            d[number % 4] = number
        for _ in range(2):
            with pytest.raises(HistoryLost, match="resync=True") as lost:
                plain.next(0)
        assert (lost.value.oldest, lost.value.current) == (15, 25)
        assert isinstance(lost.value, LookupError)
        with d.watch(after=lost.value.oldest) as later:
            assert [change.revision for change in rest(later)] == list(range(16, 26))
        with pytest.raises(HistoryLost):
            d.watch(after=lost.value.oldest - 1)
        changes = rest(again)
        assert [(change.revision, change.kind) for change in changes] == [(25, "snapshot")]
        with d.watch(after=0, resync=True) as late:
            assert fold({}, rest(late)) == fold({}, changes) == d.snapshot()
        d["more"] = 1
        assert [change.revision for change in rest(again)] == [26]
        plain.close()
        again.close()


def test_clearing_more_than_the_history_holds(tmp_path: Path) -> None:
    """`clear` of more keys than the history may hold is never half told, and keeps none of them: it is lost, or a
    snapshot of nothing."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=Options(history_entries=100)) as d:
        d.update(dict.fromkeys(range(101), "x"))
        with d.watch() as plain, d.watch("k") as key, d.watch(resync=True) as again:
            d.clear()
            d["k"] = 1
            for watch in (plain, key):
                with pytest.raises(HistoryLost):
                    watch.next(0)
            assert [(change.kind, len(change.events)) for change in rest(again)] == [("snapshot", 1)]
            assert sum(len(piece.changes) for piece in host_of(d).node.history._pieces.values()) == 1


def test_going_on_with_another_node(tmp_path: Path) -> None:
    """A revision is the same everywhere: `after=` on another node tells exactly what follows, also when that node is
    behind; and all see the same sequence."""
    with cluster(tmp_path, timeout=PATIENCE) as nodes:
        watches = [node.watch(after=0) for node in nodes]
        for number in range(30):
            nodes[number % 3].update({number % 5: number, "n": number})
        first = [watches[0].next(PATIENCE) for _ in range(10)]
        assert first[-1] is not None
        revision = watches[0].revision
        with nodes[1].watch(after=revision) as moved:
            later = [moved.next(PATIENCE) for _ in range(20)]
        for node in nodes:
            node.barrier()
        told = [rest(watch) for watch in watches]
        assert first + told[0] == told[1] == told[2] == first + later
        ahead = nodes[2].watch(after=30 + 2)
        for number in range(4):
            nodes[0][number] = "later"
        assert [change.revision for change in (ahead.next(PATIENCE), ahead.next(PATIENCE)) if change] == [33, 34]
        for watch in (*watches, ahead):
            watch.close()


def test_an_election_is_not_noticed(tmp_path: Path) -> None:
    """While the leader closes and comes back, watches of the others miss nothing; its own go on after its restart."""
    with cluster(tmp_path, timeout=PATIENCE) as nodes:
        addresses = sorted(str(node.status().address) for node in nodes)
        leader = leader_of(nodes)
        leader.set("k", 0)
        others = [node for node in nodes if node is not leader]
        for node in others:
            node.barrier()
        watches = [node.watch() for node in others]
        mine = leader.watch()
        seen = mine.revision
        number = next(n for n in range(3) if (tmp_path / f"n{n}") == host_of(leader).directory.path)
        address = str(leader.status().address)
        leader.close()
        for value in range(1, 11):
            others[value % 2]["k"] = value
        peers = [each for each in addresses if each != address]
        again: Dict = ReplicatedDict(
            tmp_path / f"n{number}", address=address, peers=peers, timeout=PATIENCE, **credentials()
        )
        with again, again.watch(after=seen) as resumed:
            for watch in (*watches, resumed):
                told = [watch.next(PATIENCE) for _ in range(10)]
                assert [change and change.events[0][2:4] for change in told] == [(n, n - 1) for n in range(1, 11)]
                watch.close()
        mine.close()


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """After a clean restart `after=` the last revision goes on; from before that, nothing is left out in silence."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        for number in range(5):
            d["k"] = number
        revision = d.revision
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        with d.watch(after=revision) as watch:
            d["k"] = 5
            assert [change.events[0][:4] for change in rest(watch)] == [("set", "k", 5, 4)]
        try:
            with d.watch(after=2) as early:
                assert [change.revision for change in rest(early)] == [3, 4, 5, 6]
        except HistoryLost as lost:
            assert lost.oldest > 2  # noqa: PT017


def test_values_are_decoded_by_who_reads(tmp_path: Path) -> None:
    """The codec of the dict decodes, in the thread of the watcher; each watcher gets values of its own; one that can't
    be decoded is an error, not a gap."""
    decoded: list[threading.Thread] = []

    class Codec:
        broken = False

        def encode(self, value: Any) -> bytes:
            return str(value).encode()

        def decode(self, data: bytes) -> list[str]:
            if self.broken:
                raise EncodingError("not on this machine")
            decoded.append(threading.current_thread())
            return [data.decode()]

    codec = Codec()
    with ReplicatedDict[Any, Any](tmp_path / "d", codec=codec) as d, d.watch() as one, d.watch() as two:
        d["k"] = "x"
        codec.broken = True
        with pytest.raises(EncodingError):
            one.next(0)
        codec.broken = False
        values = [change.events[0].value for watch in (one, two) if (change := watch.next(0))]
        assert values == [["x"], ["x"]] and values[0] is not values[1]
        assert set(decoded) == {threading.current_thread()}


def test_a_slow_watcher_holds_up_nobody(d: Dict) -> None:
    """A watcher that sits on a change holds up neither writes nor other watchers."""
    with d.watch() as slow, d.watch() as quick:
        d["a"] = 1
        assert slow.next(PATIENCE) is not None
        for number in range(100):
            d["a"] = number
        assert len(rest(quick)) == 101
        assert len(rest(slow)) == 100


@pytest.mark.parametrize("key", [ANY, "k0"], ids=["all", "one key"])
def test_a_snapshot_that_nobody_takes_hides_no_loss(tmp_path: Path, key: Any) -> None:
    """What is dropped before the snapshot of a watch is taken is told as lost, and not passed over."""
    with ReplicatedDict[str, int](tmp_path / "d", options=Options(history_entries=10)) as d:
        d["k0"] = 0
        with d.watch(key, snapshot=True) as watch:
            for number in range(50):
                d[f"k{number}"] = number
            change = watch.next(0)
            assert change is not None and change.kind == "snapshot" and len(change.events) == 1
            with pytest.raises(HistoryLost):
                watch.next(0)

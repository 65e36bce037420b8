"""The history of a node: what cursors read of it, whatever is written, dropped and installed meanwhile."""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replidict.errors import HistoryLost
from replidict.machine import commands as cmd
from replidict.machine.changes import KeyChange, Session
from replidict.machine.codec import DEFAULT_CODEC, decode, decode_key, encode, encode_key
from replidict.machine.equality import place_of
from replidict.machine.state_machine import StateMachine
from replidict.node.history import CHANGE_BYTES, Cursor, History
from replidict.node.waiters import Interest

KEYS: list[Hashable] = ["a", "ab", "abc", "b", "", 1, True, 1.0, b"a", ("a", 1)]
INTERESTS = [
    Interest(),
    *(Interest(prefix=prefix) for prefix in ("", "a", "ab", "b")),
    *(Interest(key=frozenset((place_of(key),))) for key in ("a", "abc", 1, b"a", ("a", 1))),
]

Told = tuple[str, Any, Any, Any]  # kind, key, value, previous


class Model:
    """A plain dict, and all that ever happened to it."""

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}
        self.told: list[list[Told] | None] = [[]]  # by revision; None: nobody can know

    def set(self, pairs: list[tuple[Any, Any]]) -> None:
        events: list[Told] = []
        for key, value in pairs:
            stored = next((each for each in self.items if each == key), key)
            events.append(("set", stored, value, self.items.get(key)))
            self.items[key] = value
        self.told.append(events)

    def remove(self, keys: list[Any]) -> None:
        stored = [next(each for each in self.items if each == key) for key in keys]
        self.told.append([("delete", key, None, self.items.pop(key)) for key in stored])


class World:
    """A machine, its history, its model and cursors, driven by one list of commands."""

    def __init__(self, entries: int, most_bytes: int, tell_at_most: int) -> None:
        self.machine = StateMachine(DEFAULT_CODEC, tell_at_most)
        self.history = History(self.machine, entries, most_bytes)
        self.tell_at_most = tell_at_most
        self.model = Model()
        self.index = self.sequence = 0
        self.apply(cmd.OpenSession(b"0" * 16))
        self.session = self.index
        self.reader_of: list[Reader] = []

    def apply(self, command: cmd.Command) -> None:
        self.index += 1
        self.machine.apply(self.index, cmd.encode(command))

    def batch(self, operations: list[cmd.Operation]) -> None:
        self.sequence += 1
        self.apply(cmd.Batch(self.session, self.sequence, self.sequence - 1, operations))

    def operation(self, what: tuple[Any, ...]) -> cmd.Operation:
        kind, *rest = what
        model = self.model
        if kind == "put":
            key, value = rest
            model.set([(key, value)])
            return cmd.Put(encode_key(key), encode(value))
        if kind == "update":
            pairs = rest[0]
            model.set(pairs)
            return cmd.Update([(encode_key(key), encode(value)) for key, value in pairs])
        if kind == "delete":
            if rest[0] in model.items:
                model.remove([rest[0]])
            return cmd.Delete(encode_key(rest[0]))
        if kind == "clear":
            count = len(model.items)
            if count:
                model.remove(list(model.items))
                if count > self.tell_at_most:
                    for revision, told in enumerate(model.told):
                        model.told[revision] = None if told else told
            return cmd.Clear()
        assert kind == "add"
        if rest[0] not in model.items:
            model.set([(rest[0], rest[1])])
        return cmd.Add(encode_key(rest[0]), encode(rest[1]))

    def jump(self) -> None:
        """Install a snapshot of a later state that was made elsewhere."""
        items = dict.fromkeys(list(self.model.items)[:3], f"elsewhere {self.index}")
        self.model.items = items
        self.model.told += [None, None]
        rows = [(n + 1, encode_key(key), encode(value), n + 1) for n, (key, value) in enumerate(items.items())]
        sessions = [(self.session, Session(self.sequence, self.index, ()))]
        self.index += 1
        revision = len(self.model.told) - 1
        self.machine.load(rows, sessions, index=self.index, revision=revision, next_position=100)
        self.history.begin_anew()

    def lost(self, interest: Interest, revision: int) -> bool:
        """Is something of interest behind this revision dropped?"""
        return any(
            told is None or any(interest.covers(place_of(key)) for _, key, _, _ in told)
            for told in self.model.told[revision + 1 : self.history.oldest + 1]
        )


class Reader:
    """A cursor, and what it must find."""

    def __init__(self, world: World, interest: Interest, after: int) -> None:
        self.world, self.interest, self.last = world, interest, after
        self.woken = True
        self.ahead = after > world.history.newest
        self.cursor = Cursor(world.history, interest, self._wake, after)

    def _wake(self) -> None:
        self.woken = True

    def read(self) -> bool:
        world = self.world
        lost = world.lost(self.interest, self.last)
        found: Any = None
        told_lost: HistoryLost | None = None
        try:
            found = self.cursor.read()
        except HistoryLost as error:
            told_lost = error
        if told_lost is not None:
            # One that waits for a later state than this node had is told by what comes before it, too.
            assert lost or self.ahead, f"{self.interest} at {self.last}: {told_lost}"
            assert told_lost.oldest == world.history.oldest and told_lost.current == world.machine.revision
            assert self.woken
            self.last = told_lost.current
            self.cursor.restart(self.last)
            self.ahead = False
            return True
        assert not lost, f"{self.interest} at {self.last}: nothing was said of a loss"
        wanted = (
            (revision, [told for told in all_told or () if self.interest.covers(place_of(told[1]))])
            for revision, all_told in enumerate(world.model.told)
            if revision > self.last and revision <= world.history.newest
        )
        expected = next((each for each in wanted if each[1]), None)
        if found is None:
            assert expected is None
            assert self.cursor.revision == max(self.last, world.history.newest)
            self.last = self.cursor.revision
            self.woken = False
            return False
        assert self.woken, "there was something to read, and nobody said so"
        assert (found.revision, list(map(plain, found.changes))) == expected
        again = self.cursor.read()
        assert again is not None and again.changes == found.changes, "it is not read before it was passed"
        self.cursor.passed(found)
        assert self.cursor.revision == found.revision
        self.last = found.revision
        return True


def plain(change: KeyChange) -> Told:
    _, kind, _, key, value, previous = change
    optional = (None if data is None else decode(data) for data in (value, previous))
    new, old = optional
    return kind, decode_key(key), new, old


keys = st.sampled_from(KEYS)
values = st.one_of(st.integers(0, 9), st.sampled_from(["x" * 50, "y" * 400]))
operations = st.one_of(
    st.tuples(st.just("put"), keys, values),
    st.tuples(st.just("update"), st.lists(st.tuples(keys, values), min_size=1, max_size=6)),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("add"), keys, values),
    st.tuples(st.just("clear")),
)
steps = st.one_of(
    st.tuples(st.just("batch"), st.lists(operations, min_size=1, max_size=5)),
    st.tuples(st.just("batch"), st.lists(operations, min_size=1, max_size=5)),
    st.tuples(st.just("read"), st.integers(0, 5), st.integers(1, 8)),
    st.tuples(st.just("open"), st.sampled_from(INTERESTS), st.integers(-3, 3)),
    st.tuples(st.just("close"), st.integers(0, 5)),
    st.tuples(st.just("jump")),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(steps, min_size=5, max_size=60),
    st.sampled_from([1, 3, 10, 1_000]),
    st.sampled_from([700, 2_500, 1 << 20]),
    st.sampled_from([2, 1_000]),
)
def test_every_cursor_reads_all_or_is_told(script: list[Any], entries: int, most_bytes: int, tell_at_most: int) -> None:
    """Whatever is written, dropped or installed: a cursor reads each change of interest once, in order, whole commands
    with the values before, and is woken for it; or it is told that one is lost, and only if one is."""
    world = World(entries, most_bytes, tell_at_most)
    readers = world.reader_of
    for name, *rest in script:
        if name == "batch":
            world.batch([world.operation(what) for what in rest[0]])
            world.history.follow()
            world.history.wake()
            assert world.machine.revision == world.history.newest == world.history.announced
        elif name == "jump":
            world.jump()
            world.history.wake()
        elif name == "open":
            after = max(world.machine.revision + rest[1], 0)
            if after < world.history.oldest:
                with pytest.raises(HistoryLost):
                    Reader(world, rest[0], after)
            else:
                readers.append(Reader(world, rest[0], after))
        elif name == "close" and len(readers) > rest[0]:
            readers.pop(rest[0]).cursor.close()
        elif name == "read" and len(readers) > rest[0]:
            for _ in range(rest[1]):
                readers[rest[0]].read()
        assert world.history.watchers == len(readers)
    for reader in readers:
        while reader.read():
            pass
        reader.cursor.close()
    world.history.wake()
    assert not world.history.waiters.waiting, "who is closed is let go of"


def test_what_nobody_reads_costs_no_more_than_the_bounds() -> None:
    """A watcher that never reads holds nothing: the history stays within its bounds, with and without it."""
    world = World(1_000_000, 1 << 20, 1_000)
    idle = Reader(world, Interest(), 0)
    for number in range(2_000):
        world.batch([cmd.Put(encode_key("k"), encode(str(number) + "x" * 10_000))])
        world.history.follow()
    kept = list(world.history._pieces.values())
    held = sum(len(change[5] or b"") + CHANGE_BYTES for piece in kept for change in piece.changes)
    assert len(kept) > 50 and held <= 1 << 20
    with pytest.raises(HistoryLost):
        idle.cursor.read()


def test_waiting_is_never_slow() -> None:
    """A watcher of one key loses nothing, however often the others have filled the history meanwhile; nor does who has
    read one change of it and takes its time."""
    world = World(10, 1 << 20, 1_000)
    waits, took = (Reader(world, Interest(key=frozenset(("k",))), 0) for _ in range(2))
    world.batch([world.operation(("put", "k", 1))])
    world.history.follow()
    assert took.read()
    assert waits.read() and not waits.read()
    for number in range(100):
        world.batch([world.operation(("put", number, 1))])
        world.history.follow()
    world.batch([world.operation(("put", "k", 2))])
    world.history.follow()
    world.history.wake()
    for reader in (waits, took):
        assert reader.read() and not reader.read()


def test_many_watches_of_single_keys_cost_what_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write looks up its own key and asks nobody else: of 10,000 that watch other keys none is even looked at."""
    world = World(1_000, 1 << 20, 1_000)
    others = [Reader(world, Interest(key=frozenset((number,))), 0) for number in range(10_000)]
    mine = Reader(world, Interest(key=frozenset(("k",))), 0)
    prefixed = Reader(world, Interest(prefix="k"), 0)
    for reader in (*others, mine, prefixed):
        assert not reader.read()
    world.history.wake()
    asked: list[Hashable] = []
    covers = Interest.covers

    def counted(self: Interest, key: Hashable) -> bool:
        asked.append(key)
        return covers(self, key)

    monkeypatch.setattr(Interest, "covers", counted)
    world.batch([cmd.Put(encode_key("k"), encode(1))])
    world.history.follow()
    world.history.wake()
    assert asked == []
    assert [reader.woken for reader in (mine, prefixed)] == [True, True]
    assert not any(reader.woken for reader in others)


@pytest.mark.parametrize("number", range(3))
def test_readers_in_other_threads(number: int) -> None:
    """Readers at full speed in threads of their own see each revision once, in order, while another thread writes; the
    interpreter switches as often as it can."""
    world = World(1_000_000, 1 << 30, 1_000)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    found: list[list[int]] = [[] for _ in range(3)]
    bells = [threading.Semaphore(0) for _ in found]
    writes = 1_500
    interests = [Interest(), Interest(prefix="k"), Interest(key=frozenset(("k1",)))]

    def read(which: int) -> None:
        cursor = Cursor(world.history, interests[which], bells[which].release, 0)
        wanted = writes if which < 2 else writes // 3
        while len(found[which]) < wanted:
            told = cursor.read()
            if told is None:
                assert bells[which].acquire(timeout=30), f"{which}: nobody woke it after {len(found[which])}"
            else:
                found[which].append(told.revision)
                cursor.passed(told)

    threads = [threading.Thread(target=read, args=(which,)) for which in range(3)]
    try:
        for thread in threads:
            thread.start()
        for each in range(writes):
            world.batch([cmd.Put(encode_key(f"k{each % 3}"), encode(each))])
            world.history.follow()
            world.history.wake()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert found[0] == found[1] == list(range(1, writes + 1))
    assert found[2] == list(range(2, writes + 1, 3))


def test_a_wake_up_in_the_middle_of_anything() -> None:
    """Closing from within a wake-up, as a signal handler or the collector may, disturbs nobody: no lock is held."""
    world = World(100, 1 << 20, 1_000)
    others = [Reader(world, Interest(), 0) for _ in range(3)]
    closing = Cursor(world.history, Interest(), lambda: closing.close(), 0)
    for reader in others:
        reader.read()
    closing.read()
    world.batch([world.operation(("put", "k", 1))])
    world.history.follow()
    world.history.wake()
    assert closing.closed
    assert all(reader.read() for reader in others)

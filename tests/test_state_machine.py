"""The state machine is total, deterministic and applies each batch once, with no node around it (promises 3 and 5)."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Hashable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict.errors import EncodingError, StorageError
from replidict.machine import commands as cmd
from replidict.machine import state_machine
from replidict.machine.changes import Item, Session
from replidict.machine.codec import DEFAULT_CODEC, encode, encode_key
from replidict.machine.outcomes import BatchApplied, Outcome, Refusal, SessionOpened
from replidict.machine.state_machine import StateMachine
from replidict.protocol.log_entry import Entry
from replidict.storage import state_table
from replidict.storage import store as store_module
from replidict.storage.directory import Directory, connect, founded_by
from replidict.storage.log import Log
from replidict.storage.store import Store
from tests.simulator import guards

NONCE = b"n" * 16
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Hundreds of small files are made here, and none has to outlive the test."""


def opened(sessions: int = 1) -> StateMachine:
    """A machine with so many sessions: 1, 2, ..."""
    machine = StateMachine(DEFAULT_CODEC)
    for index in range(1, sessions + 1):
        machine.apply(index, cmd.encode(cmd.OpenSession(NONCE)))
    return machine


def batch(sequence: int, *operations: cmd.Operation, session: int = 1, acknowledged: int = 0) -> bytes:
    return cmd.encode(cmd.Batch(session, sequence, acknowledged, list(operations)))


def apply_next(machine: StateMachine, command: bytes) -> Outcome:
    return machine.apply(machine.applied_index + 1, command)


def results(machine: StateMachine, command: bytes) -> list[cmd.Result] | Refusal:
    """Apply a batch; its results."""
    outcome = apply_next(machine, command)
    assert isinstance(outcome, BatchApplied)
    return outcome.results


def put(key: Any, value: Any) -> cmd.Put:
    return cmd.Put(encode_key(key), encode(value))


def everything(machine: StateMachine) -> tuple[Any, ...]:
    """All that makes a state: two machines are equal exactly when this is."""
    return (
        [(type(key), key, item) for key, item in machine.items.items()],
        machine.revision,
        machine.applied_index,
        list(machine.sessions.items()),
        machine.take_changes().next_position,
    )


def content(machine: StateMachine) -> tuple[Any, ...]:
    """The map alone."""
    return list(machine.items.items()), machine.revision


# -- commands at random ---------------------------------------------------------------------------------------------

_keys = st.sampled_from([1, True, 1.0, "a", "b", (1, "x"), (True, "x"), None]).map(encode_key)
_values = st.sampled_from([0, 1, True, "v", [1], None]).map(encode)
_garbage = st.one_of(st.binary(max_size=6), st.sampled_from([b"", b"\xc1", encode([1]), encode(float("nan")), b"\xc4"]))
_any_keys = st.one_of(_keys, _keys, _keys, _garbage)
_numbers = st.integers(0, 6)
_increments = st.builds(cmd.Increment, _any_keys, st.one_of(_values, _garbage), _values)
_operations: st.SearchStrategy[cmd.Operation] = st.one_of(
    st.builds(cmd.Put, _any_keys, _values),
    st.builds(cmd.Put, _keys, _values),
    st.builds(cmd.Add, _any_keys, _values),
    st.builds(cmd.SetDefault, _any_keys, _values),
    st.builds(cmd.Delete, _any_keys),
    st.builds(cmd.Pop, _any_keys),
    st.builds(cmd.PopItem),
    st.builds(cmd.Update, st.lists(st.tuples(_keys, _values), max_size=4)),
    st.builds(cmd.Update, st.lists(st.tuples(_any_keys, _values), max_size=4)),
    st.builds(cmd.Clear),
    st.builds(cmd.CompareAndSet, _any_keys, st.one_of(_values, _garbage), _values),
    _increments,
    st.builds(
        cmd.Transact,
        st.lists(st.tuples(_any_keys, st.none() | st.integers(0, 12)), max_size=1),
        st.lists(st.builds(cmd.Put, _any_keys, _values) | st.builds(cmd.Delete, _keys) | _increments, max_size=4),
        st.none() | st.integers(0, 12),
    ),
    st.builds(cmd.Replace, _any_keys, _values, st.integers(0, 12)),
    st.builds(cmd.Remove, _any_keys, st.integers(0, 12), st.booleans()),
    st.builds(cmd.Take, st.none() | _any_keys),
)
_commands = st.one_of(
    st.builds(cmd.Batch, st.integers(1, 3), _numbers, _numbers, st.lists(_operations, max_size=5)).map(cmd.encode),
    st.builds(cmd.OpenSession, st.just(NONCE)).map(cmd.encode),
    st.just(cmd.NO_OP),
    st.just(cmd.encode(cmd.Configuration(["a:1"], []))),
)


@st.composite
def _histories(draw: st.DrawFn) -> list[bytes]:
    """Commands most of which are in sequence, with retries, gaps and nonsense in between."""
    sequences = {1: 0, 2: 0, 3: 0}
    history = [cmd.encode(cmd.OpenSession(NONCE))] * draw(st.integers(1, 3))
    for _ in range(draw(st.integers(0, 25))):
        if draw(st.integers(0, 4)) == 0:
            history.append(draw(_commands))
            continue
        session = draw(st.integers(1, 3))
        sequences[session] += 1
        operations = draw(st.lists(_operations, min_size=1, max_size=4))
        history.append(
            batch(sequences[session], *operations, session=session, acknowledged=max(0, sequences[session] - 3))
        )
        if draw(st.integers(0, 4)) == 0:
            history.append(history[-1])
    return history


def replay(history: Sequence[bytes], machine: StateMachine | None = None) -> StateMachine:
    machine = StateMachine(DEFAULT_CODEC) if machine is None else machine
    for command in history[machine.applied_index :]:
        apply_next(machine, command)
    return machine


# -- total ----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_any_bytes_are_a_command_or_the_end(data: bytes) -> None:
    """Bytes that are no command change nothing, and end the node by an error of its own (promise 5)."""
    machine = opened()
    results(machine, batch(1, put("a", 1)))
    before = content(machine)
    try:
        outcome = apply_next(machine, data)
    except StorageError:
        assert (content(machine), machine.applied_index) == (before, 2)
    else:
        assert isinstance(outcome, Refusal | BatchApplied | SessionOpened | None)
        assert machine.applied_index == 3


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(b"", id="empty"),
        pytest.param(msgspec.msgpack.encode([99, 1, 2]), id="a tag of a later release"),
        pytest.param(msgspec.msgpack.encode([3, 1, 1, 0, [[99, b"k"]]]), id="an operation of a later release"),
        pytest.param(msgspec.msgpack.encode([3, 1, 1]), id="too few fields"),
        pytest.param(msgspec.msgpack.encode([3, "1", 1, 0, []]), id="a field of another type"),
        pytest.param(msgspec.msgpack.encode({"a": 1}), id="no array"),
        pytest.param(b"\x91" * 100_000, id="nested without end"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="an array said to be huge"),
    ],
)
def test_unknown_commands(command: bytes) -> None:
    """A command that this release does not know ends the node, which says what to do, and nothing of it is done."""
    machine = opened()
    with pytest.raises(StorageError, match=r"entry 2 of the log .* so as not to differ"):
        apply_next(machine, command)
    assert (machine.items, machine.revision, machine.applied_index) == ({}, 0, 1)
    assert machine.sessions == {1: Session(0, 1, ())}


def test_later_fields_are_ignored() -> None:
    """A command with more fields than this release knows is done as far as it is known: old nodes read new logs."""
    machine = opened()
    longer = msgspec.msgpack.encode([3, 1, 1, 0, [[1, encode_key("a"), encode(1), "later"]], "later"])
    assert results(machine, longer) == [1]


_BAD_KEYS = [
    pytest.param(b"", id="empty"),
    pytest.param(b"\xc1", id="never used"),
    pytest.param(encode([1]), id="unhashable"),
    pytest.param(encode((1, {})), id="unhashable inside"),
    pytest.param(encode(float("nan")), id="nan"),
    pytest.param(b"\xc7\x00\x7f", id="unknown extension"),
    pytest.param(encode("a") + b"!", id="bytes left over"),
]


@pytest.mark.parametrize("key", _BAD_KEYS)
def test_malformed_keys(key: bytes) -> None:
    """An operation on a key that can't be read gives a text, changes nothing, and does not disturb its neighbours."""
    machine = opened()
    results(machine, batch(1, put("a", 1)))
    before = content(machine)
    value = encode(1)
    operations: list[cmd.Operation] = [
        cmd.Put(key, value), cmd.Add(key, value), cmd.SetDefault(key, value), cmd.Delete(key), cmd.Pop(key),
        cmd.Update([(encode_key("b"), value), (key, value)]), cmd.CompareAndSet(key, value, value),
        cmd.Replace(key, value, 1), cmd.Remove(key, 1),
    ]  # fmt: skip
    found = results(machine, batch(2, *operations))
    assert isinstance(found, list)
    assert all(isinstance(each, str) and each for each in found)
    assert content(machine) == before
    assert results(machine, batch(3, cmd.Put(key, value), put("c", 3), cmd.Delete(key)))[1] == 2  # type: ignore[index]


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\xc7\x00\x7f"])
def test_malformed_expected_value(value: bytes) -> None:
    """A comparison with what can't be read gives a text and changes nothing."""
    machine = opened()
    results(machine, batch(1, put("a", 1)))
    before = content(machine)
    (found,) = results(machine, batch(2, cmd.CompareAndSet(encode_key("a"), value, encode(2))))  # type: ignore[misc]
    assert isinstance(found, str)
    assert content(machine) == before


class _Raising:
    """A codec of the user's with a mistake in it."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def encode(self, value: Any, /) -> bytes:
        return encode(value)

    def decode(self, data: bytes, /) -> Any:
        raise self._error


class _NeverEqual:
    """A value of the user's with a mistake in it."""

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("no")

    __hash__ = None  # type: ignore[assignment]


class _Odd(_Raising):
    def __init__(self) -> None:
        pass

    def decode(self, data: bytes, /) -> Any:
        return _NeverEqual()


@pytest.mark.parametrize(
    "codec", [_Raising(ValueError("mine")), _Raising(RecursionError("mine")), _Raising(MemoryError("mine")), _Odd()]
)
def test_a_codec_that_raises(codec: Any) -> None:
    """What a user's codec, or its values' `==`, raises may be of this machine only: it ends the node, which has then
    done nothing of the operation, so that it does not differ (promise 5)."""
    machine = StateMachine(codec)
    apply_next(machine, cmd.encode(cmd.OpenSession(NONCE)))
    results(machine, batch(1, put("a", 1)))
    before = content(machine)
    with pytest.raises(StorageError, match=r"entry 3 of the log could not be applied here: .*(mine|ZeroDivisionError)"):
        results(machine, batch(2, cmd.CompareAndSet(encode_key("a"), encode(5), encode(2))))
    assert content(machine) == before
    assert (machine.applied_index, machine.sessions[1].sequence) == (2, 1)


# -- deterministic --------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(_histories())
def test_same_commands_same_state(history: list[bytes]) -> None:
    """Two machines that applied the same entries gave the same outcomes and are equal in everything (promise 5)."""
    first, second = StateMachine(DEFAULT_CODEC), StateMachine(DEFAULT_CODEC)
    for command in history:
        assert apply_next(first, command) == apply_next(second, command)
        first.take_changes()  # when a node writes to its disk must not matter
    assert everything(first) == everything(second)


# -- exactly once ---------------------------------------------------------------------------------------------------


def test_a_batch_again_gives_its_first_results() -> None:
    """A batch applied again changes nothing and gives what it gave first, whatever came since (thesis 6.3)."""
    machine = opened()
    first = batch(1, put("a", 1), cmd.Add(encode_key("a"), encode(5)), cmd.Pop(encode_key("a")), cmd.PopItem())
    second = batch(2, put("a", 2), cmd.Clear())
    found = results(machine, first)
    assert found == [1, False, encode(1), None]
    found_second = results(machine, second)
    state = content(machine)
    assert results(machine, first) == found
    assert results(machine, second) == found_second
    assert content(machine) == state


def test_an_emptied_batch_takes_the_place_of_the_first() -> None:
    """A batch sent again empty, since nobody waits for it, is either answered as first sent or ends it for good."""
    machine = opened()
    assert results(machine, batch(1)) == []
    assert results(machine, batch(1, put("a", 1))) == []
    assert machine.items == {}
    assert results(machine, batch(2, put("a", 1))) == [1]
    assert results(machine, batch(2)) == [1]


def test_a_gap_is_refused() -> None:
    """A batch whose predecessor is missing is not applied: it comes again after it."""
    machine = opened()
    assert results(machine, batch(2, put("a", 1))) is Refusal.GAP
    assert machine.items == {}
    assert results(machine, batch(1, put("a", 1))) == [1]
    assert results(machine, batch(3, put("a", 1))) is Refusal.GAP
    assert results(machine, batch(2, put("b", 1))) == [2]


def test_acknowledged_results_are_forgotten() -> None:
    """Results are kept until they are acknowledged; afterwards a repeated batch is refused, and never done again."""
    machine = opened()
    for sequence in range(1, 6):
        results(machine, batch(sequence, put("a", sequence), acknowledged=max(0, sequence - 3)))
    assert [reply[0] for reply in machine.sessions[1].replies] == [3, 4, 5]
    state = content(machine)
    assert results(machine, batch(2, put("a", 2))) is Refusal.FORGOTTEN
    assert results(machine, batch(0, put("a", 2))) is Refusal.FORGOTTEN
    assert results(machine, batch(3, put("a", 2))) == [3]
    assert content(machine) == state


def test_without_a_session_nothing_is_done() -> None:
    """A batch of a session that was never opened, or has ended, is refused."""
    machine = opened()
    for session in (0, 2, 2**63):
        assert results(machine, batch(1, put("a", 1), session=session)) is Refusal.NO_SESSION
    assert content(machine) == ([], 0)


def test_a_session_is_named_by_its_entry() -> None:
    """A session's number is the index of the entry that opened it, so two of the same nonce differ."""
    machine = opened()
    assert apply_next(machine, cmd.encode(cmd.OpenSession(b"x"))) == SessionOpened(b"x", 2)
    assert apply_next(machine, cmd.encode(cmd.OpenSession(b"x"))) == SessionOpened(b"x", 3)
    assert list(machine.sessions) == [1, 2, 3]


def test_the_session_used_longest_ago_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the maximum the session used longest ago ends, by the log alone, so it is the same on every node."""
    monkeypatch.setattr(state_machine, "MAX_SESSIONS", 3)
    machine = opened(3)
    results(machine, batch(1, put("a", 1), session=1))
    machine.take_changes()
    apply_next(machine, cmd.encode(cmd.OpenSession(NONCE)))
    assert list(machine.sessions) == [3, 1, 5]
    changes = machine.take_changes()
    assert changes.sessions[2] is None and changes.session_count == 3
    assert results(machine, batch(1, put("b", 1), session=2)) is Refusal.NO_SESSION
    assert results(machine, batch(2, put("b", 1), session=1)) == [2]


def test_a_retry_does_not_keep_a_session_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused or repeated batch is no use of a session: which one ends is the same after a restart."""
    monkeypatch.setattr(state_machine, "MAX_SESSIONS", 2)
    machine = opened(2)
    results(machine, batch(1, put("a", 1), session=1))
    results(machine, batch(1, put("a", 1), session=2))
    results(machine, batch(1, put("a", 1), session=1))
    results(machine, batch(5, put("a", 1), session=1))
    apply_next(machine, cmd.encode(cmd.OpenSession(NONCE)))
    assert list(machine.sessions) == [2, 7]


def test_the_maximum_of_sessions() -> None:
    """The number of sessions is bounded, however many processes come and go."""
    machine = opened(state_machine.MAX_SESSIONS + 7)
    assert list(machine.sessions) == list(range(8, state_machine.MAX_SESSIONS + 8))


# -- operations -----------------------------------------------------------------------------------------------------


def test_each_change_has_a_revision_and_a_row() -> None:
    """What changes the map counts once and is recorded as rows; what does not, does neither."""
    machine = opened()
    machine.take_changes()
    a, b, one, two = encode_key("a"), encode_key("b"), encode(1), encode(2)
    found = results(
        machine,
        batch(
            1, cmd.Put(a, one), cmd.Add(a, two), cmd.SetDefault(a, two), cmd.CompareAndSet(a, two, one),
            cmd.Replace(a, two, 9), cmd.Delete(b), cmd.Pop(b), cmd.CompareAndSet(a, one, two), cmd.Replace(a, one, 2),
            cmd.Update([(b, one), (a, two)]), cmd.Pop(a), cmd.PopItem(), cmd.PopItem(), cmd.Clear(),
        ),
    )  # fmt: skip
    assert found == [1, False, one, False, False, False, None, True, True, 4, two, [b, one], None, 0]
    changes = machine.take_changes()
    assert changes.rows == [
        (1, a, one, 1), (1, a, two, 2), (1, a, one, 3), (2, b, one, 4), (1, a, two, 4), (1, a, None, 5),
        (2, b, None, 6),
    ]  # fmt: skip
    assert (changes.revision, changes.keys, changes.index, changes.next_position) == (6, 0, 2, 3)


def test_take_what_every_machine_can_decode() -> None:
    """A key, or the last one, is taken by one command, unless its value names a time zone."""
    machine = opened()
    a, z = encode_key("a"), encode_key("z")
    zoned = encode(dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")))
    assert results(machine, batch(1, cmd.Take(), cmd.Take(a), put("a", 1), cmd.Put(z, zoned))) == [None, None, 1, 2]
    assert results(machine, batch(2, cmd.Take(z), cmd.Take(), cmd.Take(a))) == [False, False, [a, encode(1)]]
    assert list(machine.items) == ["z"] and machine.revision == 3


def test_remove_only_what_was_seen() -> None:
    """A removal of a revision removes that value or nothing; with `last`, only if its key is the last one as well."""
    machine = opened()
    a, b = encode_key("a"), encode_key("b")
    assert results(machine, batch(1, cmd.Remove(a, 0), cmd.Remove(a, 0, True), put("a", 1), put("b", 2))) == [
        None, None, 1, 2,
    ]  # fmt: skip
    found = results(
        machine, batch(2, cmd.Remove(a, 0), cmd.Remove(a, 2), cmd.Remove(a, 1, True), cmd.Remove(b, 1, True))
    )
    assert found == [False] * 4 and machine.revision == 2
    assert results(machine, batch(3, cmd.Remove(encode_key("c"), 0, True), cmd.Remove(encode_key("c"), 0))) == [
        False,
        None,
    ]
    assert results(machine, batch(4, cmd.Remove(b, 2, True), put("c", 3), cmd.Remove(a, 1))) == [True, 4, True]
    assert list(machine.items) == ["c"] and machine.revision == 5
    assert results(machine, batch(4, cmd.Remove(b, 2, True), put("c", 3), cmd.Remove(a, 1))) == [True, 4, True]
    assert machine.revision == 5


def test_a_key_that_cannot_be_decoded_is_named() -> None:
    """A state with a key that this release can't read is refused, with its bytes and its row, and nothing is loaded."""
    machine = opened()
    rows = [(1, encode_key("a"), encode(1), 1), (7, b"\xc7\x00\x7f", encode(1), 2)]
    with pytest.raises(EncodingError, match=r"x7f.*in row 7"):
        machine.load(rows, [], index=2, revision=2, next_position=8)
    assert machine.items == {}


def test_clear_is_one_change_and_makes_earlier_rows_void() -> None:
    """A clear counts once, tells how many keys there were, and what was recorded before it need not be written."""
    machine = opened()
    found = results(machine, batch(1, put("a", 1), put("b", 1), cmd.Clear(), put("b", 2), cmd.Clear(), put("c", 3)))
    assert found == [1, 2, 2, 4, 1, 6]
    changes = machine.take_changes()
    assert changes.cleared
    assert changes.rows == [(4, encode_key("c"), encode(3), 6)]


def test_the_first_of_equal_keys_is_kept() -> None:
    """True finds what 1 stored and does not replace the key, in memory and in the rows alike (promise 6)."""
    machine = opened()
    results(machine, batch(1, put(1, "a"), put(True, "b"), put(1.0, "c")))
    assert [type(key) for key in machine.items] == [int]
    assert {row[1] for row in machine.take_changes().rows} == {encode_key(1)}
    assert results(machine, batch(2, cmd.PopItem())) == [[encode_key(1), encode("c")]]


def test_many_keys_are_seen_at_once() -> None:
    """Whoever reads while a command stores several keys, one by one, sees all of them, and those before (rule 5)."""
    machine = opened()
    results(machine, batch(1, put("a", 1), put("x", 1)))
    seen: list[tuple[list[Hashable], list[int], int]] = []

    class Watched(dict[Hashable, Item]):
        """Looks at the machine before and after each key that is stored, as an interruption might."""

        def update(self, pairs: dict[Hashable, Item]) -> None:  # type: ignore[override]
            look()
            for key, item in pairs.items():
                self[key] = item
                look()

    def look() -> None:
        moment = machine.moment()
        found = [machine.find(key) for key in moment]
        assert found == list(moment.values())
        seen.append((list(moment), [item.revision for item in moment.values()], machine.count()))

    machine.items = machine.readable = Watched(machine.items)
    results(machine, batch(2, cmd.Update([(encode_key(key), encode(2)) for key in "abc"])))
    look()
    assert seen == [(["a", "x", "b", "c"], [3, 2, 3, 3], 4)] * 5


def test_a_moment_is_one_though_keys_let_others_run() -> None:
    """A copy during which a key's comparison in Python let changes happen is thrown away, and made anew (rule 5)."""
    machine = opened()
    results(machine, batch(1, put("a", 1), put("b", 1)))
    changes = iter([batch(2, put("a", 2)), batch(3, cmd.Delete(encode_key("b")), put("c", 3))])

    class Slow(dict[Hashable, Item]):
        """A dict that is changed after half of the copying."""

        def copy(self) -> dict[Hashable, Item]:
            copied = dict(list(self.items())[:1])
            for change in changes:
                results(machine, change)
                break
            copied.update(list(self.items())[1:])
            return copied

    machine.items = machine.readable = Slow(machine.items)
    assert {key: item.revision for key, item in machine.moment().items()} == {"a": 3, "c": 5}


def test_a_moment_ends_where_the_stack_does() -> None:
    """A copy that needs more stack than there is raises `RecursionError`; it is not tried for ever."""
    machine = opened()
    results(machine, batch(1, put("a", 1)))

    class Deep(dict[Hashable, Item]):
        """A dict that can't be copied here."""

        def copy(self) -> dict[Hashable, Item]:
            raise RecursionError

    machine.items = machine.readable = Deep(machine.items)
    with pytest.raises(RecursionError):
        machine.moment()


# -- snapshot and tail ----------------------------------------------------------------------------------------------


class Disk:
    """A store in a directory, opened and closed at will, and the machine that goes with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = Directory(path)
        self._directory.found("local", lambda: founded_by(["local"]))
        self.open()

    def reopen(self) -> None:
        """Begin anew with what is on disk; what is not was lost in a crash."""
        self.store._db.close()
        self.open()

    def open(self) -> None:
        connection = connect(self._directory.file, "process")
        self.store = Store(connection, self._directory.file.as_uri(), log_retain=0)
        self.machine = StateMachine(DEFAULT_CODEC)
        self.store.load_into(self.machine)

    @property
    def log(self) -> Log:
        return self.store.log

    def append(self, commands: Sequence[bytes]) -> None:
        """Write entries to the log, durably."""
        self.store.set_vote(1, "local")
        if commands:
            self.log.append([Entry(self.log.last_index + 1 + n, 1, command) for n, command in enumerate(commands)])
        self.store.commit()

    def apply(self, upto: int) -> None:
        """Apply entries from the log, and note what they changed, as the engine does."""
        for entry in self.log.entries_from(self.machine.applied_index + 1, 1 << 30):
            if entry.index > upto:
                break
            self.machine.apply(entry.index, entry.command)
        if self.machine.applied_index > self.store.applied.index:
            self.store.record(1, self.machine.take_changes())

    def close(self) -> None:
        self.store._db.close()
        self._directory.close()


_steps = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from(["", "crash", "close"])), max_size=10)


@settings(max_examples=60, deadline=None)
@given(_histories(), _steps, st.integers(1, 4))
def test_snapshot_and_tail_equal_full_replay(
    history: list[bytes], steps: list[tuple[int, int, str]], gather_entries: int
) -> None:
    """Table plus tail gives what replaying all gives, wherever flushes, crashes and restarts fall."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        patch.setattr(state_table, "GATHER_ENTRIES", gather_entries)
        patch.setattr(store_module, "COMPACT_STEP", 3)
        with closing(Disk(Path(directory))) as disk:
            for appended, unapplied, end in [*steps, (len(history), 0, "close")]:
                disk.append(history[disk.log.last_index :][:appended])
                disk.apply(disk.log.last_index - unapplied)
                disk.store.commit()
                if end == "close":
                    disk.store.close()
                    assert disk.store.applied.index == disk.machine.applied_index
                if end:
                    disk.reopen()
                assert everything(disk.machine) == everything(replay(history[: disk.machine.applied_index]))
            assert disk.machine.applied_index == len(history)


@settings(max_examples=40, deadline=None)
@given(_histories(), st.lists(st.integers(0, 30), max_size=6))
def test_changes_absorb_what_follows(history: list[bytes], cuts: list[int]) -> None:
    """Changes taken in pieces and absorbed say the same as changes taken at once, and so does the digest."""
    machine, whole = StateMachine(DEFAULT_CODEC), replay(history)
    absorbed = machine.take_changes()
    for cut in [*sorted(cuts), len(history)]:
        replay(history[:cut], machine)
        absorbed.absorb(machine.take_changes())
    at_once = whole.take_changes()
    assert absorbed.digest() == at_once.digest()
    absorbed.digest = at_once.digest
    assert absorbed == at_once


@pytest.mark.parametrize("guard", [None, "apply-a-batch-once"], ids=["as it is", "without dedup"])
def test_a_retry_counts_once(guard: str | None) -> None:
    """An increment by compare-and-set and a `popitem`, each sent twice since its answer was lost, count once; with the
    sessions' memory taken out, they count twice (promise 3, thesis 6.3)."""
    machine = StateMachine(DEFAULT_CODEC)
    sequence = 0

    def do(*operations: cmd.Operation, times: int = 1) -> list[Any]:
        """The results of a batch as its caller gets them: those of the last time it was sent."""
        nonlocal sequence
        sequence += 1
        command = cmd.encode(cmd.Batch(1, sequence, sequence - 1, list(operations)))
        for _ in range(times):
            outcome = apply_next(machine, command)
        assert isinstance(outcome, BatchApplied)
        assert isinstance(outcome.results, list)
        return outcome.results

    def increment() -> None:
        """As a client does it: until compare-and-set says yes. The first try is sent twice."""
        times = 2
        while True:
            present = DEFAULT_CODEC.decode(machine.items["n"].value)
            if do(cmd.CompareAndSet(encode_key("n"), encode(present), encode(present + 1)), times=times) == [True]:
                return
            times = 1

    with guards.without(guard):
        apply_next(machine, cmd.encode(cmd.OpenSession(NONCE)))
        do(*(cmd.Put(encode_key(key), encode(0)) for key in ("n", "a", "b", "c")))
        increment()
        do(cmd.PopItem(), times=2)
    twice = guard is not None
    assert DEFAULT_CODEC.decode(machine.items["n"].value) == (2 if twice else 1)
    assert list(machine.items) == (["n", "a"] if twice else ["n", "a", "b"])

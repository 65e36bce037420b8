"""Large values are in a node's file once, for as long as its log or its state needs them (design, section 5)."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import encode_key
from replidict.machine.command_values import values
from replidict.protocol.log_entry import Entry
from replidict.storage import directory, file_format, large_values, records, snapshot
from replidict.storage import log as log_module
from replidict.storage import state_table as table_module
from replidict.storage import store as store_module
from replidict.storage.directory import FILE_NAME
from replidict.storage.inspection import inspect
from replidict.storage.restore import restore
from replidict.storage.scrubber import Scrubber
from tests.storage_support import Failing, Rig, encode, image, put, rig, verdict

LARGE = large_values.LARGE_BYTES
RNG = random.Random(7)
NOISE = RNG.randbytes(1 << 20)


def noise(length: int) -> bytes:
    """A value that encodes to `length` bytes or a few more, and is like no other."""
    start = RNG.randrange(len(NOISE) - min(length, len(NOISE) // 2))
    return (NOISE[start:] + NOISE)[:length]


def level_two(one: Rig) -> Rig:
    """Raise the level, from which on large values are stored apart."""
    one.store.set_vote(max(1, one.store.term), None)
    entries = [Entry(one.log.last_index + 1, one.store.term, cmd.encode(cmd.RaiseLevel(2)))]
    one.log.append(entries)
    one.store.commit()
    one.apply(entries)
    return one


def reopened(path: Path, log_retain: int = 0) -> Rig:
    return Rig(path, log_retain=log_retain)


def count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def format_of(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return file_format.read(db)


def odd(one: Rig) -> list[Any]:
    """Whatever of the two tables should not be there, or is missing; in the file, and in memory beside it."""
    if not one.store.format.has_large:
        return []
    db, first = one.connection, one.log.start.index + 1 << 16
    found: list[Any] = []
    for sql in (
        "SELECT position FROM large_state WHERE id NOT IN (SELECT id FROM large_value)",
        "SELECT position FROM large_state WHERE position NOT IN (SELECT position FROM state WHERE value = x'')",
        f"SELECT id FROM large_value WHERE id < {first} AND id NOT IN (SELECT id FROM large_state)",
        f"SELECT id FROM large_value WHERE id >= {first} AND id >> 16 NOT IN (SELECT idx FROM log)",
    ):
        found += db.execute(sql).fetchall()
    if dict(db.execute("SELECT position, id FROM large_state")) != one.store.large.referring:
        found.append("memory")
    if one.store.large.waiting_bytes != sum(each.length for each in one.store.large.waiting):
        found.append("bytes")
    return found


# -- what is written ------------------------------------------------------------------------------------------------


def test_every_value_of_a_command_is_known() -> None:
    """Whatever an operation stores is among the values of its command, in order, whatever it is wrapped in."""
    writes: list[cmd.Operation] = [
        cmd.Put(b"k", b"1"), cmd.Add(b"k", b"2"), cmd.SetDefault(b"k", b"3"), cmd.CompareAndSet(b"k", b"-", b"4"),
        cmd.Replace(b"k", b"5", 1),
    ]  # fmt: skip
    inner = cmd.Transact([(b"k", 1)], [cmd.Put(b"k", b"8"), cmd.Delete(b"k"), cmd.Expiring(cmd.Put(b"k", b"9"), 1, 1)])
    others: list[cmd.Operation] = [
        cmd.Update([(b"k", b"6"), (b"l", b"7")]), inner, cmd.Expiring(cmd.Add(b"k", b"a"), 1, None),
        cmd.Fenced("n", 1, cmd.Expiring(cmd.Put(b"k", b"b"), 1, None)), cmd.Fenced("n", 1, inner),
    ]  # fmt: skip
    without: list[cmd.Operation] = [
        cmd.Delete(b"k"),
        cmd.Increment(b"k", b"1", b"1"),
        cmd.PopItem(),
        cmd.Take(b"k"),
        cmd.Expire(b"k", 1),
    ]
    found = b"".join(values(cmd.Batch(1, 1, 0, [*writes, *without, *others])))
    assert found == b"123456789ab89"
    assert list(values(cmd.NoOp())) == []
    storing = {
        kind
        for kind in get_args(cmd.Operation)
        if {"value", "items", "operation", "writes"} & set(kind.__annotations__)
    }
    assert storing == {type(each) for each in (*writes, *others)}, "a new operation that stores something?"


@pytest.mark.parametrize("length", [LARGE - 8, LARGE, 65_530, 65_536, 1_000_000])
def test_a_large_value_is_written_once(tmp_path: Path, length: int) -> None:
    """What is longer than `LARGE_BYTES` is neither in the row of its entry nor in that of its key, and is found whole
    in both; what is shorter is in them, and nothing is beside them."""
    value = noise(length)
    with rig(tmp_path, log_retain=100) as one:
        level_two(one)
        one.put("k", value)
        one.store.flush()
        (command,) = one.connection.execute("SELECT command FROM log ORDER BY idx DESC LIMIT 1").fetchone()
        (state,) = one.connection.execute("SELECT value FROM state").fetchone()
        if len(encode(value)) > LARGE:
            assert len(command) < 100 and state == b""
            assert one.connection.execute("SELECT value FROM large_value").fetchall() == [(encode(value),)]
            assert format_of(one.file) == 3
        else:
            assert encode(value) in command and state == encode(value)
            assert format_of(one.file) == 2
        expected = one.everything()
    with rig(tmp_path, log_retain=100) as again:
        assert again.everything() == expected
        assert again.content() == {"k": value}
        assert not odd(again)


def bytes_written() -> int:
    text = Path("/proc/self/io").read_text()
    return int(text.split("wchar: ")[1].split()[0])


def test_what_is_written_for_each_byte_stored(tmp_path: Path) -> None:
    """Log, table, and both by way of the write-ahead log would be four bytes; it is a little more than two."""
    size, number = 256 * 1024, 100
    with rig(tmp_path, log_retain=20) as one:
        level_two(one)
        for each in range(20):
            one.put(f"k{each % 16}", noise(size))
        before = bytes_written()
        for each in range(number):
            one.put(f"k{each % 16}", noise(size))
        assert (bytes_written() - before) / (size * number) < 2.15
        assert not odd(one)


def test_a_cluster_that_an_older_release_may_come_back_to_keeps_its_format(tmp_path: Path) -> None:
    """As long as the level is that of release 0.1.0, values stand in their rows."""
    with rig(tmp_path) as one:
        one.put("k", noise(2 * LARGE))
        one.store.flush()
        assert format_of(one.file) == 1
    with rig(tmp_path) as again:
        level_two(again)
        again.put("l", noise(2 * LARGE))
        again.store.flush()
        assert [format_of(again.file), count(again.connection, "large_value")] == [3, 1]
        again.put("k", noise(2 * LARGE))
        again.perform(cmd.Delete(encode_key("l")))
        again.store.flush()
        assert not odd(again)


def test_small_values_touch_nothing_of_it(tmp_path: Path) -> None:
    """A file with a large value writes small ones by the statements that any other file has."""
    seen: list[Failing] = []
    with rig(tmp_path, wrap=wrap(seen)) as one:
        level_two(one)
        one.put("large", noise(LARGE + 1))
        one.store.flush()
        seen[0].statements.clear()
        for number in range(600):
            one.put(f"k{number % 50}", number)
        one.store.flush()
        assert count(one.connection, "large_state") == 1
        inside = {each for each in seen[0].statements if "large" in each}
        assert inside == {"DELETE FROM large_value WHERE id BETWEEN ? AND ? AND NOT EXISTS"}, (
            "when the log is compacted"
        )


def wrap(seen: list[Failing]) -> Callable[[sqlite3.Connection], Failing]:
    def wrapped(connection: sqlite3.Connection) -> Failing:
        seen.append(Failing(connection))
        return seen[-1]

    return wrapped


# -- how long it stays ----------------------------------------------------------------------------------------------


def test_a_value_stays_as_long_as_the_log_or_the_state_needs_it(tmp_path: Path) -> None:
    """One that was overwritten goes with its log entry, one whose entry is compacted away with its key."""
    first, second, third = noise(LARGE + 1), noise(LARGE + 2), noise(LARGE + 3)
    with rig(tmp_path, log_retain=2) as one:
        level_two(one)

        def there() -> list[int]:
            one.store.flush()
            return [length for (length,) in one.connection.execute("SELECT length(value) FROM large_value ORDER BY id")]

        def compacted() -> list[int]:
            for number in range(2 * table_module.GATHER_ENTRIES):
                one.put("small", number)
            return there()

        one.put("a", first)
        one.put("b", second)
        sizes = [len(encode(each)) for each in (first, second, third)]
        assert there() == sizes[:2]
        one.put("a", third)
        assert there() == sizes, "the log has the first one still"
        assert compacted() == sizes[1:], "the log has none of them"
        one.perform(cmd.Delete(encode_key("b")))
        assert there() == sizes[2:], "nor has the state"
        one.put("a", "small")
        assert there() == []
        assert not odd(one)
        one.put("a", first)
        one.perform(cmd.Clear())
        assert there() == sizes[:1]
        assert compacted() == []
        assert not odd(one) and one.store.large.referring == {}


def test_what_is_cut_off_from_the_log_takes_its_values_along(tmp_path: Path) -> None:
    """A tail that another leader's entries take the place of leaves nothing, and the same index may have others."""
    with rig(tmp_path, log_retain=100) as one:
        level_two(one)
        one.put("k", noise(LARGE + 1))
        expected, size = one.content(), count(one.connection, "large_value")
        entries = one.append(put("k", noise(LARGE + 2)), put("l", noise(LARGE + 3)))
        one.store.commit()
        assert count(one.connection, "large_value") == size + 2
        one.log.cut(entries[0].index)
        other = cmd.encode(cmd.Batch(one._session, one._sequence, 0, [put("m", value := noise(LARGE + 4))]))
        replaced = [Entry(entries[0].index, 2, other)]
        one.log.append(replaced)
        one.store.set_vote(2, None)
        one.store.commit()
        assert count(one.connection, "large_value") == size + 1
        one.apply(replaced)
        assert one.content() == {**expected, "m": value}
        one.store.flush()
        assert count(one.connection, "large_state") == 2
        assert not odd(one)
        everything = one.everything()
    with rig(tmp_path, log_retain=100) as again:
        assert again.everything() == everything


def test_equal_values_are_each_ones_own(tmp_path: Path) -> None:
    """Of values that are the same, in one command or several, each row has one of its own: when one goes, the others
    stay."""
    value = noise(2 * LARGE)
    with rig(tmp_path) as one:
        level_two(one)
        same = encode(value)
        one.perform(cmd.Update([(encode_key(key), same) for key in "abca"]), put("d", value))
        one.perform(
            put("e", value), cmd.SetDefault(encode_key("a"), same), cmd.CompareAndSet(encode_key("a"), same, same)
        )
        one.store.flush()
        assert count(one.connection, "large_state") == 5
        one.perform(cmd.Delete(encode_key("a")), put("b", 1))
        for number in range(2 * table_module.GATHER_ENTRIES):
            one.put("small", number)
        one.store.flush()
        assert count(one.connection, "large_value") == 3
        assert not odd(one)
    with rig(tmp_path) as again:
        assert {key: again.content()[key] == value for key in "bcde"} == {"b": False, "c": True, "d": True, "e": True}


def test_what_looks_like_a_value_is_not_taken_for_one(tmp_path: Path) -> None:
    """Keys and values that hold the beginning of a long value, or all of one, change nothing."""
    value = noise(LARGE + 10)
    encoded = encode(value)
    heads = b"\xc5" + len(encoded).to_bytes(2)
    with rig(tmp_path, log_retain=100) as one:
        level_two(one)
        one.perform(put(f"{heads!r}", heads * 5), put("inside", heads + encoded), put("k", value), put("again", value))
        one.put("one letter", heads * (LARGE // 2))
        expected = one.everything()
        one.store.flush()
        assert count(one.connection, "large_value") == 4
    with rig(tmp_path, log_retain=100) as again:
        assert again.everything() == expected
        assert not odd(again)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_file_has_what_it_should(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Writes of all kinds and sizes, tails that are cut off, compaction, snapshots, crashes: after each restart all is
    there as it was, and nothing beside it."""
    rng = random.Random(seed)
    monkeypatch.setattr(directory, "presize", lambda *arguments: None)  # it takes longer than the rest
    monkeypatch.setattr(large_values, "LARGE_BYTES", 255)
    monkeypatch.setattr(table_module, "GATHER_ENTRIES", rng.choice((2, 5, 20)))
    monkeypatch.setattr(table_module, "STEP_PAGES", rng.choice((1, 16)))
    monkeypatch.setattr(table_module, "STEP_BYTES", rng.choice((1, 10_000)))
    monkeypatch.setattr(table_module, "WHOLE_BYTES", rng.choice((1, 1 << 20)))
    monkeypatch.setattr(store_module, "COMPACT_STEP", rng.choice((1, 7, 5_000)))
    monkeypatch.setattr(log_module, "MEMORY_BYTES", rng.choice((500, 1 << 20)))
    retain = rng.choice((0, 3, 30))
    one, crashes, installed = level_two(Rig(tmp_path / "n", log_retain=retain)), 0, 0
    request.addfinalizer(lambda: one.crash())

    def pair() -> tuple[bytes, bytes]:
        value = noise(rng.choice((10, 250, 260, 1_000, 70_000)))
        return encode_key(rng.choice("abcdefgh")), encode(value if rng.random() < 0.9 else b"same" * 100)

    def operation() -> cmd.Operation:
        (key, value), (_, other) = pair(), pair()
        return rng.choice([
            cmd.Put(key, value), cmd.Put(key, value), cmd.Add(key, value), cmd.SetDefault(key, value),
            cmd.CompareAndSet(key, other, value), cmd.Delete(key), cmd.PopItem(),
            cmd.Update([pair() for _ in range(rng.randrange(4))]),
            cmd.Transact([], [cmd.Put(key, value), cmd.Delete(key), cmd.Put(key, other)]),
            cmd.Clear() if rng.random() < 0.2 else cmd.Put(key, value),
        ])  # fmt: skip

    for step in range(250):
        what = rng.random()
        if what < 0.05:
            before = one.everything()
            if rng.random() < 0.5:
                one.crash()
            else:
                one.close()
            one, crashes = Rig(tmp_path / "n", log_retain=retain), crashes + 1
            assert one.everything()[:2] == before[:2] and same(one.everything(), before), step
        elif what < 0.1:
            entries = one.append(operation(), operation(), term=max(1, one.store.term))
            one.store.commit()
            one.log.cut(entries[-1].index)
            one._sequence -= 1
            if len(entries) > 1:
                one.log.cut(entries[0].index)
                one._session = one._sequence = 0
            one.store.commit()
        elif what < 0.13:
            one.store.flush()
            made = snapshot.create(one.store.uri, tmp_path / "snapshot")
            one.perform(operation(), term=max(1, one.store.term))
            one.store.install(f"{made.path.absolute().as_uri()}?mode=ro")
            one.store.load_into(one.machine)
            one._session = one._sequence = 0
            installed += 1
        else:
            one.perform(*(operation() for _ in range(rng.randint(1, 3))), term=max(1, one.store.term))
        assert not odd(one), step
    assert crashes and installed
    one.store.flush()
    assert inspect(tmp_path / "n").digest == one.machine.digest()


# -- what is made of the file ---------------------------------------------------------------------------------------


def fill(one: Rig) -> None:
    """Keys with large values and with small ones; some were overwritten, and the last ones are in the log only."""
    rng = random.Random(1)
    level_two(one)
    for number in range(12):
        one.perform(*(put(f"k{each}", rng.randbytes(rng.choice((10, LARGE + 1, 3 * LARGE)))) for each in range(6)))
        if number == 9:
            one.store.flush()


def test_snapshots_and_backups_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes send each other, and what a backup is, does not depend on how one of them stores values, and has no
    format that other releases could not read; digests are equal, too."""
    made = []
    for limit in (LARGE, 1 << 30):
        monkeypatch.setattr(large_values, "LARGE_BYTES", limit)
        with rig(tmp_path / f"n{limit}", log_retain=5) as one:
            fill(one)
            one.store.flush()
            assert count(one.connection, "state WHERE value = x''") == (4 if limit == LARGE else 0)
            made.append(snapshot.create(one.store.uri, tmp_path / f"snapshot{limit}"))
            digest, expected = one.machine.digest(), one.content()
        assert (made[-1].format, format_of(one.file)) == (2, 3 if limit == LARGE else 2)
    first, second = made
    assert first.path.read_bytes() == second.path.read_bytes()
    assert inspect(tmp_path / f"n{LARGE}").digest == inspect(tmp_path / f"n{1 << 30}").digest == digest
    monkeypatch.setattr(large_values, "LARGE_BYTES", LARGE)
    with rig(tmp_path / "to") as other:
        fill(other)
        other.store.install(f"{first.path.absolute().as_uri()}?mode=ro")
        other.store.load_into(other.machine)
        assert other.content() == expected and not odd(other)
        assert count(other.connection, "large_value") == 0, "they are copied into their rows"
        other._session = other._sequence = 0
        other.perform(put("k1", noise(LARGE * 2)), term=max(1, other.store.term))
        other.store.flush()
        assert count(other.connection, "large_state") == 1 and not odd(other)


def test_a_backup_is_whole(tmp_path: Path) -> None:
    """A node that is made of a backup has all values, and goes on like any other."""
    with rig(tmp_path / "n") as one:
        fill(one)
        one.store.flush()
        snapshot.copy(one.store.uri, tmp_path / "backup", records.Origin("c", "n", "local", "2026-01-01"))
        expected = one.content()
    assert snapshot.check(tmp_path / "backup").format == 2
    restore(tmp_path / "backup", tmp_path / "restored", "local")
    with rig(tmp_path / "restored") as again:
        assert again.content() == expected
        again.put("k1", expected["k2"])
        again.store.flush()
        assert format_of(again.file) == 3 and not odd(again)


def test_inspect_shows_whole_entries(tmp_path: Path) -> None:
    """The last entries are told as they were sent."""
    with rig(tmp_path, log_retain=100) as one:
        fill(one)
        expected = one.everything()[-1][-5:]
    found = inspect(tmp_path, last=5)
    assert [(each.index, each.term, each.command) for each in found.entries] == [
        (each.index, each.term, each.command) for each in expected
    ]
    assert found.damage is None


IN_LOG = "(SELECT max(id) FROM large_value)"
IN_STATE = "(SELECT id FROM large_state ORDER BY id LIMIT 1)"
DAMAGE = [
    (f"UPDATE large_value SET value = zeroblob(length(value)) WHERE id = {IN_LOG}", "checksum of log entry"),
    (f"UPDATE large_value SET at = at - 1 WHERE id = {IN_LOG}", "checksum of log entry"),
    (f"UPDATE large_value SET id = id + 1 WHERE id = {IN_LOG}", "checksum of"),
    (f"DELETE FROM large_value WHERE id = {IN_LOG}", "checksum of log entry"),
    (f"UPDATE large_value SET value = zeroblob(length(value)) WHERE id = {IN_STATE}", "checksum of state row"),
    (f"DELETE FROM large_value WHERE id = {IN_STATE}", "checksum of state row"),
    ("DELETE FROM large_state", "checksum of state row"),
    ("UPDATE large_state SET position = position + 100", "checksum of state row"),
    (f"UPDATE large_state SET id = 1 WHERE id = {IN_STATE}", "checksum of state row"),
    ("DROP TABLE large_state", "no such table"),
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """A directory where the state has values that the log has no more, and the log has others."""
    path = tmp_path_factory.mktemp("filled")
    with rig(path / "n", log_retain=3) as one:
        fill(one)
        one.put("last", noise(LARGE + 1))
        one.store.flush()
        one.put("later", noise(LARGE + 1))
        one.store.flush()
        for number in range(table_module.GATHER_ENTRIES):
            one.put("small", number)
        one.store.flush()
        one.put("last", noise(LARGE + 2))
        expected = one.everything()
    return path / "n", expected


@pytest.mark.parametrize(("statement", "reason"), DAMAGE)
def test_damage_is_seen(filled: tuple[Path, tuple[Any, ...]], tmp_path: Path, statement: str, reason: str) -> None:
    """A large value that was changed, moved or lost is found when the node starts, when its disk is inspected, and by
    the scrubber; a snapshot of it is not made."""
    path = image(filled[0], tmp_path / "copy", mark=False)
    assert verdict(path, filled[1]) == "whole"
    path = image(filled[0], tmp_path / "copy", mark=False)
    with closing(sqlite3.connect(path / FILE_NAME, isolation_level=None)) as db:
        db.execute(statement)
    assert reason in what_inspect_says(path)
    assert reason in verdict(path, filled[1])
    if "state" in reason:
        with pytest.raises(StorageError, match=reason):
            snapshot.create((path / FILE_NAME).absolute().as_uri(), tmp_path / "snapshot")
    path = image(filled[0], tmp_path / "running", mark=False)
    one = Rig(path, log_retain=3)
    one.connection.execute(statement)
    with (
        closing(Scrubber(one.store, one.machine, path, 1 << 30, iter(range(10**9)).__next__)) as scrub,
        pytest.raises(StorageError, match=reason),
    ):
        while scrub.passes < 2:
            scrub.step()
    one.crash()


def what_inspect_says(path: Path) -> str:
    try:
        return inspect(path).damage or "whole"
    except StorageError as error:
        return str(error)


# -- crashes --------------------------------------------------------------------------------------------------------


class FailsAt:
    """A connection whose disk fails at the statement with a number."""

    def __init__(self, connection: sqlite3.Connection, number: int) -> None:
        self._connection, self._left = connection, number
        self.struck: str | None = None

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if not sql.startswith(("SELECT", "PRAGMA")):
            self._left -= 1
            if self._left < 0:
                self.struck = self.struck or sql
                raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


Everything = tuple[Any, ...]


def story(one: Rig, made: snapshot.Snapshot) -> Iterator[Everything | None]:
    """Writing, overwriting, cutting off, compacting and installing (None), a commit at a time: gives what the disk has
    when it is done, and before that what it may have as well."""
    for step in range(8):
        entries = one.append(put("k" if step % 2 else f"k{step}", noise(LARGE + step)))
        yield one.everything()
        one.store.commit()
        yield one.everything()
        if step == 5:
            one.log.cut(entries[-1].index)
            one._sequence -= 1
        else:
            one.apply(entries)
    yield None
    one.store.install(f"{made.path.absolute().as_uri()}?mode=ro")
    yield None


def test_a_disk_that_fails_at_any_statement_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at each statement in turn: what was committed is there whole, what was not is gone whole or there whole, and
    nothing is left over."""
    monkeypatch.setattr(table_module, "GATHER_ENTRIES", 3)
    monkeypatch.setattr(directory, "presize", lambda *arguments: None)  # it takes longer than the rest
    with rig(tmp_path / "first", log_retain=4) as one:
        level_two(one)
        one.put("k", 1)
    with rig(tmp_path / "other") as other:
        level_two(other)
        other.perform(put("theirs", noise(LARGE + 2)), put("more", 1))
        other.store.flush()
        made = snapshot.create(other.store.uri, tmp_path / "snapshot")
    reached: list[str | None] = []
    while True:
        path = image(tmp_path / "first", tmp_path / "n")
        one = Rig(path, log_retain=1, wrap=partial(FailsAt, number=len(reached)))
        before: Everything | None = one.everything()
        after = before
        try:
            for there in story(one, made):
                before, after = after, there
        except StorageError:
            pass
        struck = one.store._db.struck  # type: ignore[attr-defined]
        reached.append(struck)
        one.crash()
        with rig(path, log_retain=1) as again:
            assert not odd(again), struck
            found = again.everything()
            if after is None and again.content().keys() == {"theirs", "more"}:
                if struck is None:
                    break
                continue
            assert any(each is not None and same(found, each) for each in (before, after)), struck
    for statement in (
        "CREATE TABLE large", "INSERT INTO large_value", "INSERT INTO large_state", "DELETE FROM large_state WHERE",
        "DELETE FROM large_value WHERE id >=", "DELETE FROM large_value WHERE id IN",
        "DELETE FROM large_value WHERE id BETWEEN", "DELETE FROM large_state",
    ):  # fmt: skip
        assert any(str(each).startswith(statement) for each in reached), statement


def same(found: Everything, expected: Everything) -> bool:
    """What a restart finds is what there was; the log may have been compacted, and more of it be applied."""
    *_, log = found
    return bool(log == expected[-1][len(expected[-1]) - len(log) :] and found[2:6] == expected[2:6])

"""The format of a node's file: as release 0.1.0 writes it, until its log holds what that release could not read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC
from replidict.machine.state_machine import StateMachine
from replidict.protocol.log_entry import Entry
from replidict.release import LEVEL
from replidict.storage import file_format, records, snapshot
from replidict.storage.directory import FILE_NAME
from replidict.storage.inspection import inspect
from replidict.storage.restore import restore
from tests.storage_support import Failing, Rig, image, put, rig, verdict

TABLES_OF_0_1_0 = {
    "log": "idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, command BLOB NOT NULL, committed INTEGER NOT NULL, "
    "crc INTEGER NOT NULL",
    "state": "position INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL, revision INTEGER NOT NULL, "
    "crc INTEGER NOT NULL",
    "session": "number INTEGER PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL",
    "fact": "name TEXT PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL",
}


def raise_level(one: Rig, level: int = LEVEL) -> list[Entry]:
    """Add an entry that raises the cluster's level to the log, not yet durable."""
    entries = [Entry(one.log.last_index + 1, max(1, one.store.term), cmd.encode(cmd.RaiseLevel(level)))]
    one.store.set_vote(entries[0].term, None)
    one.log.append(entries)
    return entries


def raised(one: Rig) -> Rig:
    entries = raise_level(one)
    one.store.commit()
    one.apply(entries)
    return one


def format_of(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return file_format.read(db)


def tables(file: Path) -> dict[str, str]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\'"
        )
        return {name: " ".join(sql.replace('"', "").split()) for name, sql in rows}


def columns(sql: str) -> str:
    return sql[sql.index("(") + 1 : sql.rindex(")")].strip().replace(" ,", ",")


def test_a_new_file_is_as_the_first_release_writes_it(tmp_path: Path) -> None:
    """Until the cluster's level is raised, a file holds the tables and facts of format 1 and nothing else: release
    0.1.0 may be put back."""
    with rig(tmp_path) as one:
        one.put("k", 1)
        one.store.flush()
        assert format_of(one.file) == 1
        assert {name: columns(sql) for name, sql in tables(one.file).items()} == TABLES_OF_0_1_0
        names = {name for (name,) in one.connection.execute("SELECT name FROM fact")}
    assert names == {"identity", "vote", "applied", "log_start", "members", "pins"}


def test_the_entry_that_raises_the_level_marks_the_file(tmp_path: Path) -> None:
    """The transaction that writes it to the log brings the file to format 2, so that no crash parts the two."""
    seen: list[Failing] = []

    def wrap(connection: sqlite3.Connection) -> Failing:
        seen.append(Failing(connection))
        return seen[-1]

    with rig(tmp_path, wrap=wrap) as one:
        one.put("k", 1)
        seen[0].statements.clear()
        raise_level(one)
        one.store.commit()
        inside = seen[0].statements
        assert inside.count("BEGIN IMMEDIATE") == inside.count("COMMIT") == 1
        assert inside.index("BEGIN IMMEDIATE") < inside.index("PRAGMA user_version = 2") < inside.index("COMMIT")
        assert format_of(one.file) == 2
        assert columns(tables(one.file)["kept"]) == "name TEXT PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL"


@pytest.mark.parametrize("statement", ["CREATE TABLE kept", "PRAGMA user_version", "COMMIT"])
def test_a_node_that_dies_on_the_way_has_the_old_format_and_no_such_entry(tmp_path: Path, statement: str) -> None:
    """A migration that is interrupted at any step leaves a file of format 1 whose log ends before the entry."""
    seen: list[Failing] = []

    def wrap(connection: sqlite3.Connection) -> Failing:
        seen.append(Failing(connection))
        return seen[-1]

    one = Rig(tmp_path, wrap=wrap)
    one.put("k", 1)
    everything = one.everything()
    raise_level(one)
    seen[0].fails = statement
    with pytest.raises(StorageError, match="disk I/O error"):
        one.store.commit()
    one.crash()
    assert format_of(tmp_path / FILE_NAME) == 1
    with rig(tmp_path) as again:
        assert again.everything() == everything
        assert raised(again).machine.level == 2


@pytest.mark.parametrize("flushed", [True, False])
def test_the_level_is_there_after_a_restart(tmp_path: Path, flushed: bool) -> None:
    """The level comes from the table, or from the log behind it; it begins at 1 and never falls."""
    with rig(tmp_path) as one:
        assert one.machine.level == 1
    one = raised(Rig(tmp_path))
    entries = raise_level(one, 1)
    one.store.commit()
    one.apply(entries)
    assert one.machine.level == 2, "an entry that asks for less changes nothing"
    one.put("k", 1)
    if flushed:
        one.store.flush()
    one.crash()
    with rig(tmp_path) as again:
        assert again.store.applied.index == (again.log.last_index if flushed else 0)
        assert again.machine.level == 2
        assert again.content() == {"k": 1}
    assert inspect(tmp_path).feature_level == 2


def test_the_level_of_an_entry_that_is_cut_off_never_was(tmp_path: Path) -> None:
    """An entry that another leader's log takes the place of raises nothing, though the file stays marked."""
    with rig(tmp_path) as one:
        one.put("k", 1)
        (entry,) = raise_level(one)
        one.store.commit()
        one.log.cut(entry.index)
        one.put("k", 2)
        one.store.flush()
    with rig(tmp_path) as again:
        assert (again.machine.level, again.machine.kept) == (1, {})
        assert again.store.format.number == 2
        assert again.content() == {"k": 2}


def test_a_level_above_ones_own_stops_the_node_in_words(tmp_path: Path) -> None:
    """A release that meets a level it does not know says so and what to do, and has applied nothing of it."""
    machine = StateMachine(DEFAULT_CODEC)
    with pytest.raises(StorageError, match=r"level 3.*this release of replidict knows 2.*Upgrade replidict"):
        machine.apply(1, cmd.encode(cmd.RaiseLevel(LEVEL + 1)))
    assert (machine.applied_index, machine.level) == (0, 1)


# -- what is kept by name -------------------------------------------------------------------------------------------


def keep(one: Rig, **rows: bytes | None) -> None:
    """Have the next entry change rows of replicated state."""
    one.machine._changes.kept.update(rows)
    one.put("beside", len(rows))


def test_rows_of_other_state_go_and_stay_with_the_entries_that_change_them(tmp_path: Path) -> None:
    """What is put under a name is there after a restart, as it was last; what was removed is gone."""
    with rig(tmp_path) as one:
        raised(one)
        keep(one, a=b"1", b=b"2", c=b"3")
        keep(one, a=b"4", b=None)
        one.store.flush()
        keep(one, c=None, d=b"5")
        expected = dict(one.machine.kept)
        assert expected == {"level": b"\x02", "a": b"4", "d": b"5"}
    with rig(tmp_path) as again:
        assert again.machine.kept == expected
        keep(again, **{f"row{number}": b"x" for number in range(1000)})
    with rig(tmp_path) as again:
        assert len(again.machine.kept) == 1003
        keep(again, **dict.fromkeys(again.machine.kept))
    with rig(tmp_path) as again:
        assert again.machine.kept == {} and again.machine.level == 1


@pytest.fixture
def marked(tmp_path: Path) -> tuple[Path, tuple[Any, ...]]:
    """A directory of format 2 with rows of other state, and all that it holds."""
    with rig(tmp_path / "marked") as one:
        raised(one)
        keep(one, a=b"1", b=b"2")
        one.store.flush()
        everything = one.everything()
    return tmp_path / "marked", everything


DAMAGE = [
    ("UPDATE kept SET data = x'07' WHERE name = 'a'", "checksum of the row 'a'"),
    ("UPDATE kept SET name = 'c' WHERE name = 'a'", "checksum of the row 'c'"),
    ("DELETE FROM kept WHERE name = 'a'", "3 rows of other state"),
    ("DELETE FROM kept", "3 rows of other state"),
    ("DELETE FROM fact WHERE name = 'kept'", "facts"),
    ("DROP TABLE kept", "kept"),
]


@pytest.mark.parametrize(("statement", "reason"), DAMAGE)
def test_a_row_that_is_not_as_it_was_written_is_damage(
    marked: tuple[Path, tuple[Any, ...]], tmp_path: Path, statement: str, reason: str
) -> None:
    """A row of other state that was changed, renamed or lost is seen when the node starts, and when it is inspected."""
    path = image(marked[0], tmp_path / "copy", mark=False)
    with closing(sqlite3.connect(path / FILE_NAME, isolation_level=None)) as db:
        db.execute(statement)
    assert_matches(reason, what_inspect_says(path))
    assert_matches(reason, verdict(path, marked[1]))


@pytest.mark.parametrize(("statement", "reason"), DAMAGE)
def test_damage_in_a_snapshot_is_seen(
    marked: tuple[Path, tuple[Any, ...]], tmp_path: Path, statement: str, reason: str
) -> None:
    """The same of a snapshot, before it is installed or restored."""
    path = tmp_path / "snapshot"
    snapshot.create((marked[0] / FILE_NAME).absolute().as_uri(), path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)
    with pytest.raises(StorageError) as raises:
        snapshot.check(path)
    assert_matches(reason, str(raises.value))


def test_an_entry_that_can_not_be_read_ends_in_words(tmp_path: Path) -> None:
    """The entry that raises the level, damaged: inspecting it says so, and is no traceback."""
    one = Rig(tmp_path, log_retain=100)
    raised(one)
    one.put("k", 1)
    one.store.flush()
    one.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as db:
        db.execute("UPDATE log SET command = x'9205A178' WHERE idx = 1")
    assert_matches("entry 1", what_inspect_says(tmp_path))


def what_inspect_says(path: Path) -> str:
    try:
        return inspect(path).damage or "whole"
    except StorageError as error:
        return str(error)


def assert_matches(reason: str, text: str) -> None:
    assert reason in text, text


# -- snapshots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mine", [1, 2])
@pytest.mark.parametrize("theirs", [1, 2])
def test_a_snapshot_has_the_format_of_its_source(tmp_path: Path, mine: int, theirs: int) -> None:
    """Whoever installs a snapshot holds what its source held, rows of other state included and no others, whatever the
    formats of both were; its file is marked if the source's was, and stays so."""
    with rig(tmp_path / "source") as source, rig(tmp_path / "target") as target:
        source.put("k", 1)
        target.put("before", 1)
        if theirs == 2:
            raised(source)
            keep(source, a=b"1")
        if mine == 2:
            raised(target)
            keep(target, a=b"7", b=b"8")
            target.store.flush()
        for number in range(10):
            source.put("k", number)
        source.store.flush()
        made = snapshot.create(source.store.uri, tmp_path / "snapshot")
        assert made.format == theirs
        target.store.install(f"{made.path.absolute().as_uri()}?mode=ro")
        target.store.load_into(target.machine)
        assert target.machine.kept == source.machine.kept
        assert target.machine.level == source.machine.level == theirs
        assert format_of(target.file) == max(mine, theirs)
        expected = target.everything()
    with rig(tmp_path / "target") as again:
        assert again.everything() == expected
        assert again.machine.level == theirs


def test_an_installation_that_fails_leaves_the_old_format(tmp_path: Path) -> None:
    """A file that was to go on to format 2 with a snapshot, and did not, is as it was."""
    seen: list[Failing] = []

    def wrap(connection: sqlite3.Connection) -> Failing:
        seen.append(Failing(connection))
        return seen[-1]

    with rig(tmp_path / "source") as source:
        raised(source)
        source.store.flush()
        made = snapshot.create(source.store.uri, tmp_path / "snapshot")
    target = Rig(tmp_path / "target", wrap=wrap)
    target.put("k", 1)
    everything = target.everything()
    seen[0].fails = "COMMIT"
    with pytest.raises(StorageError):
        target.store.install(f"{made.path.absolute().as_uri()}?mode=ro")
    target.crash()
    assert format_of(tmp_path / "target" / FILE_NAME) == 1
    with rig(tmp_path / "target") as again:
        assert again.everything() == everything


def test_a_restored_backup_goes_on_at_its_level(tmp_path: Path) -> None:
    """A node made of a backup of format 2 has the level and all rows of other state, and its file the format."""
    with rig(tmp_path / "source") as source:
        raised(source)
        source.perform(put("k", 1))
        keep(source, a=b"1")
        source.store.flush()
        origin = records.Origin("c", "n", "local", "2026-01-01")
        snapshot.copy(source.store.uri, tmp_path / "backup", origin)
        expected = dict(source.machine.kept)
    restore(tmp_path / "backup", tmp_path / "restored", "local")
    assert format_of(tmp_path / "restored" / FILE_NAME) == 2
    with rig(tmp_path / "restored") as again:
        assert again.content() == {"k": 1, "beside": 1}
        assert again.machine.kept.pop("token") > b"", "tokens of locks go on above all that were granted"
        assert again.machine.kept == expected
        assert again.machine.level == 2


def test_a_snapshot_of_a_later_format_is_refused_in_words(tmp_path: Path) -> None:
    """A snapshot or backup of a newer release is not taken for damage."""
    with rig(tmp_path / "source") as source:
        source.put("k", 1)
        source.store.flush()
        snapshot.create(source.store.uri, tmp_path / "snapshot")
    with closing(sqlite3.connect(tmp_path / "snapshot", isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {file_format.SHARED + 1}")
    with pytest.raises(StorageError, match=r"another release wrote it \(format 3\)"):
        snapshot.check(tmp_path / "snapshot")

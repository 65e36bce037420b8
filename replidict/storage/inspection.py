"""Reads the disk of a stopped node.

Rules kept here:

1. Nothing in the directory is changed, not even by SQLite: a file with a write-ahead log is read from a copy. The lock
   is taken so that nobody opens the node meanwhile, and shared, which needs no permission to write.
2. Everything that is looked at when a node starts is looked at, in the same way.
3. What can be read of a damaged file is told, beside what is wrong with it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC
from replidict.machine.state_machine import StateMachine
from replidict.storage import file_format, records
from replidict.storage.directory import (
    DIVERGED,
    FILE_NAME,
    SUPERSEDED,
    check_inside,
    check_outside,
    check_version,
    in_use,
    is_unsynced,
    read_note,
)
from replidict.storage.high_water_mark import HighWaterMark
from replidict.storage.store import RECOVERED, Store
from replidict.storage.whole_rows import log_rows


@dataclass(frozen=True)
class Kept:
    """A log entry on disk."""

    index: int
    term: int
    command: bytes


@dataclass(frozen=True)
class Inspected:
    """A node's disk."""

    path: Path
    identity: records.Identity
    vote: records.Vote
    applied: records.Applied
    """What the state table holds: it trails the log."""

    members: records.Members
    """The last configuration in the log, committed or not: the one in force."""

    settled: records.Members
    """The last configuration that this node surely knew to be committed, and `between` those in the log after it."""

    between: Sequence[records.Members]

    first_index: int
    """Of the log; one more than `last_index` if it is empty."""

    last_index: int
    last_term: int
    committed: int
    """The last entry that this node surely knew to be committed."""

    entries: list[Kept]
    """The last ones, in order, as many as were asked for."""

    written: float
    """When something was last written, in seconds since the epoch."""

    file_bytes: int
    wal_bytes: int
    feature_level: int
    """The cluster's, as of the last entry that this node surely knew to be committed."""

    digest: bytes | None
    """That of the state table; None if it can't be read."""

    damage: str | None
    """What is wrong, if something is: a node would refuse it."""

    superseded: str | None
    """Why it may not be opened any more, if it may not."""

    marked: bool
    """Whether there is a mark beside the file: without one nobody can tell that the file is not an older one."""

    unsynced: bool
    """Whether it ran with `durability="process"` last: what it acknowledged before a power cut may be missing."""

    recovered: records.Recovered | None
    """What it was founded from, if that was a lost quorum."""

    @property
    def removed(self) -> bool:
        """Does this node know that it is no member any more?"""
        return self.identity.address not in (*self.settled.voters, *self.settled.learners)


@contextmanager
def resting(path: Path) -> Iterator[None]:
    """Keep the node in this directory from being opened in this block. Raises `StorageError` if it is open, or there is
    none."""
    see_to_a_node(path)
    try:
        lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a copy of a directory: nobody runs in it
        yield
        return
    except OSError as error:
        raise StorageError(f"{path}: can't be read: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise in_use(path) from error
    try:
        yield
    finally:
        os.close(lock)


def see_to_a_node(path: Path) -> None:
    """Raise `StorageError` if there is no node."""
    if not path.is_dir():
        raise StorageError(f"{path}: there is no such directory")
    if not (path / FILE_NAME).exists():
        raise StorageError(f"{path} holds no node: there is no {FILE_NAME} in it")


def inspect(path: Path, last: int = 0) -> Inspected:
    """Read the disk of a stopped node, and the last `last` entries of its log.

    The caller holds its lock. Raises `StorageError` when it can't be read at all.
    """
    see_to_a_node(path)
    file, note, diverged = path / FILE_NAME, path / SUPERSEDED, path / DIVERGED
    try:
        damage = None
        try:
            check_outside(file, synced=not is_unsynced(path))
        except StorageError as error:
            damage = str(error)
        sizes = [each.stat().st_size if each.exists() else 0 for each in (file, _wal(file))]
        written = max(each.stat().st_mtime for each in (file, _wal(file), path / "mark") if each.exists())
        with _unchanged(path) as (db, mark):
            facts = _facts(db)
            number = file_format.read(db)
            number = number if number <= file_format.LATEST else file_format.FIRST  # as far as it can be read
            first, last_index, last_term, committed, entries = _log(db, number, facts["log_start"], last)
            committed = max(committed, facts["applied"].index)
            settled, between = _configurations(db, facts["members"], committed)
            level = _level(db, committed)
            machine = StateMachine(DEFAULT_CODEC)
            damage = damage or _damage(db, file, mark, machine)
            damage = damage or (read_note(diverged) if diverged.exists() else None)
    except (KeyError, *records.FAILURES) as error:
        raise StorageError(damage or f"{file}: can't be read: {error}") from error
    return Inspected(
        path, facts["identity"], facts["vote"], facts["applied"], (settled, *between)[-1], settled, between,
        first, last_index, last_term, committed, entries,
        written, sizes[0], sizes[1], level, machine.digested[1] or None, damage,
        read_note(note) if note.exists() else None, mark is not None, is_unsynced(path),
        facts.get(RECOVERED),
    )  # fmt: skip


def _wal(file: Path) -> Path:
    return Path(f"{file}-wal")


@contextmanager
def _unchanged(path: Path) -> Iterator[tuple[sqlite3.Connection, HighWaterMark | None]]:
    """A connection to a node's file, and its mark, by which nothing there is changed."""
    file = path / FILE_NAME
    with tempfile.TemporaryDirectory(prefix="replidict-") as temporary:
        uri = f"{file.absolute().as_uri()}?immutable=1"
        if _wal(file).exists():
            copied = Path(temporary) / FILE_NAME
            for source, target in ((file, copied), (_wal(file), _wal(copied))):
                shutil.copyfile(source, target)
            uri = copied.as_uri()
        mark = None
        if (path / "mark").exists():
            shutil.copyfile(path / "mark", Path(temporary) / "mark")
            mark = HighWaterMark(Path(temporary) / "mark")
        try:
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
                yield db, mark
        finally:
            if mark is not None:
                mark.close()


_KINDS: dict[str, Any] = {
    "identity": records.Identity,
    "vote": records.Vote,
    "applied": records.Applied,
    "log_start": records.LogStart,
    "members": records.Members,
    RECOVERED: records.Recovered,
}


def _facts(db: sqlite3.Connection) -> dict[str, Any]:
    rows = db.execute("SELECT name, data FROM fact NOT INDEXED").fetchall()
    return {name: msgspec.msgpack.decode(data, type=_KINDS[name]) for name, data in rows if name in _KINDS}


def _log(
    db: sqlite3.Connection, number: int, start: records.LogStart, last: int
) -> tuple[int, int, int, int, list[Kept]]:
    first, last_index, committed = db.execute("SELECT min(idx), max(idx), max(committed) FROM log").fetchone()
    if first is None:
        return start.index + 1, start.index, start.term, 0, []
    (last_term,) = db.execute("SELECT term FROM log WHERE idx = ?", (last_index,)).fetchone()
    entries = [Kept(*row[:3]) for row in log_rows(db, number, last_index + 1 - last, last_index)]
    return first, last_index, last_term, committed, entries


def _configurations(
    db: sqlite3.Connection, settled: records.Members, committed: int
) -> tuple[records.Members, list[records.Members]]:
    """The last configuration that is known to be committed, and those after it."""
    between: list[records.Members] = []
    for index, command in db.execute("SELECT idx, command FROM log WHERE idx > ? ORDER BY idx", (settled.index,)):
        said = cmd.decode_at(index, command) if cmd.is_configuration(command) else None
        if isinstance(said, cmd.Configuration):
            members = records.Members(index, said.voters, said.learners, said.node_ids, said.readers)
            if index <= committed:
                settled = members
            else:
                between.append(members)
    return settled, between


def _level(db: sqlite3.Connection, committed: int) -> int:
    """The cluster's feature level: as the state table has it, or entries that are committed raise it to."""
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'kept'").fetchone() is None:
        return 1
    kept = db.execute("SELECT data FROM kept WHERE name = 'level'").fetchone()
    levels = [1 if kept is None else msgspec.msgpack.decode(kept[0], type=int)]
    for index, command in db.execute("SELECT idx, command FROM log WHERE idx <= ?", (committed,)):
        if cmd.raises_level(command) and isinstance(said := cmd.decode_at(index, command), cmd.RaiseLevel):
            levels.append(said.level)
    return max(levels)


def _damage(db: sqlite3.Connection, file: Path, mark: HighWaterMark | None, machine: StateMachine) -> str | None:
    try:
        check_version(db, file)
        check_inside(db, file)
        store = Store(db, file.absolute().as_uri(), log_retain=0, mark=mark)
        store.load_into(machine)
    except StorageError as error:
        return str(error)
    return None

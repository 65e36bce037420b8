"""The format version of a node's file, or of a snapshot: SQLite's `user_version`.

Rules kept here:

1. A file has the format of the highest feature level that an entry in its log has raised the cluster to. It goes on to
   it in the transaction that writes that entry, or installs a snapshot of that format: an older release refuses it from
   then on, and would misread it. Until then an older release may be put back.
2. Format 1 is what release 0.1.0 writes. Format 2 adds the table `kept`, rows of replicated state by name, and the fact
   `kept`, their count.
3. Format 3 adds the tables of `large_values`. No level asks for it and no snapshot has it: a node's own file goes on to
   it with the first large value, if it has format 2 already.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from replidict.machine import commands as cmd
from replidict.protocol.log_entry import Entry
from replidict.release import LEVEL
from replidict.storage import records

FIRST = 1
"""What a new file begins with."""

LATEST = 3
"""The highest one that this release knows."""

SHARED = LEVEL
"""The highest one of a snapshot, and that a feature level brings a file to."""

_KEPT = "CREATE TABLE kept(name TEXT PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL) STRICT, WITHOUT ROWID"
_LARGE = (
    "CREATE TABLE large_value(id INTEGER PRIMARY KEY, at INTEGER NOT NULL, value BLOB NOT NULL) STRICT",
    "CREATE TABLE large_state(position INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE) STRICT",
)


class FileFormat:
    """The format of one open file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Read it. Raises `sqlite3.Error`."""
        self._db = connection
        self._set(read(connection))

    def _set(self, number: int) -> None:
        self.number = number
        self.level = min(number, SHARED)
        """The feature level that a release must know to read it."""
        self.has_large = has_large(number)
        """Whether there are the tables of `large_values`."""

    @property
    def added(self) -> list[str]:
        """The tables that format 1 has not."""
        return [*(["kept"] if self.keeps else []), *(["large_value", "large_state"] if self.has_large else [])]

    @property
    def keeps(self) -> bool:
        """Whether there is a table `kept`."""
        return has_kept(self.number)

    def follow(self, entries: Iterable[Entry]) -> None:
        """Mark the file for older releases, if they could not read what is being written to its log."""
        for entry in entries:
            said = cmd.decode_at(entry.index, entry.command) if cmd.raises_level(entry.command) else None
            if isinstance(said, cmd.RaiseLevel):
                self.go_on_to(min(said.level, SHARED))

    def go_on_to(self, number: int) -> None:
        """Bring the file to this format at least, in the caller's transaction. Raises `sqlite3.Error`."""
        if number <= self.number:
            return
        if has_kept(number) and not self.keeps:
            data = msgspec.msgpack.encode(records.Kept())
            self._db.execute(_KEPT)
            self._db.execute(records.PUT_FACT, ("kept", data, records.fact_crc("kept", data)))
        if has_large(number):
            for table in _LARGE:
                self._db.execute(table)
        self._db.execute(f"PRAGMA user_version = {number}")
        self._set(number)


def read(connection: sqlite3.Connection, database: str = "main") -> int:
    """The format of an open file, or of one that is attached to it."""
    (number,) = connection.execute(f"PRAGMA {database}.user_version").fetchone()
    return int(number)


def has_kept(number: int) -> bool:
    """Whether files of this format have a table `kept`."""
    return number >= 2


def has_large(number: int) -> bool:
    """Whether files of this format have the tables of `large_values`."""
    return number >= 3

"""The disk of a simulated node: a SQLite database in memory that outlives the node's connection to it.

Rules kept here:

1. The product's own SQL runs on it. What was committed stays, what was not is gone with the connection: this is a disk
   that loses everything that was not synced.
2. Faults come at the moments that matter: when a transaction begins, at a write, before a commit and after it. An error
   after a commit is the worst one: stored, but reported as failed.
3. `Shadow` says what is durably there, kept up by triggers and commits, so that an acknowledgement can be held against
   it at once. That it tells the truth is checked against the tables at each restart.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from replidict.storage import file_format, records
from replidict.storage.directory import Beginning, write_founding_facts
from replidict.storage.schema import create
from replidict.storage.whole_rows import ENTRY_BITS, log_rows

Point = Literal["begin", "write", "commit", "committed"]
POINTS: tuple[Point, ...] = ("begin", "write", "commit", "committed")


class Crash(BaseException):
    """The process is killed at this very statement. Not an `Exception`, since nothing may handle it."""


@dataclass
class Fault:
    """A fault that happens once, at the `skip`-th statement of its kind from now on."""

    point: Point
    skip: int
    crash: bool
    memory: bool = False  # SQLite has no memory left, which is no error of the disk

    def error(self) -> Exception:
        """The error that it shows as."""
        return MemoryError() if self.memory else sqlite3.OperationalError("disk I/O error")


@dataclass
class Shadow:
    """What is durable on a disk."""

    log: dict[int, tuple[int, int]] = field(default_factory=dict)  # index -> (term, checksum of the row)
    start: records.LogStart = field(default_factory=records.LogStart)
    vote: records.Vote = field(default_factory=records.Vote)

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry is there, or covered by the state table."""
        if index <= self.start.index:
            return True
        row = self.log.get(index)
        return row is not None and row[0] == term

    def last_index(self) -> int:
        """Of the last entry."""
        return self.start.index + len(self.log)


class Row(NamedTuple):
    """A log entry as it was written."""

    number: int
    term: int
    command: bytes
    crc: int


Write: TypeAlias = "Row | int | records.Vote | records.LogStart"
"""A log entry put, the index of one deleted, or a fact."""

_TRIGGERS = """
    PRAGMA temp_store = MEMORY;
    CREATE TEMP TRIGGER put_log AFTER INSERT ON main.log
        BEGIN SELECT simulator_put(new.idx, new.term, new.command, new.crc); END;
    CREATE TEMP TRIGGER update_log AFTER UPDATE ON main.log
        BEGIN SELECT simulator_put(new.idx, new.term, new.command, new.crc); END;
    CREATE TEMP TRIGGER delete_log AFTER DELETE ON main.log
        BEGIN SELECT simulator_delete(old.idx); END;
    CREATE TEMP TRIGGER put_fact AFTER INSERT ON main.fact
        BEGIN SELECT simulator_fact(new.name, new.data); END;
    CREATE TEMP TRIGGER update_fact AFTER UPDATE ON main.fact
        BEGIN SELECT simulator_fact(new.name, new.data); END;
"""
"""They see every change, by whatever statement."""

_ODD_VALUES = [
    (
        "rows of the state whose large value is gone",
        "SELECT position FROM large_state WHERE id NOT IN (SELECT id FROM large_value)",
    ),
    (
        "large values of rows that are gone",
        "SELECT position FROM large_state WHERE position NOT IN (SELECT position FROM state)",
    ),
    (
        "large values that nothing needs",
        "SELECT id FROM large_value WHERE id < :first AND id NOT IN (SELECT id FROM large_state)",
    ),
    (
        "large values of log entries that are gone",
        f"SELECT id FROM large_value WHERE id >= :first AND id >> {ENTRY_BITS} NOT IN (SELECT idx FROM log)",
    ),
]

_numbers = count()
_template: sqlite3.Connection | None = None


def lay_out(connection: sqlite3.Connection) -> None:
    """Do what `schema.create` does, without its cost and without the real time that its migrations note."""
    global _template
    if _template is None:
        _template = sqlite3.connect(":memory:", isolation_level=None)
        create(_template)
        _template.execute("UPDATE _sqlite_migrations SET applied_at = '2000-01-01'")
    _template.backup(connection)


class Disk:
    """One node's disk."""

    def __init__(self, address: str, beginning: Beginning, on_commit: Callable[[list[Write]], None]) -> None:
        self.uri = f"file:simulated-{os.getpid()}-{next(_numbers)}?mode=memory&cache=shared"
        self.node_id = beginning.node_id
        self.shadow = Shadow()
        self.full = False
        self.fault: Fault | None = None
        self.latency: Callable[[], None] = lambda: None
        self.hits = 0
        self._on_commit = on_commit
        self._anchor = sqlite3.connect(self.uri, uri=True, isolation_level=None)
        lay_out(self._anchor)
        write_founding_facts(self._anchor, address, beginning)

    @property
    def format(self) -> int:
        """The format of the file, as it is durably there."""
        return file_format.read(self._anchor)

    @property
    def has_large_values(self) -> bool:
        """Whether some may be stored apart from the rows that they belong to."""
        return file_format.has_large(self.format)

    def connect(self) -> sqlite3.Connection:
        """A connection that the product uses as a `sqlite3.Connection`."""
        inner = sqlite3.connect(self.uri, uri=True, isolation_level=None, timeout=0, check_same_thread=False)
        return _Connection(self, inner)  # type: ignore[return-value]

    def committed(self, writes: list[Write]) -> None:
        """A transaction is durable."""
        self._on_commit(writes)
        shadow = self.shadow
        for write in writes:
            if isinstance(write, Row):
                shadow.log[write.number] = (write.term, write.crc)
            elif isinstance(write, int):
                shadow.log.pop(write, None)
            elif isinstance(write, records.Vote):
                shadow.vote = write
            else:
                shadow.start = write

    def differences(self) -> str | None:
        """Where the tables and the shadow part, if they do."""
        rows = {
            index: (term, crc)
            for index, term, crc in self._anchor.execute("SELECT idx, term, crc FROM log ORDER BY idx")
        }
        if rows != self.shadow.log:
            odd = sorted(
                index for index in rows.keys() | self.shadow.log if rows.get(index) != self.shadow.log.get(index)
            )
            return f"log entries {odd[:10]} are not on disk as they were committed"
        for name, kind, expected in (
            ("vote", records.Vote, self.shadow.vote),
            ("log_start", records.LogStart, self.shadow.start),
        ):
            row = self._anchor.execute("SELECT data FROM fact WHERE name = ?", (name,)).fetchone()
            found = kind() if row is None else msgspec.msgpack.decode(row[0], type=kind)
            if found != expected:
                return f"{name} is {found} on disk, and {expected} was committed"
        return self._odd_large_value() if self.has_large_values else None

    def _odd_large_value(self) -> str | None:
        """One that is missing, or one too many, if there is any."""
        first = self.shadow.start.index + 1 << ENTRY_BITS
        for what, sql in _ODD_VALUES:
            odd = self._anchor.execute(sql, {"first": first}).fetchall()
            if odd:
                return f"{what}: {[each for (each,) in odd[:10]]}"
        return None

    def destroy(self) -> None:
        """Free it."""
        self._anchor.close()

    def strike(self, point: Point) -> None:
        """Fail here, if that is due."""
        if self.full and point == "write":
            self.hits += 1
            raise sqlite3.OperationalError("database or disk is full")
        fault = self.fault
        if fault is None or fault.point != point:
            return
        if fault.skip > 0:
            fault.skip -= 1
            return
        self.fault = None
        self.hits += 1
        if fault.crash:
            raise Crash
        raise fault.error()


class _Connection:
    """The part of `sqlite3.Connection` that the store uses, with faults."""

    def __init__(self, disk: Disk, inner: sqlite3.Connection) -> None:
        self._disk = disk
        self._inner = inner
        self._writes: list[Write] = []
        inner.create_function("simulator_put", 4, lambda *row: self._writes.append(Row(*row)))
        inner.create_function("simulator_delete", 1, lambda index: self._writes.append(index))
        inner.create_function("simulator_fact", 2, self._fact)
        inner.executescript(_TRIGGERS)

    def _fact(self, name: str, data: bytes) -> None:
        kind = {"vote": records.Vote, "log_start": records.LogStart}.get(name)
        if kind is not None:
            self._writes.append(msgspec.msgpack.decode(data, type=kind))

    @property
    def in_transaction(self) -> bool:
        return self._inner.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        disk, inner = self._disk, self._inner
        verb = sql[:6]
        if verb in ("SELECT", "ROLLBA") or (verb == "PRAGMA" and "=" not in sql):
            return inner.execute(sql, parameters)
        if verb == "COMMIT":
            disk.strike("commit")
            cursor = inner.execute(sql)
            disk.latency()
            self._committed()
            disk.strike("committed")
            return cursor
        if verb == "BEGIN ":
            disk.strike("begin")
            self._writes = []
            return inner.execute(sql)
        disk.strike("write")
        cursor = inner.execute(sql, parameters)
        if not inner.in_transaction and self._writes:
            self._committed()  # a write outside of a transaction commits by itself
        return cursor

    def _committed(self) -> None:
        writes, self._writes = self._writes, []
        if self._disk.has_large_values:
            writes = [self._whole(write) for write in writes]
        self._disk.committed(writes)

    def _whole(self, write: Write) -> Write:
        """An entry with the large values that were cut out of its row."""
        if not isinstance(write, Row):
            return write
        found = [command for _, _, command, *_ in log_rows(self._inner, self._disk.format, write.number, write.number)]
        return write._replace(command=found[0]) if found else write

    def executemany(self, sql: str, rows: list[Any]) -> sqlite3.Cursor:
        self._disk.strike("write")
        return self._inner.executemany(sql, rows)

    def close(self) -> None:
        """Whatever was not committed is rolled back."""
        self._inner.close()

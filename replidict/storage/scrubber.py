"""A node's file, read through slowly while the node runs, so that damage is found before the rows are needed.

Rules kept here:

1. The node's thread reads, a small piece at a time, and each piece in a read transaction that ends with it: nothing
   moves meanwhile, and no checkpoint waits. The connection is one that only reads, and keeps no pages of the file.
2. Each row is held against its checksum, and against memory where the state table is not behind: memory has a row of
   no later revision than the table's, so the table has it, too; a row that memory has not was removed since.
3. Rows that are missing are found by their number. What moves into the table meanwhile is counted in.
4. A row that differs from memory though its checksum is right would pass when the file is opened: a note beside the
   file says what was found, and the node is not started with it again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from replidict.brief import brief
from replidict.errors import EncodingError, StorageError
from replidict.machine.changes import Changes, Session
from replidict.machine.equality import place
from replidict.machine.state_machine import StateMachine
from replidict.storage import records
from replidict.storage.directory import leave_note
from replidict.storage.store import Store
from replidict.storage.whole_rows import log_rows, state_rows

PIECE_BYTES = 64 * 1024
"""So much is read at a time, or one row that is larger: a millisecond or so."""

ROW_BYTES = 128
"""What a row counts for beside what stands in it: it takes time to look at, however small it is."""

REST = 5.0
"""Seconds between the beginnings of two passes at least, and before the first: the file was read when it was opened."""

_pack = msgspec.msgpack.encode
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Scrubber:
    """Reads the file of one node again and again. Used by its thread alone."""

    def __init__(
        self, store: Store, machine: StateMachine, directory: Path, rate: int, clock: Callable[[], float]
    ) -> None:
        """`rate` is in bytes a second, 0 for never; notes are left in `directory`."""
        self.passes = self.bytes = 0
        """How often the whole file was read, and how much in all."""
        self.ended: float | None = None
        """When the last pass ended, on the node's clock."""
        self._store, self._machine, self._directory, self._rate, self._clock = store, machine, directory, rate, clock
        self._db: sqlite3.Connection | None = None
        self._parts = (self._facts, self._log, self._state, self._sessions, self._kept)
        self._size = 0  # of the piece
        self._began = clock()
        self._due = self._began + REST if rate else float("inf")
        self._begin(0)
        if rate:
            store.table.on_moved = self._follow

    def _begin(self, part: int) -> None:
        self._part = part
        self._after: Any = None  # the last row that was read, of this part; None: none was
        self._bound = 0  # what is beyond this came later than the part began
        self._count: int | None = 0  # of the rows that were read, and are there still; None: not known

    def next_deadline(self) -> float:
        """When the next piece is due, on the node's clock."""
        return self._due

    def begin_anew(self) -> None:
        """The tables were replaced by others."""
        self._begin(0)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._db is not None:
            self._db.close()

    def step(self) -> None:
        """Read a piece, if that is due. Raises `StorageError` if a row is not as it should be."""
        now = self._clock()
        if now < self._due:
            return
        if self._part == 0:
            self._began = now
        self._size = 0
        with self._store.errors("read"):
            try:
                over = self._piece()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY:
                    raise
                over = False  # somebody else looks at the file
        self.bytes += self._size
        self._due = now + max(self._size, 1024) / self._rate
        if over:
            self.passes, self.ended = self.passes + 1, now
            self._due = max(self._due, self._began + REST)

    def _piece(self) -> bool:
        """Read a piece; whether it was the last one of a pass."""
        if self._db is None:
            uri = self._store.uri
            self._db = sqlite3.connect(
                uri if "?" in uri else f"{uri}?mode=ro", uri=True, isolation_level=None, timeout=0,
                check_same_thread=False,
            )  # fmt: skip
        self._db.execute("PRAGMA shrink_memory")  # what is read must come from the file
        while self._size < PIECE_BYTES:
            if self._parts[self._part]():
                self._begin((self._part + 1) % len(self._parts))
                if self._part == 0:
                    return True
        return False

    def _read(self, sql: str, *parameters: object) -> tuple[list[Any], bool]:
        assert self._db is not None
        return self._take(self._db.execute(sql, parameters))

    def _take(self, rows: sqlite3.Cursor | Generator[Any]) -> tuple[list[Any], bool]:
        """Rows up to the size of a piece, and whether these were all."""
        taken: list[Any] = []
        with closing(rows):
            for row in rows:
                taken.append(row)
                self._size += ROW_BYTES + sum(len(column) for column in row if isinstance(column, bytes | str))
                if self._size >= PIECE_BYTES:
                    return taken, False
        return taken, True

    def _differs(self, what: str) -> None:
        """Rule 4."""
        text = f"{what} is not what this node has in memory, though its checksum is right"
        try:
            leave_note(self._directory, f"{self._store.name}: {text}. One of the two has changed: {records.CURE}")
        except StorageError as error:
            text = f"{text}. It must not be started again as it is, but no note could be left that says so: {error}"
        raise self._store.broken(text)

    def _must(self, right: bool, what: str) -> None:
        if not right:
            raise self._store.broken(f"the checksum of {what} is wrong")

    def _must_be(self, expected: int, what: str) -> None:
        """Rule 3."""
        if self._count not in (None, expected):
            raise self._store.broken(f"it should hold {expected} {what}, but has {self._count}")

    def _follow(self, changes: Changes) -> None:
        """The table has moved: what of it was read before is gone? Positions and numbers are never used again."""
        if self._after is None or self._count is None:
            return
        reading, after = self._parts[self._part], self._after
        if reading == self._state and changes.cleared:
            self._begin(self._part)
        elif reading == self._state:
            self._count -= len({row[0] for row in changes.rows if row[2] is None and row[0] <= after})
        elif reading == self._sessions:
            self._count -= sum(each <= after and session is None for each, session in changes.sessions.items())
        elif reading == self._kept and any(name <= after for name in changes.kept):
            self._count = None

    def _changed(self, what: Callable[[Changes], Iterable[Any]]) -> set[Any]:
        """In which rows the state table is behind."""
        return {each for changes in self._store.table.gathered for each in what(changes)}

    # -- the parts: each reads on, and says whether it has come to its end ---------------------------------------------

    def _facts(self) -> bool:
        store = self._store
        assert self._db is not None
        for name, data, crc in self._db.execute("SELECT name, data, crc FROM fact NOT INDEXED").fetchall():
            self._size += ROW_BYTES + len(data)
            self._must(crc == records.fact_crc(name, data), repr(name))
            if name == "applied" and msgspec.msgpack.decode(data, type=records.Applied) != store.applied:
                self._differs("'applied'")
        return True

    def _log(self) -> bool:
        log = self._store.log
        self._bound = self._bound or log.durable_index
        last = min(self._bound, log.durable_index)
        after = max(self._after or 0, log.start.index)
        assert self._db is not None
        rows, all_read = self._take(log_rows(self._db, self._store.format.number, after + 1, last))
        for index, term, command, committed, crc in rows:
            if index != after + 1:
                break
            self._must(crc == records.log_crc(index, term, command, committed), f"log entry {index}")
            known = log.remembered(index)
            if known is not None and (known.term, known.command) != (term, command):
                self._differs(f"log entry {index}")
            after = index
        if after < (last if all_read else rows[-1][0]):
            raise self._store.broken(f"log entry {after + 1} is missing")
        self._after = after
        return all_read

    def _state(self) -> bool:
        applied, items, crc_of = self._store.applied, self._machine.items, records.state_crc
        self._bound = self._bound or applied.next_position
        removed: set[int] | None = None
        rows, all_read = self._read(
            f"{state_rows(self._store.format.number)} WHERE s.position > ? ORDER BY s.position", self._after or 0
        )
        for position, key, value, revision, crc in rows:
            self._must(crc == crc_of(position, key, value, revision), f"state row {position}")
            try:
                item = items.get(place(key))
            except EncodingError:
                item = None
            if item is None or item.position != position:
                if removed is None:
                    removed = self._changed(lambda changes: (row[0] for row in changes.rows if row[2] is None))
                    cleared = any(changes.cleared for changes in self._store.table.gathered)
                right = cleared or position in removed
            else:
                right = item.revision > applied.revision or (
                    item.revision == revision and item.value == value and item.key == key
                )
            if not right:
                self._differs(f"state row {position}, of the key {brief(key)},")
        self._note_read(rows)
        if all_read:
            self._must_be(applied.rows, "keys")
        return all_read or self._after >= self._bound

    def _note_read(self, rows: list[Any]) -> None:
        if rows:
            self._after = rows[-1][0]
            if self._count is not None:
                self._count += len(rows)

    def _sessions(self) -> bool:
        sessions, changed = self._machine.sessions, self._changed(lambda changes: changes.sessions)
        rows, all_read = self._read(
            "SELECT number, data, crc FROM session WHERE number > ? ORDER BY number", self._after or 0
        )
        for number, data, crc in rows:
            self._must(crc == records.session_crc(number, data), f"session {number}")
            known = sessions.get(number)
            if number not in changed and _pack(msgspec.msgpack.decode(data, type=Session)) != _pack(known):
                self._differs(f"session {number}")
        self._note_read(rows)
        if all_read:
            self._must_be(self._store.applied.sessions, "sessions")
        return all_read

    def _kept(self) -> bool:
        if not self._store.format.keeps:
            return True
        kept, changed = self._machine.kept, self._changed(lambda changes: changes.kept)
        rows, all_read = self._read("SELECT name, data, crc FROM kept WHERE name > ? ORDER BY name", self._after or "")
        for name, data, crc in rows:
            self._must(crc == records.fact_crc(name, data), f"the row {name!r} of `kept`")
            if name not in changed and kept.get(name) != data:
                self._differs(f"the row {name!r} of `kept`")
        self._note_read(rows)
        if all_read:
            (count,) = self._read("SELECT data FROM fact WHERE name = 'kept'")[0][0]
            self._must_be(msgspec.msgpack.decode(count, type=records.Kept).rows, "rows of other state")
        return all_read

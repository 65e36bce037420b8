"""Writes the state to its table a little behind the log.

Rules kept here:

1. The table moves from one applied index to a later one in the caller's transaction, and never in between. What it
   takes there is given up when that has been committed, and not before.
2. It moves late, so that a key written often is written once; but never so late that a restart has much to replay.
3. It moves in steps, a small one beside each commit: the writes of that commit wait for it. Yet never slower than
   entries are applied, or it would be left behind.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from replidict.machine.changes import Changes
from replidict.storage import records
from replidict.storage.bulk_insert import put
from replidict.storage.file_format import FileFormat
from replidict.storage.large_values import LargeValues
from replidict.storage.wal import frames_before_checkpoint

GATHER_ENTRIES = 256
GATHER_ROWS = 2_000
GATHER_BYTES = 16 * 1024 * 1024
"""What is applied gathers up to so many entries, the rows that these changed, or the bytes that they take; large values
are counted apart, since they are not written again."""

STEP_PAGES = 16
"""A step writes rows on about so many pages of the table: keys drawn at random from a large dict are on a page each."""

STEP_BYTES = 256 * 1024
"""Nor does it write more than about this much."""

WHOLE_BYTES = 4 * 1024 * 1024
"""A table of no more than this, and of no more than `GATHER_ROWS` rows, goes without steps: the same rows gather again
and again, and are written once for all."""

_pack = msgspec.msgpack.encode


class StateTable:
    """The tables `state`, `session` and `kept`, and what is to go there. Used by the node's thread alone."""

    def __init__(self, connection: sqlite3.Connection, file_format: FileFormat, large: LargeValues) -> None:
        self._db = connection
        self._format = file_format
        self._large = large
        self._gathered: deque[tuple[int, Changes]] = deque()  # (term of the last entry, what was changed)
        self._rows = self._bytes = 0  # in all that
        self._recent_rows = self._recent_bytes = 0  # and of it, since the last commit
        self._taken = 0  # of what has gathered: in the caller's transaction
        self._frames = 0
        self.due = False
        """Whether enough has gathered for a step (rule 2)."""
        self.on_moved: Callable[[Changes], None] = lambda changes: None
        """Told of what has just been written to the tables."""

    @property
    def gathered(self) -> Iterator[Changes]:
        """What is applied, and not yet in the tables."""
        return (changes for _, changes in self._gathered)

    def gather(self, term: int, changes: Changes) -> None:
        """Take what applied entries changed, the last of them of this term."""
        if self._large.waiting:
            changes.bytes -= self._large.beside(changes)
        rows, size = len(changes.rows), changes.bytes
        self._gathered.append((term, changes))
        self._rows += rows
        self._bytes += size
        self._recent_rows += rows
        self._recent_bytes += size
        self._look()

    def _look(self) -> None:
        self.due = (
            len(self._gathered) >= GATHER_ENTRIES
            or self._rows >= GATHER_ROWS
            or self._bytes >= GATHER_BYTES
            or (self._rows > 0 and self._large.waiting_bytes >= GATHER_BYTES)
        )

    def clear(self) -> None:
        """Forget what has gathered: the table was replaced by a later one."""
        self._gathered.clear()
        self._rows = self._bytes = self._recent_rows = self._recent_bytes = self._taken = 0
        self.due = False

    @property
    def behind(self) -> bool:
        """Whether anything has gathered."""
        return bool(self._gathered)

    def written(self) -> None:
        """The rows that were taken are committed."""
        if not self._taken:
            return
        for _ in range(self._taken):
            _, changes = self._gathered.popleft()
            self._rows -= len(changes.rows)
            self._bytes -= changes.bytes
        self._taken = 0
        self._look()

    def step(self) -> records.Applied | None:
        """If a step is due, take its rows for this commit, and return the index that the table then has."""
        rows, size = self._recent_rows, self._recent_bytes
        self._recent_rows = self._recent_bytes = 0
        return self._move(rows, size, digested=False) if self.due else None

    def follow(self) -> records.Applied:
        """Take a large step, because no commit waits, or all wait for the last one."""
        return self._move(GATHER_ROWS, GATHER_BYTES, digested=True)

    def _move(self, least_rows: int, least_bytes: int, *, digested: bool) -> records.Applied:
        """`digested`: with the digest, if this is the state that the machine has; to make it takes a moment."""
        keys = self._gathered[-1][1].keys
        # How large the table is can be told by the average of what has gathered.
        whole = keys <= GATHER_ROWS and keys * self._bytes <= WHOLE_BYTES * self._rows
        term, first = self._gathered[0]
        changes = msgspec.structs.replace(first, rows=[*first.rows], sessions={**first.sessions}, kept={**first.kept})
        taken = 1
        count = len(changes.rows)
        pages = {row[0] // records.PAGE_ROWS for row in changes.rows}
        for last_term, later in islice(self._gathered, 1, None):
            if not (
                whole
                or (count < least_rows or changes.bytes < least_bytes)
                or (len(pages) < STEP_PAGES and changes.bytes + later.bytes <= STEP_BYTES)
            ):
                break
            term, taken = last_term, taken + 1
            count += len(later.rows)
            pages.update(row[0] // records.PAGE_ROWS for row in later.rows)
            changes.absorb(later)
        self._write(changes)
        self.on_moved(changes)
        self._taken = taken
        return records.Applied(
            changes.index, term, changes.revision, changes.next_position, changes.keys, changes.session_count,
            changes.digest() if digested else b"",
        )  # fmt: skip

    def _write(self, changes: Changes) -> None:
        db = self._db
        if changes.cleared:
            db.execute("DELETE FROM state")
        last: dict[int, tuple[bytes, bytes | None, int]] = {}
        for position, key, value, revision in changes.rows:
            last[position] = (last[position][0] if position in last else key, value, revision)
        crc = records.state_crc
        puts = [(p, k, v, r, crc(p, k, v, r)) for p, (k, v, r) in last.items() if v is not None]
        if self._large.waiting or self._large.referring:
            puts = self._large.follow(changes, last, puts)
        put(db, *records.DELETE_STATE, [(p,) for p, (_, v, _) in last.items() if v is None])
        put(db, *records.PUT_STATE, puts)
        sessions = [(n, _pack(session)) for n, session in changes.sessions.items() if session is not None]
        put(db, *records.DELETE_SESSION, [(n,) for n, session in changes.sessions.items() if session is None])
        put(db, *records.PUT_SESSION, [(n, data, records.session_crc(n, data)) for n, data in sessions])
        if changes.kept:
            self._write_kept(changes)
        frames = frames_before_checkpoint(changes.keys)
        if frames != self._frames:
            self._frames = frames
            db.execute(f"PRAGMA wal_autocheckpoint = {frames}")

    def _write_kept(self, changes: Changes) -> None:
        db, crc = self._db, records.fact_crc
        self._format.go_on_to(2)
        put(db, *records.DELETE_KEPT, [(name,) for name, data in changes.kept.items() if data is None])
        rows = [(name, data, crc(name, data)) for name, data in changes.kept.items() if data is not None]
        put(db, *records.PUT_KEPT, rows)
        count = _pack(records.Kept(changes.kept_count))
        db.execute(records.PUT_FACT, ("kept", count, crc("kept", count)))

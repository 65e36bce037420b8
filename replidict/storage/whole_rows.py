"""Reads the rows of log and state with the large values that were cut out of them (see `large_values`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from typing import TypeAlias

from replidict.storage.file_format import has_large

LogRow: TypeAlias = tuple[int, int, bytes, int, int]
"""(index, term, command, committed, crc)"""

StateRow: TypeAlias = tuple[int, bytes, bytes, int, int]
"""(position, key, value, revision, crc)"""

ENTRY_BITS = 16
"""An id of a large value is the index of its entry, and so many bits for its number there."""

LAST_ENTRY = (1 << 63 - ENTRY_BITS) - 1
"""The last one that there are ids for."""

_MOST = (1 << 63) - 1

_LOG = "SELECT idx, term, command, committed, crc FROM log WHERE idx BETWEEN ? AND ? ORDER BY idx"
_VALUES = "SELECT id, at, value FROM large_value WHERE id BETWEEN ? AND ? ORDER BY id"


def log_rows(
    db: sqlite3.Connection, file_format: int, first: int = -_MOST, last: int = _MOST
) -> sqlite3.Cursor | Generator[LogRow]:
    """The rows of the log in a range, in order. Whoever does not read them all closes this."""
    rows = db.execute(_LOG, (first, last))
    return _whole(rows, db.execute(_VALUES, ids(first, last))) if has_large(file_format) else rows


def _whole(rows: sqlite3.Cursor, values: sqlite3.Cursor) -> Generator[LogRow]:
    with closing(rows), closing(values):
        waiting = next(values, None)
        for row in rows:
            index, command, parts, start = row[0], row[2], list[bytes](), 0
            while waiting is not None and waiting[0] >> ENTRY_BITS <= index:
                of, at, value = waiting
                if of >> ENTRY_BITS == index:
                    parts += command[start:at], value
                    start = at
                waiting = next(values, None)
            yield (row[0], row[1], b"".join((*parts, command[start:])), *row[3:]) if parts else row


def ids(first: int, last: int = LAST_ENTRY) -> tuple[int, int]:
    """The first and the last id that a large value of these entries may have."""
    return max(0, min(first, LAST_ENTRY)) << ENTRY_BITS, (min(last, LAST_ENTRY) + 1 << ENTRY_BITS) - 1


def state_rows(file_format: int, database: str = "main") -> str:
    """A query for (position, key, value, revision, crc) of the rows of the state, to which a condition may be added.

    The position is `s.position` in it."""
    table = f"{database}.state AS s"
    if not has_large(file_format):
        return f"SELECT s.position AS position, key, value, revision, crc FROM {table}"
    return (
        "SELECT s.position AS position, key, coalesce(l.value, s.value), revision, crc "
        f"FROM {table} LEFT JOIN {database}.large_state AS r ON r.position = s.position "
        f"LEFT JOIN {database}.large_value AS l ON l.id = r.id"
    )

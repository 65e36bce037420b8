"""Large values, which are in a node's file once: log and state table refer to them.

Rules kept here:

1. What an entry of the log stores, if it is large, is cut out of its row and is a row of `large_value`. Its id says
   whose it is (see `whole_rows`), `at` where it belongs in what is left of the command.
2. A row of the state table whose value is there is empty, and a row of `large_state` says which one it is. No two rows
   of the state share one.
3. A value goes when neither the log nor the state has a row that needs it. It comes and goes in the transaction that
   writes or deletes these rows, so no crash can come between.
4. Checksums are those of whole rows: one that lacks its value, or has another one, is damaged.
5. All this is a matter of a node's own file, from format 3 on. What is in memory, in messages, in snapshots and in
   backups is whole, and so is what a digest is made of.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from replidict.machine import commands as cmd
from replidict.machine.changes import Changes
from replidict.machine.command_values import values
from replidict.storage.bulk_insert import put
from replidict.storage.file_format import FileFormat
from replidict.storage.log import Log
from replidict.storage.whole_rows import ENTRY_BITS, LAST_ENTRY, LogRow, StateRow, ids

LARGE_BYTES = 16 * 1024
"""What is longer is large; for what is shorter, a row more would cost as much as it saves. At least 255."""

_PUT_VALUE = ("INSERT INTO large_value(id, at, value) VALUES", "")
_DELETE_VALUE = ("DELETE FROM large_value WHERE id IN (VALUES", ")")
_PUT_STATE = ("INSERT INTO large_state(position, id) VALUES", "")
_DELETE_STATE = ("DELETE FROM large_state WHERE position IN (VALUES", ")")


class _Value(NamedTuple):
    id: int
    command: bytes  # that it is part of
    start: int
    length: int


class LargeValues:
    """The tables `large_value` and `large_state`. Used by the node's thread alone, in the caller's transactions."""

    def __init__(self, connection: sqlite3.Connection, file_format: FileFormat, log: Log, applied: int) -> None:
        """`applied` is the last entry that the state table covers."""
        self._db = connection
        self._format = file_format
        self._log = log
        self.waiting: deque[_Value] = deque()
        """Those of the entries on disk that the state table does not cover, in order."""
        self.waiting_bytes = 0
        self.referring: dict[int, int] = {}
        """The rows of the state table whose value is here, by position, and which value it is."""
        if file_format.has_large:
            self.referring.update(connection.execute("SELECT position, id FROM large_state"))
            self._load_waiting(applied)

    def _load_waiting(self, applied: int) -> None:
        lengths = "SELECT id, at, length(value) FROM large_value WHERE id >= ? ORDER BY id"
        entry = cut = 0
        for each, at, length in self._db.execute(lengths, (ids(applied + 1)[0],)):
            if each >> ENTRY_BITS != entry:
                entry, cut = each >> ENTRY_BITS, 0
            found = self._log.remembered(entry)
            assert found is not None, "what the state table does not cover is in memory"
            self._wait(_Value(each, found.command, at + cut, length))
            cut += length

    def _wait(self, value: _Value) -> None:
        self.waiting.append(value)
        self.waiting_bytes += value.length

    def clear(self) -> None:
        """The tables were emptied."""
        self.waiting.clear()
        self.waiting_bytes = 0
        self.referring.clear()

    # -- the log ----------------------------------------------------------------------------------------------------

    def cut(self, rows: Iterable[LogRow]) -> list[LogRow]:
        """Write the large values of new rows of the log. Returns the rows without them."""
        return [self._cut(row) if len(row[2]) > LARGE_BYTES else row for row in rows]

    def _cut(self, row: LogRow) -> LogRow:
        index, _, command, *_ = row
        found = list(_large(index, command)) if self._format.keeps and index <= LAST_ENTRY else []
        if not found:
            return row
        self._format.go_on_to(3)
        whole, left, written, end = memoryview(command), list[memoryview](), list[tuple[int, int, memoryview]](), 0
        first, at = ids(index)[0], 0
        for number, (start, length) in enumerate(found[: 1 << ENTRY_BITS]):
            left.append(whole[end:start])
            at += start - end
            end = start + length
            written.append((first + number, at, whole[start:end]))
            self._wait(_Value(first + number, command, start, length))
        put(self._db, *_PUT_VALUE, written)
        return (index, row[1], b"".join((*left, whole[end:])), *row[3:])

    def cut_off(self, index: int) -> None:
        """Delete what belongs to entries from this one on: they go from the log, and no state has them."""
        first = ids(index)[0]
        self._db.execute("DELETE FROM large_value WHERE id >= ?", (first,))
        while self.waiting and self.waiting[-1].id >= first:
            self.waiting_bytes -= self.waiting.pop().length

    def compact(self, last: int) -> None:
        """The log's entries up to `last` go: delete those of their values that no row of the state has."""
        self._db.execute(
            "DELETE FROM large_value WHERE id BETWEEN ? AND ? "
            "AND NOT EXISTS (SELECT 1 FROM large_state WHERE large_state.id = large_value.id)",
            ids(self._log.start.index + 1, last),
        )

    # -- the state table --------------------------------------------------------------------------------------------

    def beside(self, changes: Changes) -> int:
        """How many bytes of these changes the state table need not write, while some are `waiting`."""
        return sum(len(row[2]) for row in changes.rows if row[2] is not None and len(row[2]) > LARGE_BYTES)

    def follow(self, changes: Changes, changed: Iterable[int], rows: list[StateRow]) -> list[StateRow]:
        """The state table takes these changes, of rows at the positions `changed`; `rows` are to be put there. Returns
        them without those values that are here already."""
        if self.referring:
            gone = self.referring.keys() if changes.cleared else self.referring.keys() & changed
            self._release([(position, self.referring.pop(position)) for position in list(gone)])
        found: dict[int, list[_Value]] = {}
        while self.waiting and self.waiting[0].id >> ENTRY_BITS <= changes.index:
            value = self.waiting.popleft()
            self.waiting_bytes -= value.length
            found.setdefault(value.length, []).append(value)
        return self._refer(rows, found) if found else rows

    def _release(self, rows: list[tuple[int, int]]) -> None:
        still_in_log = ids(self._log.start.index + 1)[0]
        put(self._db, *_DELETE_STATE, [(position,) for position, _ in rows])
        put(self._db, *_DELETE_VALUE, [(each,) for _, each in rows if each < still_in_log])

    def _refer(self, rows: list[StateRow], found: dict[int, list[_Value]]) -> list[StateRow]:
        referring: list[tuple[int, int]] = []
        for number, (position, key, value, revision, crc) in enumerate(rows):
            for each in found.get(len(value), ()):
                if each.command.startswith(value, each.start):
                    found[len(value)].remove(each)
                    referring.append((position, each.id))
                    rows[number] = (position, key, b"", revision, crc)
                    break
        put(self._db, *_PUT_STATE, referring)
        self.referring.update(referring)
        return rows


def _large(index: int, command: bytes) -> Iterator[tuple[int, int]]:
    """Where the large values are that the entry at `index` stores, and how long they are."""
    if b"\xc5" not in command and b"\xc6" not in command:
        return  # no long ones: it takes a moment to decode many short ones
    end = 0
    for value in values(cmd.decode_at(index, command)):
        length = len(value)
        if length > LARGE_BYTES:
            head = b"\xc5" + length.to_bytes(2) if length < 1 << 16 else b"\xc6" + length.to_bytes(4)
            start = command.index(head, end) + len(head)
            while not command.startswith(value, start):
                start = command.index(head, start) + len(head)
            end = start + length
            yield start, length

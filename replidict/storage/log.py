"""The log: its recent end in memory, all of it in SQLite.

Rules kept here:

1. Entries are contiguous: `start.index + 1 .. last_index`.
2. What is appended or cut off is visible at once and durable after the store's next commit; `durable_index`
   is the last entry that is on disk just as it stands here.
3. Only committed and applied entries leave memory, so most reads touch no disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from replidict.protocol.log_entry import Entry
from replidict.storage.records import LogStart

MEMORY_BYTES = 32 * 1024 * 1024
"""Applied entries stay in memory, for followers that lag a little, up to about this much."""

OVERHEAD = 64
"""What an entry costs beside its command, in memory and in SQLite, roughly; in bytes."""


class Log:
    """Figure 2, `log[]`. Used by the node's thread alone."""

    def __init__(
        self, start: LogStart, sizes: list[int], tail: list[Entry], read: Callable[[int, int, int], list[Entry]]
    ) -> None:
        """`sizes` are the lengths of all commands on disk, `tail` the last entries of these;
        `read(first, last, max_bytes)` gets entries from the table, at least one."""
        self.start = start
        self.last_index = self.durable_index = start.index + len(sizes)
        self.appended: list[Entry] = []  # not yet on disk
        self.longest = 0  # of `appended`, in bytes
        self.cut_from: int | None = None  # rows from here on are to be deleted before `appended` is written
        self.deleted_entries = 0
        self._read = read
        self._memory = tail
        self._memory_bytes = sum(len(e.command) + OVERHEAD for e in tail)
        self._sizes: deque[int] = deque(size + OVERHEAD for size in sizes)
        self.bytes = sum(self._sizes)

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        if self._memory:
            return self._memory[-1].term
        term = self.term_at(self.last_index)
        assert term is not None
        return term

    def __len__(self) -> int:
        return len(self._sizes)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at `index`; None if it is not here (compacted away, or not yet written)."""
        if index == self.start.index:
            return self.start.term
        if index < self.start.index or index > self.last_index:
            return None
        return self._entry(index).term

    def remembered(self, index: int) -> Entry | None:
        """The entry at `index`, if it is in memory; it must not be after the last one."""
        first = self._memory[0].index if self._memory else self.last_index + 1
        return self._memory[index - first] if index >= first else None

    def _entry(self, index: int) -> Entry:
        return self.remembered(index) or self._read(index, index, 0)[0]

    def entries_from(self, index: int, max_bytes: int) -> list[Entry]:
        """Entries from `index` on, at least one if there is one, then up to `max_bytes` in all."""
        last = self.last_index
        if index > last:
            return []
        first = self._memory[0].index if self._memory else last + 1
        if index < first:
            return self._read(index, min(first - 1, index + 4096), max_bytes)
        found: list[Entry] = []
        size = 0
        for position in range(index - first, len(self._memory)):
            entry = self._memory[position]
            size += len(entry.command) + OVERHEAD
            if found and size > max_bytes:
                break
            found.append(entry)
        return found

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries that follow the last one."""
        assert entries[0].index == self.last_index + 1, "log entries must be contiguous"
        self.last_index += len(entries)
        self.appended.extend(entries)
        self._memory.extend(entries)
        for entry in entries:
            size = len(entry.command) + OVERHEAD
            self._sizes.append(size)
            self._memory_bytes += size
            self.bytes += size
            if size > self.longest:
                self.longest = size

    def cut(self, index: int) -> None:
        """Delete the entry at `index` and all after it: they conflict with the leader's (figure 2, rule 3)."""
        while self._memory and self._memory[-1].index >= index:
            self._memory_bytes -= len(self._memory.pop().command) + OVERHEAD
            self.bytes -= self._sizes.pop()
            self.last_index -= 1
            self.deleted_entries += 1
        while self.appended and self.appended[-1].index >= index:
            self.appended.pop()
        if index <= self.durable_index:
            self.durable_index = index - 1
            self.cut_from = index if self.cut_from is None else min(index, self.cut_from)

    def written(self) -> None:
        """All that waited is on disk."""
        self.durable_index = self.last_index
        self.appended.clear()
        self.longest = 0
        self.cut_from = None

    def excess(self, retain: int, retain_bytes: int, most: int) -> int:
        """How many of the oldest entries, of `most` at most, are not among the last `retain` or take the log above
        `retain_bytes`."""
        count = max(0, min(len(self._sizes) - retain, most))
        size = self.bytes - sum(islice(self._sizes, count))
        for each in islice(self._sizes, count, most):
            if size <= retain_bytes:
                break
            size -= each
            count += 1
        return count

    def compact(self, index: int, term: int) -> None:
        """Forget everything up to `index`, which the state table covers."""
        for _ in range(index - self.start.index):
            self.bytes -= self._sizes.popleft()
        self.start = LogStart(index, term)
        self._forget_up_to(index)

    def reset(self, index: int, term: int) -> None:
        """Begin anew after a snapshot of everything up to `index` (figure 13, rule 7); already durable."""
        self.start = LogStart(index, term)
        self._memory.clear()
        self._sizes.clear()
        self.appended.clear()
        self.longest = 0
        self.cut_from = None
        self.bytes = self._memory_bytes = 0
        self.last_index = self.durable_index = index

    def release_memory(self, applied_index: int) -> None:
        """Let go of applied entries that are on disk, beyond what lagging followers are likely to need."""
        if self._memory_bytes <= MEMORY_BYTES or not self._memory:
            return
        excess, last = 0, min(applied_index, self.durable_index)
        for entry in self._memory:
            if entry.index > last or self._memory_bytes - excess <= MEMORY_BYTES // 2:
                break
            excess += len(entry.command) + OVERHEAD
            last_released = entry.index
        if excess:
            self._forget_up_to(last_released)

    def _forget_up_to(self, index: int) -> None:
        if self._memory and self._memory[0].index <= index:
            count = min(index - self._memory[0].index + 1, len(self._memory))
            self._memory_bytes -= sum(len(e.command) + OVERHEAD for e in self._memory[:count])
            del self._memory[:count]

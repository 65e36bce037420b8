"""The high-water mark: a file that notes what this node has promised others is on its disk, to detect an older copy.

A file whose end is missing, or an old copy of it, looks like any other: SQLite opens it, and a node that forgot a vote
or acknowledged entries would undo what a majority was counted for. The mark says how far the file went.

Rules kept here:

1. It is written after a commit has returned, and never synced. So it may lag after a power cut, but never says more
   than what was synced: a file that falls short of it has lost something.
2. Two slots in two sectors take turns, each with a checksum: a torn one leaves the other, and an unreadable mark says
   nothing.
3. The log's last index moves back only where entries are cut off or a snapshot replaces them. The file counts these
   (`cuts`); indexes are compared only while that count is the same.
"""

from __future__ import annotations

import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path

_SLOT = struct.Struct("<QQQQI")  # number, term, cuts, last index, vote
_CRC = struct.Struct("<I")
_SECTOR = 4096  # the slots are so far apart


class HighWaterMark:
    """The mark of one node. Used by the node's thread alone."""

    def __init__(self, path: Path) -> None:
        """Open it, or make it. Raises `OSError`."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._number, self._term, self._cuts, self._last_index, self._vote = max(
            (self._read(slot) for slot in (0, 1)), key=lambda found: found[0]
        )

    def _read(self, slot: int) -> tuple[int, int, int, int, int]:
        data = os.pread(self._descriptor, _SLOT.size + _CRC.size, slot * _SECTOR)
        if len(data) != _SLOT.size + _CRC.size or _CRC.unpack_from(data, _SLOT.size)[0] != zlib.crc32(
            data[: _SLOT.size]
        ):
            return 0, 0, 0, 0, 0
        number, term, cuts, last_index, vote = _SLOT.unpack_from(data)
        return number, term, cuts, last_index, vote

    def verify(self, term: int, voted_for: str | None, cuts: int, last_index: int) -> str | None:
        """In what the file just opened falls short of the mark; None if in nothing."""
        if term < self._term:
            return f"its term is {term}, but this node has already acknowledged term {self._term}"
        if term == self._term and self._vote not in (0, _vote(voted_for)):
            return f"the vote that this node gave in term {term} is not in it"
        if cuts < self._cuts or (cuts == self._cuts and last_index < self._last_index):
            return f"its log ends at entry {last_index}, but this node has already acknowledged {self._last_index}"
        return None

    def note(self, term: int, voted_for: str | None, cuts: int, last_index: int) -> None:
        """All this is on disk. Raises `OSError`."""
        self._number += 1
        data = _SLOT.pack(self._number, term, cuts, last_index, _vote(voted_for))
        os.pwrite(self._descriptor, data + _CRC.pack(zlib.crc32(data)), self._number % 2 * _SECTOR)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@lru_cache
def _vote(voted_for: str | None) -> int:
    return 0 if voted_for is None else zlib.crc32(voted_for.encode()) or 1

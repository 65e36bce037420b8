"""Checks the write-ahead log beside a node's file (complete, except for what a crash may have torn), and limits its
size.

SQLite reads its log up to the first frame whose checksum is wrong and takes all that follows for never written. That
is right for a torn end, and wrong for damage: acknowledged entries and votes would be gone without a word. So the log
is read here first, before SQLite opens (and later deletes) it.

What the file looks like (sqlite.org/fileformat2.html, section 4, "The Write-Ahead Log"):

- A header of 32 bytes: magic number (its last bit: are checksums over big-endian words?), version, page size, count of
  checkpoints, two salts, and a checksum of all that.
- Frames: a header of 24 bytes (page number; size of the database in pages if a transaction ends here, else 0; the two
  salts; a checksum of this and all frames before it), then the page.
- Writing begins again at the start when everything was copied to the database: with other salts, so that the frames
  that are left over from before belong to nobody.

Rules kept here:

1. Each commit is synced before the next one writes its first frame, and each run of a node begins with an empty log. So
   whatever a crash or a power cut does, at most the last transaction is torn: its frames may be there in part, in any
   order, and half written.
2. Frames with this log's salts that follow a bad frame *and* the end of another transaction can't come from that: the
   bad frame was synced. It is damage, and the transactions from there on are still there to prove it.
3. The header is synced before the first frame is written. A bad header with anything behind it is damage; but for zeros
   throughout, of which the log is made (`presize`).
4. What can't be told from a torn end (damage within the very last transaction, a log cut off or removed) passes here:
   that is what `high_water_mark` is for.

This holds for `durability="fsync"` only: without a sync after each commit, a power cut may tear several. A file
beside it says that it was written so (`directory.UNSYNCED`).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from array import array
from pathlib import Path

from replidict.storage.records import PAGE_ROWS

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
FEWEST_FRAMES, MOST_FRAMES = 1_000, 6_000
SPARE_BYTES = 1024 * 1024
"""Room for a large last transaction."""

_MAGIC = 0x377F0682
_VERSION = 3007000
_MASK = 0xFFFFFFFF


def check_wal(file: Path) -> str | None:
    """The error text for a damaged write-ahead log of this SQLite file; None if it is intact. Raises `OSError`.

    `file` must not be open in SQLite yet.
    """
    path = Path(f"{file}-wal")
    if not path.exists():
        return None
    with path.open("rb") as wal:
        header = wal.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None  # being made when the power went: nothing was ever written to it
        magic, version, page_bytes, _, *rest = struct.unpack(">8I", header)
        salts, checksum = header[16:24], (rest[2], rest[3])
        swap = (magic & 1 == 1) != (sys.byteorder == "big")
        sane = magic & ~1 == _MAGIC and version == _VERSION and page_bytes in _PAGE_SIZES
        if not sane or _checksum(header[:24], (0, 0), swap) != checksum:
            rest_bytes = wal.read()
            made_of_zeros = not any(header) and not rest_bytes.strip(b"\0")
            return f"the header of {path.name} is damaged" if rest_bytes and not made_of_zeros else None
        frame_bytes = FRAME_HEADER_BYTES + page_bytes
        number = 0
        while len(frame := wal.read(frame_bytes)) == frame_bytes:
            number += 1
            checksum = _checksum(frame[24:], _checksum(frame[:8], checksum, swap), swap)
            if frame[8:16] != salts or struct.unpack_from(">2I", frame, 16) != checksum:
                break
        else:
            return None
        bad, ends, goes_on = number, 0, False
        while len(frame) == frame_bytes:
            if frame[8:16] == salts:
                goes_on = ends > 0
                if goes_on:
                    break
                ends += frame[4:8] != b"\0\0\0\0"
            frame = wal.read(FRAME_HEADER_BYTES)
            wal.seek(page_bytes, 1)
            frame += bytes(page_bytes) if len(frame) == FRAME_HEADER_BYTES else b""
    if goes_on:
        return f"{path.name} is damaged in frame {bad}, and transactions that were committed after it can't be read"
    return None


def frames_before_checkpoint(rows: int) -> int:
    """How many frames gather before SQLite copies them to the database and begins anew at the log's start.

    As many as a state table of so many rows has pages, within bounds. Of a small table the same pages are written
    again and again. Keys drawn at random from a large one are on a page each, so 1,000 frames would be copied every few
    hundred writes, and what waits for it would be more than one write in a hundred.
    """
    return max(FEWEST_FRAMES, min(rows // PAGE_ROWS, MOST_FRAMES))


def longest(page_bytes: int) -> int:
    """How many bytes of the log may stay. A snapshot that is installed, in one transaction, makes it as long as itself:
    SQLite cuts it off here when it begins anew."""
    return MOST_FRAMES * (FRAME_HEADER_BYTES + page_bytes) + SPARE_BYTES


def presize(file: Path, frames: int, page_bytes: int) -> None:
    """Fill an empty log with zeros, for SQLite to write over. Raises `OSError`; without room it stays empty.

    To sync a file that has grown costs about twice as much as to sync one that has not: its new size must be on disk,
    too. `file` is open in SQLite, which looks at nothing behind the frames that it wrote.
    """
    descriptor = os.open(f"{file}-wal", os.O_WRONLY | os.O_CLOEXEC)
    try:
        zeros = bytes(_ZEROS)
        try:
            wanted = frames * (FRAME_HEADER_BYTES + page_bytes) + SPARE_BYTES
            for position in range(0, wanted + -wanted % SPARE_BYTES, len(zeros)):
                os.pwrite(descriptor, zeros, position)
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, 0)
            if error.errno not in _NO_ROOM:
                raise
    finally:
        os.close(descriptor)


_ZEROS = 64 * 1024
"""At a time. Linux keeps in one piece what is written in one, and a process that writes a page of such a piece is said
(`write_bytes` in /proc) to have written all of it."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAGE_SIZES = frozenset(2**exponent for exponent in range(9, 17))


def _checksum(data: bytes, start: tuple[int, int], swap: bool) -> tuple[int, int]:
    """Go on with the checksum of section 4.2, over 32-bit words two by two."""
    words = array("I", data)
    if swap:
        words.byteswap()
    first, second = start
    pairs = iter(words)
    for one, other in zip(pairs, pairs, strict=True):
        first = (first + one + second) & _MASK
        second = (second + other + first) & _MASK
    return first, second

"""The rows of a node's file, and their checksums.

Every row carries a CRC-32 over all its columns: SQLite's own checks see a broken page, not a flipped bit in a value.
"""

from __future__ import annotations

import sqlite3
import struct
import time
import zlib

import msgspec

APPLICATION_ID = 0x7265706C  # "repl"

CURE = (
    "a member of a cluster must never get an older file back, because it would forget votes and entries that others "
    "count on: remove it from the cluster and let it join anew with an empty directory. A node without peers can be "
    "restored from a backup."
)
"""What to do about a damaged file."""

DISK_CURE = "Make sure the disk has space and is healthy, then open it again: what was acknowledged is there."
"""What to do about a disk that fails or is full."""

MEMORY_CURE = "Give the process more memory, then open it again: what was acknowledged is there."
"""What to do when a process has no memory left."""

FAILURES = (sqlite3.Error, OSError, ValueError, msgspec.MsgspecError)
"""What reading or writing a file raises; ValueError when sqlite3 can't decode the damaged bytes an error quotes."""


def in_words(error: BaseException) -> str:
    """The text of an error, with its class if the text alone says too little."""
    if isinstance(error, sqlite3.Error | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def is_damage(error: BaseException) -> bool:
    """Whether this says that the file is wrong, and not that the disk is full or fails."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return not isinstance(error, OSError)


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """The identity of this file, created with it."""

    cluster_id: str
    node_id: str
    address: str


class Vote(msgspec.Struct, frozen=True, array_like=True):
    """Figure 2, persistent state: the current term, and the candidate that got this node's vote in it. `cuts` counts
    how often the log was truncated or replaced by a snapshot: only then may its last index decrease (see
    `high_water_mark`)."""

    term: int = 0
    voted_for: str | None = None
    cuts: int = 0


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """What the state and session tables hold: everything up to `index`, and the number of rows. `digest` is that of the
    state (see `machine.digest`), if it was known: after `close`, and in a backup."""

    index: int = 0
    term: int = 0
    revision: int = 0
    next_position: int = 1
    rows: int = 0
    sessions: int = 0
    digest: bytes = b""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """The number of rows in the table `kept`, from format 2 on."""

    rows: int = 0


class LogStart(msgspec.Struct, frozen=True, array_like=True):
    """The entry just below the first one kept: everything up to it was compacted away."""

    index: int = 0
    term: int = 0


class Members(msgspec.Struct, frozen=True, array_like=True):
    """The last configuration known to be committed, as of the entry at `index`: at least the applied one."""

    index: int
    voters: list[str]
    learners: list[str]
    node_ids: dict[str, str] = {}
    readers: list[str] = []


class Pins(msgspec.Struct, frozen=True, array_like=True):
    """The identity first seen at each peer's address: a node that lost its disk is not the same node."""

    node_ids: dict[str, str]


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Only in a backup: its cluster and node, and when it was made (ISO 8601, UTC)."""

    cluster_id: str
    node_id: str
    address: str
    taken_at: str


class Recovered(msgspec.Struct, frozen=True, array_like=True):
    """Only on the founder of a recovered cluster: which cluster was recovered, and when (ISO 8601, UTC). `certain` says
    that nothing acknowledged can have been lost, in this recovery or an earlier one. The rest is for the members of the
    old cluster (see `superseded`): who the founder was there, and who the members were, as of the entry at `index`;
    `before` is the same of an earlier recovery."""

    cluster_id: str
    at: str
    certain: bool
    node_id: str
    address: str
    index: int
    members: list[str]
    before: Recovered | None = None


def another_node(address: str, known: str, node_id: str) -> str:
    """The error text for an address whose node has another identity than the known one."""
    return (
        f"the node at {address} was {known} and is now {node_id}: it lost its disk or another took its place; "
        "remove it from the cluster and let it join anew"
    )


PAGE_ROWS = 32
"""Rows of `state` on a page, roughly: of 100 bytes each, by position."""

_NUMBER, _THREE_NUMBERS = struct.Struct("<q").pack, struct.Struct("<3q").pack


def log_crc(index: int, term: int, command: bytes, committed: int) -> int:
    """Checksum of a row of `log`. `committed` is the commit index that was known when the entry was written."""
    return zlib.crc32(command, zlib.crc32(_THREE_NUMBERS(index, term, committed)))


def state_crc(position: int, key: bytes, value: bytes, revision: int) -> int:
    """Checksum of a row of `state`."""
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(_THREE_NUMBERS(position, revision, len(key)))))


def session_crc(number: int, data: bytes) -> int:
    """Checksum of a row of `session`."""
    return zlib.crc32(data, zlib.crc32(_NUMBER(number)))


def fact_crc(name: str, data: bytes) -> int:
    """Checksum of a row of `fact`, or of `kept`."""
    return zlib.crc32(data, zlib.crc32(name.encode()))


PUT_LOG = ("INSERT INTO log(idx, term, command, committed, crc) VALUES", "")
PUT_STATE = (
    "INSERT INTO state(position, key, value, revision, crc) VALUES",
    "ON CONFLICT(position) DO UPDATE SET value = excluded.value, revision = excluded.revision, crc = excluded.crc",
)
DELETE_STATE = ("DELETE FROM state WHERE position IN (VALUES", ")")
PUT_SESSION = ("INSERT OR REPLACE INTO session(number, data, crc) VALUES", "")
DELETE_SESSION = ("DELETE FROM session WHERE number IN (VALUES", ")")
PUT_KEPT = ("INSERT OR REPLACE INTO kept(name, data, crc) VALUES", "")
DELETE_KEPT = ("DELETE FROM kept WHERE name IN (VALUES", ")")
PUT_FACT = "INSERT OR REPLACE INTO fact(name, data, crc) VALUES (?, ?, ?)"


def later_token(known: int) -> int:
    """Where tokens of locks go on in a cluster that may not know of all that were granted after this one.

    Seconds since the epoch, times a million: no cluster grants so many a second.
    """
    return max(known + (1 << 20), int(time.time()) << 20)

"""The digest of the replicated state, kept up to date as rows change, by which nodes find out that they differ.

Rules kept here:

1. The digest is the sum, modulo 2**128, of a hash of each row and of one of the counters. So it depends on the content
   alone: not on the order of its changes, on the machine or the release of Python, nor on whether it was loaded or
   applied. The hash of a key's row is made of a CRC-32, as that of the row on disk is: it is to find faults, and has no
   enemy; a stronger one took more time than the rest of applying a write.
2. Nothing is hashed while a command is applied. The old and the new content of changed rows are noted, and hashed when
   the digest is needed, or when many have gathered. A key that was written often is hashed once then.
3. What is hashed, and how, is fixed for a feature level: otherwise old and new nodes would differ.
4. The texts of refused operations are left out, since another release may word them differently.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any
from zlib import crc32

import msgspec

from replidict.machine.changes import Changes, Item, Session

GATHER_ROWS = 2_000
GATHER_BYTES = 16 * 1024 * 1024
"""So many rows, or the commands that changed them, gather at most: to hash them takes a few milliseconds."""

KNOWN_ROWS = 4_000
"""So many hashes are remembered: what was written of late is often written again, and then taken from the sum."""

_MASK = 2**128 - 1
_SESSION, _KEPT, _COUNTERS = range(1, 4)
_POSITION, _REVISION, _CONTENT = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93
_five_numbers = struct.Struct("<5q").pack
_pack = msgspec.msgpack.encode


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "little")


def row_hash(position: int, key: bytes, value: bytes, revision: int) -> int:
    """The hash of a key with its value, revision and place in the order."""
    mixed = position * _POSITION + revision * _REVISION + crc32(value, crc32(key)) * _CONTENT
    return mixed * mixed  # so that two rows that have exchanged anything do not have the same sum as before


def session_hash(number: int, session: Session) -> int:
    """The hash of a session and its replies."""
    replies = [(sequence, [_without_words(result) for result in results]) for sequence, results in session.replies]
    return _hash(_five_numbers(_SESSION, number, session.sequence, session.used, len(replies)) + _pack(replies))


def _without_words(result: Any) -> Any:
    """Rule 4."""
    return result.partition(":")[0] if type(result) is str else result


def kept_hash(name: str, data: bytes) -> int:
    """The hash of what else is kept under a name."""
    encoded = name.encode()
    return _hash(_five_numbers(_KEPT, len(encoded), len(data), 0, 0) + encoded + data)


def digest_of(rows: int, revision: int, next_position: int) -> bytes:
    """The digest of a state whose row hashes have this sum."""
    counters = _hash(_five_numbers(_COUNTERS, revision, next_position, 0, 0))
    return ((rows + counters) & _MASK).to_bytes(16, "little")


class StateDigest:
    """The sum of the hashes of all rows of one state machine."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._keys = self._others = 0  # the sums: of keys, and of sessions and what else is kept
        self.changed: list[tuple[int, Item | None, Item | None]] = []
        """The keys that have become others, come or gone, noted by who changes them: position, before, after."""
        self._known: dict[int, int] = {}  # by position, hashes that are in the sum, the latest last
        self._sessions: dict[int, int] = {}  # by number, the hash that is in the sum
        self._changed_sessions: dict[int, Session | None] = {}
        self._kept_before: dict[str, bytes | None] = {}
        self._kept_after: dict[str, bytes | None] = {}
        self._bytes = 0

    def load(self, items: Iterable[Item], sessions: Mapping[int, Session], kept: Mapping[str, bytes]) -> None:
        """Begin with these rows."""
        self._forget()
        for item in items:
            self._keys += row_hash(item.position, item.key, item.value, item.revision)
        self._sessions = {number: session_hash(number, session) for number, session in sessions.items()}
        self._others = sum(self._sessions.values()) + sum(kept_hash(*row) for row in kept.items())

    def clear(self) -> None:
        """All keys are gone."""
        self._keys = 0
        self.changed, self._known = [], {}

    def follow(self, changes: Changes, kept: Mapping[str, bytes]) -> None:
        """Note the rest of what has changed; `kept` is what was kept before that."""
        self._changed_sessions.update(changes.sessions)
        for name, data in changes.kept.items():
            self._kept_before.setdefault(name, kept.get(name))
            self._kept_after[name] = data
        self._bytes += changes.bytes
        if len(self.changed) + len(self._kept_before) >= GATHER_ROWS or self._bytes >= GATHER_BYTES:
            self.settle()

    def settle(self) -> int:
        """Hash what has gathered; the sum."""
        if self.changed:
            self._settle_keys()
        for number, session in self._changed_sessions.items():
            self._others -= self._sessions.pop(number, 0)
            if session is not None:
                self._sessions[number] = hashed = session_hash(number, session)
                self._others += hashed
        for rows, sign in ((self._kept_before, -1), (self._kept_after, 1)):
            self._others += sign * sum(kept_hash(name, data) for name, data in rows.items() if data is not None)
        self.changed = []
        self._changed_sessions, self._kept_before, self._kept_after = {}, {}, {}
        self._bytes = 0
        return self._keys + self._others

    def _settle_keys(self) -> None:
        known, total = self._known, self._keys
        before: dict[int, Item | None] = {}
        after: dict[int, Item | None] = {}
        for position, present, item in self.changed:
            before.setdefault(position, present)
            after[position] = item
        for position, item in before.items():
            if item is not None:
                hashed = known.pop(position, None)
                total -= row_hash(position, item.key, item.value, item.revision) if hashed is None else hashed
        for position, item in after.items():
            if item is not None:
                known[position] = hashed = row_hash(position, item.key, item.value, item.revision)
                total += hashed
        for position in list(islice(known, max(len(known) - KNOWN_ROWS, 0))):
            del known[position]
        self._keys = total & _MASK

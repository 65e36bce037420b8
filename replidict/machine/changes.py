"""The effects of a command as they are passed on: rows for the disk, changes of keys for watches."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeAlias

import msgspec


class Item(msgspec.Struct, frozen=True, gc=False):
    """A stored value, the revision that wrote it, its place in the insertion order, and the key it was first stored
    under: as in `dict`, an equal key of another type (1, True) finds it and does not replace it. Both are encoded."""

    key: bytes
    value: bytes
    revision: int
    position: int


class Session(msgspec.Struct, frozen=True, array_like=True):
    """What must be remembered to answer a retry: the last batch applied, and the results not yet acknowledged."""

    sequence: int
    used: int
    replies: tuple[tuple[int, list[Any]], ...]  # (sequence, results): msgspec takes no union of bytes and str


Row: TypeAlias = tuple[int, bytes, bytes | None, int]
"""(position, key, value or None if removed, revision)"""

KeyChange: TypeAlias = tuple[
    int, Literal["set", "delete", "expire", "clear"], Hashable, bytes, bytes | None, bytes | None
]
"""One change of one key, for those who watch: (revision, kind, the place of the key, the key it is stored under, value,
previous value). Those of one command have its revision. "clear" stands for more keys than are told one by one, and for
what was before."""

TELL_AT_MOST = 100_000
"""Keys that a `clear` tells one by one, unless the machine is given another number."""


def _unknown() -> bytes:
    return b""


class Changes(msgspec.Struct):
    """What the entries up to `index` changed: rows in order, sessions by number (None: ended), and the totals then.

    `kept` is what else is to be kept, by name (None: removed), and `kept_count` how much that is in all. `cleared` says
    that everything older than these rows is gone; `bytes` is the length of the commands, or what of it the state table
    has to write. `digest` gives the digest of the state at `index` (see `digest`), or nothing if the machine has gone
    on.
    """

    index: int
    revision: int
    next_position: int
    keys: int
    session_count: int
    rows: list[Row]
    sessions: dict[int, Session | None]
    kept: dict[str, bytes | None] = {}
    kept_count: int = 0
    cleared: bool = False
    bytes: int = 0
    digest: Callable[[], builtins.bytes] = _unknown

    def absorb(self, later: Changes) -> None:
        """Add what the entries after these changed."""
        self.index, self.revision, self.next_position = later.index, later.revision, later.next_position
        self.keys, self.session_count = later.keys, later.session_count
        if later.cleared:
            self.rows, self.cleared = [*later.rows], True
        else:
            self.rows.extend(later.rows)
        self.sessions.update(later.sessions)
        self.kept.update(later.kept)
        self.kept_count = later.kept_count
        self.bytes += later.bytes
        self.digest = later.digest

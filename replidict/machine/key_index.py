"""Keeps all keys in order, for pages of keys. It is built when it is first needed.

Rules kept here:

1. It costs nothing until a page is first asked for, and the thread that changes the map never waits for it: added and
   removed keys are queued, and the next reader sorts them in.
2. It is built while the map goes on changing. The map is changed first and the index is told afterwards, and the index
   is registered before the map is copied: so the copy and the queued changes together leave nothing out.
"""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Protocol, TypeVar

from sortedcontainers import SortedList

Ordered = TypeVar("Ordered", str, bytes)
Read = TypeVar("Read")

SORT_AT_ONCE = 2048
"""Keys sorted without letting other threads have the interpreter."""
MOST_TOLD = 100_000
"""Notes that may wait for a reader; a map that changes so much unread is sorted anew."""
PATIENCE = 0.05
"""Seconds to wait for another reader. One that does not end is interrupted, by the very one that waits for it."""
LAST = "\U0010ffff"


class Keyed(Protocol):
    """What is stored under a key."""

    @property
    def key(self) -> bytes:
        """Encoded."""


class KeyIndex:
    """The keys in order: str keys by code point, then all others by their encoded bytes. For any thread."""

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._told: deque[tuple[Hashable, bytes, bool]] = deque()
        self._texts: SortedList[str] = SortedList()
        self._others: SortedList[bytes] = SortedList()
        self.filled = False

    def note(self, key: Hashable, encoded: bytes, present: bool) -> bool:
        """A key came or went. False if it is better to begin anew than to take that in as well."""
        self._told.append((key, encoded, present))
        return len(self._told) <= MOST_TOLD

    def fill(self, held: Mapping[Hashable, Keyed]) -> None:
        """Start with the content of the map at a moment after this index was registered."""
        self._texts = SortedList(_in_order(key for key in held if type(key) is str))
        self._others = SortedList(_in_order(item.key for key, item in held.items() if type(key) is not str))
        self.filled = True

    def texts(self, prefix: str, after: str | None, limit: int | None) -> list[str] | None:
        """The first keys that begin with a text, behind `after`; None if another reader does not end."""
        ahead = after is not None and after >= prefix
        bounds = (after if ahead else prefix, _behind(prefix), (not ahead, False))
        return self._read(lambda: list(islice(self._texts.irange(*bounds), limit)))

    def others(self, after: bytes | None, limit: int | None) -> list[bytes] | None:
        """The first keys that are no texts, behind `after`; None if another reader does not end."""
        return self._read(lambda: list(islice(self._others.irange(after, inclusive=(False, False)), limit)))

    def _read(self, read: Callable[[], Read]) -> Read | None:
        if not self._reading.acquire(timeout=PATIENCE):
            return None
        try:
            while self._told:
                key, encoded, present = self._told[0]
                if type(key) is str:
                    _change(self._texts, key, present)
                else:
                    _change(self._others, encoded, present)
                self._told.popleft()
            return read()
        finally:
            self._reading.release()


def _change(keys: SortedList[Ordered], key: Ordered, present: bool) -> None:
    if not present:
        keys.discard(key)
    elif key not in keys:
        keys.add(key)


def _behind(prefix: str) -> str | None:
    """The first text behind all that begin with this one; None if there is none."""
    kept = prefix.rstrip(LAST)
    return kept[:-1] + chr(ord(kept[-1]) + 1) if kept else None


def _in_order(keys: Iterable[Ordered]) -> Iterator[Ordered]:
    """Sort like `sorted`, but in steps, so that other threads get the interpreter in between."""
    keys = iter(keys)
    return heapq.merge(*iter(lambda: sorted(islice(keys, SORT_AT_ONCE)), []))

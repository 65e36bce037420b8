"""The cluster's clock and the deadlines, as part of the state.

Rules kept here:

1. Only `Tick` commands move the clock, and never back. Nothing here knows any other time.
2. What ends at the same time ends in the same order on every node, also on one that has loaded a snapshot: the order
   depends only on the state.
"""

from __future__ import annotations

import heapq
from enum import IntEnum

LATEST = 2**62
"""The clock's last millisecond: nothing ends later."""


class Kind(IntEnum):
    """The kinds of things that have deadlines."""

    KEY = 0
    LEASE = 1


class Clock:
    """The milliseconds that have passed in the cluster, and the deadlines on that scale."""

    def __init__(self) -> None:
        self.now = 0
        self._due: dict[tuple[Kind, int], int] = {}
        self._heap: list[tuple[int, Kind, int]] = []  # what is no longer in `_due` is left over

    def __len__(self) -> int:
        """How many deadlines there are."""
        return len(self._due)

    @property
    def next_deadline(self) -> int | None:
        """The earliest deadline."""
        heap = self._heap
        while heap and self._due.get(heap[0][1:]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def deadline(self, kind: Kind, number: int) -> int | None:
        """When this one ends; None: never."""
        return self._due.get((kind, number))

    def set(self, kind: Kind, number: int, deadline: int | None) -> None:
        """Set or remove a deadline."""
        if deadline is None:
            self._due.pop((kind, number), None)
            return
        deadline = min(deadline, LATEST)
        self._due[kind, number] = deadline
        heapq.heappush(self._heap, (deadline, kind, number))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due, *what) for what, due in self._due.items()]
            heapq.heapify(self._heap)

    def advance(self, milliseconds: int) -> list[tuple[Kind, int]]:
        """Move on to this time; what is due by then, in order of deadline. It has no deadline any more."""
        self.now = max(self.now, min(milliseconds, LATEST))
        due: list[tuple[Kind, int]] = []
        while (deadline := self.next_deadline) is not None and deadline <= self.now:
            _, kind, number = heapq.heappop(self._heap)
            del self._due[kind, number]
            due.append((kind, number))
        return due

"""Linearizable reads: which index they wait for, and how (thesis 6.4).

Rules kept here:

1. Reads that arrive together share one read index.
2. A read whose leader is lost before it is answered asks again, until its caller gives up.
3. A read is released when this node has applied the index: the caller then reads this node's own copy.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count

from replidict.errors import ReplidictError, raise_anew
from replidict.node.consensus_interface import Consensus

RETRY_PAUSE = 0.02
"""Seconds before a read asks again that found no leader; a change of leader ends the pause."""


class Read:
    """One waiting read. The node's thread calls `done` once; `error` is None if the read may go on."""

    __slots__ = ("abandoned", "done", "error")

    def __init__(self, done: Callable[[], object]) -> None:
        self.done = done
        self.error: ReplidictError | None = None
        self.abandoned = False


class Reads:
    """The linearizable reads of one process. `submit` is for any thread, the rest for the node's thread."""

    def __init__(self, engine: Consensus, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._wake = wake
        self.new: deque[Read] = deque()
        """Those that nobody was asked about yet."""
        self._asked: dict[int, list[Read]] = {}
        self._order = count()
        self._waiting: list[tuple[int, int, list[Read]]] = []  # a heap by read index
        self._retry_at = float("-inf")
        self._failure: ReplidictError | None = None

    def submit(self, read: Read) -> None:
        """Have `read.done` called once a read of this node's copy is linearizable. Raises what stopped the node."""
        self.new.append(read)
        if self._failure is not None:  # looked for after it was queued, as `stop` does it before
            raise_anew(self._failure)
        self._wake()

    @property
    def waiting(self) -> bool:
        """Whether there are reads that nobody was asked about yet, and may be now."""
        return bool(self.new) and self._engine.clock() >= self._retry_at

    def next_deadline(self) -> float:
        """When `step` wants to run next."""
        return self._retry_at if self.new else float("inf")

    def step(self) -> None:
        """Ask for those that are new."""
        if self.new and (self._engine.clock() >= self._retry_at or self._engine.is_leader):
            reads = [self.new.popleft() for _ in range(len(self.new))]
            reads = [read for read in reads if not read.abandoned]
            if reads:
                number = next(self._order)
                self._asked[number] = reads
                self._engine.read_index.ask(partial(self._answer, number))

    def _answer(self, number: int, index: int | None) -> None:
        reads = self._asked.pop(number)
        if index is None:
            self.new.extendleft(reversed(reads))
            self._retry_at = self._engine.clock() + RETRY_PAUSE
        else:
            heapq.heappush(self._waiting, (index, number, reads))

    def release(self) -> None:
        """Finish the reads whose index is applied."""
        applied = self._engine.last_applied
        while self._waiting and self._waiting[0][0] <= applied:
            for read in heapq.heappop(self._waiting)[2]:
                read.done()

    def stop(self, failure: ReplidictError) -> None:
        """The node goes no further."""
        self._failure = failure
        new = [self.new.popleft() for _ in range(len(self.new))]
        for reads in (new, *self._asked.values(), *(waiting[2] for waiting in self._waiting)):
            for read in reads:
                read.error = failure
                read.done()
        self._asked.clear()
        self._waiting.clear()

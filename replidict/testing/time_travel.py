"""Advances the time of a test cluster."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from replidict.monotonic_clock import clock
from replidict.node.raft_node import RaftNode

LOOK_EVERY = 0.01
"""Seconds after which a caller that waits looks whether its time is over."""


class Clock:
    """The clock of a `Cluster`: this machine's, until it is advanced."""

    def __init__(self, elapse: Callable[[float], None]) -> None:
        """`elapse` is told how many seconds have passed at once, when this clock shows it."""
        self._elapse = elapse
        self._ahead = 0.0

    def time(self) -> float:
        """Seconds since some moment, as `time.monotonic()` has them, and what was added."""
        return clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """Advance the clock at once.

        All that ends in this time ends: keys with a ttl, leases, the locks that hang on them, and calls under way that
        wait for an answer, a lock or a change, and are out of time. Nobody renews a lease meanwhile, so those that are
        held are lost if their ttl is over. Heartbeats and elections take no notice: a leader goes on to lead.

        Returns when the nodes that are in touch with a majority have seen it. On one that is paused it passes when
        that goes on, and on one that is down not at all: it hears from the others what time it is.

        Args:
            seconds: How many, not negative.

        Raises:
            ValueError: A number that is none, or negative.

        Example:
            >>> cluster[0].set("session", "ada", ttl=1800)  # doctest: +SKIP
            >>> cluster.clock.advance(1801)  # doctest: +SKIP
            >>> "session" in cluster[1]  # doctest: +SKIP
            False
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError(f"seconds={seconds!r}: must be a number of seconds, 0 or more")
        self._ahead += seconds
        self._elapse(seconds)

    def wait(self, lock: threading.Lock, blocking: bool, timeout: float) -> bool:
        """Acquire a lock as its own method does, but with a timeout on this clock."""
        if not blocking or timeout < 0:
            return lock.acquire(blocking)
        end = self.time() + timeout
        while (left := end - self.time()) > 0:
            if lock.acquire(timeout=min(left, LOOK_EVERY)):
                return True
        return lock.acquire(blocking=False)


def have_passed(node: RaftNode, milliseconds: int) -> None:
    """Advance the cluster's clock, as this node knows it, to at least this value. In the node's thread."""
    node.expiry.hear(max(milliseconds, node.expiry.now()))


def nothing_is_due(node: RaftNode) -> bool:
    """Whether everything that is due has been applied here. In the node's thread."""
    deadline = node.machine.coordination.clock.next_deadline
    return deadline is None or deadline > node.expiry.now()

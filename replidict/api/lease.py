"""`Lease`, which `ReplicatedDict.lease` grants: keys attached to it are deleted when it ends, as in etcd."""

from __future__ import annotations

import threading
from typing import Self

from replidict.errors import NotCommitted
from replidict.latch import Latch
from replidict.node.blocking_calls import rounded
from replidict.node.held_leases import HeldLease, Leases
from replidict.own_threads import in_node_thread


class GrantedLease:
    """A lease, without the methods that end it, which differ for threads and coroutines."""

    def __init__(self, leases: Leases, held: HeldLease, timeout: float) -> None:
        self._leases, self._held, self._timeout = leases, held, timeout

    @property
    def id(self) -> int:
        """The number of the lease in the cluster, drawn at random."""
        return self._held.id

    @property
    def ttl(self) -> float:
        """Seconds for which the lease lives on after its last renewal."""
        return self._held.ttl

    @property
    def remaining(self) -> float:
        """Seconds for which `check` is sure to pass without another renewal; never negative."""
        return self._leases.remaining(self._held)

    @property
    def lost(self) -> threading.Event:
        """An event that is set once the lease must be assumed ended, whether or not the cluster can be reached."""
        return self._held.lost

    def check(self) -> None:
        """Return if no node can have seen this lease end yet; otherwise raise.

        Raises:
            LeaseLost: The lease has ended, or may have ended.
        """
        self._leases.see_to(self._held)

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else f"{self.remaining:.3g} s left"
        return f"<{type(self).__name__} {self.id}, ttl {self.ttl:g} s, {state}>"


class Lease(GrantedLease):
    """A lease: keys attached to it are deleted when it ends, and it ends when this process no longer renews it.

    The node's own thread renews it every third of its ttl, whatever the program does meanwhile. It ends by `revoke`, at
    the end of its `with` block, by `close` of the dict, and ttl seconds after the last renewal that reached a majority.
    A process made by `os.fork` does not inherit it. See `ReplicatedDict.lease`.

    Example:
        >>> with d.lease(ttl=5) as lease:
        ...     d.set("workers/7", "10.0.0.7:8000", lease=lease)
        ...     lease.lost.is_set()
        1
        False
    """

    def revoke(self) -> None:
        """End the lease now: its keys are deleted, as one change. It does nothing if the lease has ended already.

        `lost` is set at once. The call waits until the keys are deleted, for the dict's timeout at most; if no majority
        can be reached by then, they are deleted when one can, or when the ttl is over. In the node's thread, where a
        finalizer may run, it does not wait.

        Example:
            >>> lease = d.lease()
            >>> lease.revoke()
            >>> lease.lost.is_set()
            True
        """
        done = Latch()
        self._leases.give_back(self._held, "it was revoked", done.set)
        if not in_node_thread():
            done.wait(self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.revoke()


def not_granted(seconds: float) -> NotCommitted:
    """The error for a lease that was not granted in time."""
    return NotCommitted(f"no majority granted a lease within {rounded(seconds)} s")

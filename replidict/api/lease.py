"""Leases as a program holds them."""

from __future__ import annotations

import threading
from typing import Self

from replidict.errors import NotCommitted
from replidict.latch import Latch
from replidict.node.blocking_calls import rounded
from replidict.node.leases import HeldLease, Leases
from replidict.own_threads import in_node_thread


class GrantedLease:
    """A lease, without the ways to end it: those are different for threads and for coroutines."""

    def __init__(self, leases: Leases, held: HeldLease, timeout: float) -> None:
        self._leases, self._held, self._timeout = leases, held, timeout

    @property
    def id(self) -> int:
        """The number that the cluster knows it by, drawn at random."""
        return self._held.id

    @property
    def ttl(self) -> float:
        """Seconds that it lives without being renewed."""
        return self._held.ttl

    @property
    def remaining(self) -> float:
        """Seconds for which `check` surely passes if nothing is renewed any more; never negative."""
        return self._leases.remaining(self._held)

    @property
    def lost(self) -> threading.Event:
        """Set once when the lease must be taken for ended, whether or not anybody can be reached then."""
        return self._held.lost

    def check(self) -> None:
        """Return if nobody can have seen this lease end yet.

        Raises:
            LeaseLost: It has ended, or may have.
        """
        self._leases.see_to(self._held)

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else f"{self.remaining:.3g} s left"
        return f"<{type(self).__name__} {self.id}, ttl {self.ttl:g} s, {state}>"


class Lease(GrantedLease):
    """A promise that this process is alive: keys attached to it go when it ends, and it ends when nobody renews it.

    The node's own thread renews it every third of its ttl, whatever the program does meanwhile. It ends by `revoke`, on
    leaving the `with` block, by `close` of the dict, and ttl seconds after the last renewal that reached a majority. It
    is not inherited by `os.fork`.

    Example:
        >>> with d.lease(ttl=5) as lease:  # doctest: +SKIP
        ...     d.set("workers/7", "10.0.0.7:8000", lease=lease)
        ...     serve(until=lease.lost)
    """

    def revoke(self) -> None:
        """End it now: its keys go, as one change. Does nothing if it has ended already.

        It is lost here at once. That its keys are gone is waited for, for the timeout of the dict at most; if no
        majority can be reached by then, they go when one can, or when the ttl is over. In the thread of a node
        (a finalizer may run there) nothing is waited for.
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
    """What is raised when a lease was not granted in time."""
    return NotCommitted(f"no majority granted a lease within {rounded(seconds)} s")

"""What a dict offers beside the map: keys that expire, leases, locks, leaders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replidict.api.leadership import Leadership
from replidict.api.lease import Lease, not_granted
from replidict.api.lock import Held, Lock, Semaphore
from replidict.api.operations import Operations
from replidict.api.wanted import wanted_lock, wanted_permit
from replidict.errors import NotCommitted, raise_anew, waits_for_itself
from replidict.latch import Latch
from replidict.node.call_arguments import ttl_of
from replidict.node.node import Node
from replidict.node.proposals import result_of
from replidict.node.steps import Returned, Steps
from replidict.own_threads import in_node_thread
from replidict.status import LockInfo

if TYPE_CHECKING:
    from replidict.server.shared_node import Opened


class Coordination:
    """Part of `ReplicatedDict`."""

    _host: Opened
    _timeout: float

    _operations: Operations[Any, Any]

    if TYPE_CHECKING:

        def _seconds(self, timeout: float | None) -> float: ...
        def _run(self, steps: Steps[Returned]) -> Returned: ...

    @property
    def _node(self) -> Node:
        return self._host.node

    # -- keys that expire ---------------------------------------------------------------------------------------------

    def expire(self, key: object, ttl: float | None, *, timeout: float | None = None) -> bool:
        """Have a key go `ttl` seconds from now, or make it permanent. Value and revision stay as they are.

        Args:
            key: The key.
            ttl: Seconds; None makes it permanent, also if it hangs on a lease.
            timeout: Seconds to wait for a majority; None: the timeout of the dict.

        Returns:
            Whether there is such a key.

        Raises:
            ValueError: `ttl` is no positive number.
            NotCommitted, OutcomeUnknown, EncodingError, ClosedError, StorageError: As `set`.
        """
        return self._run(self._operations.expire(key, ttl, self._seconds(timeout)))

    def ttl(self, key: object) -> float | None:
        """Seconds until a key goes, as this node knows; None: it is permanent. One that hangs on a lease goes with it.

        A key whose time is over is here until this node hears so; its ttl is 0.

        Raises:
            KeyError: There is no such key.
        """
        node = self._node
        item = node.machine.find(key)
        if item is None:
            raise KeyError(key)
        deadline = node.machine.coordination.leases.deadline(item.position)
        return None if deadline is None else max((deadline - node.expiry.now()) / 1000, 0.0)

    def lease(self, ttl: float = 10.0) -> Lease:
        """A new lease, renewed by the node's own thread until it is revoked, or this process is gone.

        Args:
            ttl: Seconds that it lives on when nobody renews it.

        Returns:
            The lease, granted. It is a context manager, which revokes it.

        Raises:
            ValueError: `ttl` is no positive number.
            NotCommitted: No majority granted it within the dict's timeout.
            ClosedError, StorageError: The node has stopped.
        """
        seconds = ttl_of(ttl)
        node = self._node
        if node.failure is not None:
            raise_anew(node.failure)
        if in_node_thread():
            raise waits_for_itself(NotCommitted, "no lease was asked for")
        done = Latch()
        held, write = node.leases.ask(seconds, done.set)
        try:
            if not done.wait(self._timeout):
                raise not_granted(self._timeout)
            result_of(write)
        except BaseException:
            node.leases.give_back(held, "nobody waited for it")
            raise
        return Lease(node.leases, held, self._timeout)

    # -- locks --------------------------------------------------------------------------------------------------------

    def lock(self, name: str, *, ttl: float = 10.0, shared: bool = False, info: str = "") -> Lock:
        """A lock that one process of the cluster has at a time; not acquired yet.

        Args:
            name: The same for all who want the lock.
            ttl: Seconds after which others get it when this process is gone, or cut off.
            shared: Whether it may be held together with others that share it.
            info: What `locks` is to say of the holder.

        Returns:
            The lock: `with d.lock("x") as held:`, or `acquire` and `release` as of `threading.Lock`.

        Raises:
            ValueError: One of these makes no sense.
        """
        return Lock(self._node, wanted_lock(name, ttl, shared, info), self._timeout)

    def semaphore(self, name: str, permits: int, *, ttl: float = 10.0, info: str = "") -> Semaphore:
        """A semaphore: `permits` holders in the whole cluster at a time. All who use it give the same number.

        Args and errors as for `lock`.
        """
        return Semaphore(self._node, wanted_permit(name, permits, ttl, info), self._timeout)

    def locks(self) -> tuple[LockInfo, ...]:
        """Who holds a lock or a permit, in order of name and token, as this node's copy says; `barrier` first, for all.

        Raises:
            ClosedError, StorageError: The node has stopped.
        """
        return self._node.call_and_wait(lambda: self._node.locks.infos(self._node.expiry.now()))

    def waiting_and_expired(self) -> tuple[int, int]:
        """How many requests wait for locks in the cluster, and how many keys and leases this node saw expire."""
        coordination = self._node.machine.coordination
        return coordination.locks.waiters, coordination.expired

    def break_lock(self, name: str, *, token: int) -> bool:
        """Take a lock from its holder, who sees it as lost: by the log, and by whatever is fenced with it.

        Args:
            name: The name of the lock.
            token: The holder's, as `locks` gives it: nobody who got the lock since then loses it by mistake.

        Returns:
            Whether it was held with that token.
        """
        return self._run(self._operations.break_lock(name, token, self._timeout))

    # -- leaders ------------------------------------------------------------------------------------------------------

    def run_as_leader(
        self, name: str, work: Callable[[Held], object], *, ttl: float = 10.0, info: str = ""
    ) -> Leadership:
        """Have `work(held)` run in one process of the cluster at a time, in a thread of its own.

        All processes that call this stand for `name`; when the one that leads is gone, another one leads within `ttl`.

        Args:
            name: What is led: the name of a lock.
            work: Runs as long as it likes; it must end soon when `held.lost` is set, and check or fence what it does.
            ttl: Seconds after which another one leads when this process is gone, or cut off.
            info: What `locks` and `leader` are to say of this candidate.

        Returns:
            The candidacy, with `is_leader`, `error` and `stop`.

        Raises:
            ValueError: One of these makes no sense.
            ClosedError, StorageError: The node has stopped.
        """
        if not callable(work):
            raise ValueError(f"work={work!r}: must be a function that takes what is held")
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        return Leadership(self._node, wanted_lock(name, ttl, False, info), work, self._timeout)

    def leader(self, name: str) -> LockInfo | None:
        """Who leads `name`, as this node's copy says; None: nobody."""
        return next((each for each in self.locks() if each.name == name), None)

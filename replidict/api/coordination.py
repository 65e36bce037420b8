"""The methods of `ReplicatedDict` for coordination: keys that expire, leases, locks and leaders, as in etcd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replidict.api.held_lock import Held
from replidict.api.leadership import Leadership
from replidict.api.lease import Lease, not_granted
from replidict.api.lock import Lock, Semaphore
from replidict.api.lock_arguments import wanted_lock, wanted_permit
from replidict.errors import NotCommitted, raise_anew, waits_for_itself
from replidict.latch import Latch
from replidict.node.call_arguments import ttl_of
from replidict.node.node import Node
from replidict.node.proposals import result_of
from replidict.node.steps import Returned, Steps
from replidict.own_threads import in_node_thread
from replidict.server.operations import Operations
from replidict.status import LockInfo

if TYPE_CHECKING:
    from replidict.server.shared_node import Opened


class Coordination:
    """The methods of `ReplicatedDict` for coordination."""

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
        """Give a key a new time to live, or make it permanent. Its value and revision do not change.

        Args:
            key: The key.
            ttl: Seconds from now until it expires; None: never, even if it was attached to a lease.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            Whether the key is present.

        Raises:
            ValueError: `ttl` is no positive number.
            NotCommitted, OutcomeUnknown, EncodingError, ClosedError, StorageError: As `set`.

        Example:
            >>> d["session"] = "alice"
            >>> d.expire("session", 60), d.expire("missing", 60)
            (True, False)
        """
        return self._run(self._operations.expire(key, ttl, self._seconds(timeout)))

    def ttl(self, key: object) -> float | None:
        """Return for how many more seconds a key lives, as this node knows; None: it is permanent.

        A key that is attached to a lease lives as long as the lease. A key whose time is over stays in this node's copy
        until the log removes it, within half a second while there is a leader; its ttl is 0 until then.

        Args:
            key: The key.

        Returns:
            Seconds, or None.

        Raises:
            KeyError: The key is absent.
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> d.set("session", "alice", ttl=60)
            1
            >>> 0 < d.ttl("session") <= 61
            True
        """
        node = self._node
        item = node.machine.find(key)
        if item is None:
            raise KeyError(key)
        deadline = node.machine.coordination.leases.deadline(item.position)
        return None if deadline is None else max((deadline - node.expiry.now()) / 1000, 0.0)

    def lease(self, ttl: float = 10.0) -> Lease:
        """Grant a lease, which the node's own thread renews until it is revoked or this process ends.

        Args:
            ttl: Seconds for which the lease lives on after its last renewal.

        Returns:
            A `Lease`: a context manager that revokes it at the end of the block.

        Raises:
            ValueError: `ttl` is no positive number.
            NotCommitted: No majority granted the lease within the dict's timeout.
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> with d.lease(ttl=5) as lease:
            ...     d.set("workers/7", "10.0.0.7:8000", lease=lease)
            1
            >>> "workers/7" in d
            False
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
        """Make a lock that one process of the cluster can hold at a time. It is not acquired yet.

        Args:
            name: The name of the lock, the same for all who use it.
            ttl: Seconds after which others may acquire it when its holder's process has died or is cut off.
            shared: Whether it may be held together with others that acquire it as shared.
            info: A text about the holder, which `locks` returns.

        Returns:
            A `Lock`: use `with d.lock("x") as held:`, or `acquire` and `release` as of `threading.Lock`.

        Raises:
            ValueError: An argument makes no sense.

        Example:
            >>> with d.lock("report") as held:
            ...     d.set("report", "ready", fence=held)
            1
        """
        return Lock(self._node, wanted_lock(name, ttl, shared, info), self._timeout)

    def semaphore(self, name: str, permits: int, *, ttl: float = 10.0, info: str = "") -> Semaphore:
        """Make a semaphore, of which `permits` can be held in the whole cluster at a time.

        Args:
            name: The name of the semaphore, the same for all who use it.
            permits: The number of permits, the same for all who use it.
            ttl: Seconds after which others may acquire a permit when its holder's process has died or is cut off.
            info: A text about the holder, which `locks` returns.

        Returns:
            A `Semaphore`, with the methods of `threading.BoundedSemaphore`.

        Raises:
            ValueError: An argument makes no sense.

        Example:
            >>> with d.semaphore("downloads", permits=3) as held:
            ...     held.name
            'downloads'
        """
        return Semaphore(self._node, wanted_permit(name, permits, ttl, info), self._timeout)

    def locks(self) -> tuple[LockInfo, ...]:
        """Return the holders of all locks and permits, in order of name and token, as this node's copy says.

        Call `barrier` first to include all that others hold.

        Raises:
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> with d.lock("report", info="nightly"):
            ...     [(each.name, each.info) for each in d.locks()]
            [('report', 'nightly')]
        """
        return self._node.call_and_wait(lambda: self._node.locks.infos(self._node.expiry.now()))

    def break_lock(self, name: str, *, token: int) -> bool:
        """Take a lock away from its holder, whose `held.lost` is then set and whose fenced writes are refused.

        Args:
            name: The name of the lock.
            token: The holder's fencing token, as `locks` returns it. A holder with another token keeps the lock.

        Returns:
            Whether the lock was held with this token.

        Raises:
            ValueError: An argument makes no sense.
            NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> lock = d.lock("report")
            >>> lock.acquire()
            True
            >>> d.break_lock("report", token=lock.held.token), d.locks()
            (True, ())
        """
        return self._run(self._operations.break_lock(name, token, self._timeout))

    # -- leaders ------------------------------------------------------------------------------------------------------

    def run_as_leader(
        self, name: str, work: Callable[[Held], object], *, ttl: float = 10.0, info: str = ""
    ) -> Leadership:
        """Run a function in one process of the cluster at a time, in a thread of its own.

        Each process that calls this is a candidate for `name`. When the leader's process has died or is cut off,
        another candidate leads within `ttl` seconds.

        Args:
            name: The name of the lock that the leader holds.
            work: Called with the `Held` of the lock; it may run for as long as it likes. It must return soon after
                `held.lost` is set, and fence its writes with `held`.
            ttl: Seconds after which another candidate leads when this process has died or is cut off.
            info: A text about this candidate, which `locks` and `leader` return.

        Returns:
            A `Leadership`, with `is_leader`, `error` and `stop`.

        Raises:
            ValueError: An argument makes no sense.
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> def work(held):
            ...     d.set("leader's word", held.name, fence=held)
            ...     held.lost.wait()
            >>> with d.watch("leader's word") as watch:
            ...     candidate = d.run_as_leader("scheduler", work)
            ...     watch.next(timeout=10).events[0].value
            'scheduler'
            >>> candidate.stop()
        """
        if not callable(work):
            raise ValueError(f"work={work!r}: must be a function that takes what is held")
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        return Leadership(self._node, wanted_lock(name, ttl, False, info), work, self._timeout)

    def leader(self, name: str) -> LockInfo | None:
        """Return the leader of `name`, in this node's copy; None if there is none.

        Args:
            name: The name that was given to `run_as_leader`.

        Raises:
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> d.leader("scheduler") is None
            True
        """
        return next((each for each in self.locks() if each.name == name), None)

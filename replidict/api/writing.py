"""What a dict offers to store one value, on conditions, and for how long."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from replidict.api.lease import GrantedLease
from replidict.api.lock import Held
from replidict.api.operations import Operations
from replidict.node.steps import Returned, Steps

if TYPE_CHECKING:
    from replidict.server.shared_node import Opened

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Writing(Generic[K, V]):
    """Part of `ReplicatedDict`."""

    _host: Opened
    _operations: Operations[K, V]
    _timeout: float

    if TYPE_CHECKING:

        def _seconds(self, timeout: float | None) -> float: ...
        def _run(self, steps: Steps[Returned]) -> Returned: ...

    def set(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> int:
        """Store a value. Returns the revision of this write.

        With `ttl` the key goes so many seconds after the call began, no sooner; with `lease` it goes with that; without
        either it is permanent. With `fence` it is stored only while that lock is held, which the log decides.

        Raises `NotCommitted`, `OutcomeUnknown`, `EncodingError`, `ClosedError` or `StorageError`, and of `NotCommitted`
        `LeaseLost` (the lease has ended) and `LockLost` (the lock is not held any more).
        """
        return self._run(self._operations.set(key, value, ttl, lease, fence, self._seconds(timeout)))

    def submit(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
    ) -> Future[int]:
        """As `set`, but returns a future of the revision at once: one thread can have many writes under way.

        They are applied in the order of the calls, and resolved in a thread of their own, each within the timeout of
        this dict; `cancel` does nothing. Callbacks run in that thread, one after the other: while one takes its time,
        other callbacks and `close` wait. It may use this dict and its futures. Raises `EncodingError`, `ClosedError`
        or `StorageError`.
        """
        return self._host.futures.submit(*self._operations.put(key, value, ttl, lease, fence), self._timeout)

    def add(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the key is absent. Returns whether it was. `ttl`, `lease` and `fence` as for `set`."""
        return self._run(self._operations.add(key, value, ttl, lease, fence, self._seconds(timeout)))

    def compare_and_set(
        self,
        key: K,
        expected: V,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the present one equals `expected`, by `==`. Returns whether it did.

        This is how to count, or to change what others may change too: read, compute, and try again if it is false.
        A value is also equal to itself when it holds NaN; one that holds a `ZoneInfo` equals nothing but itself. An
        absent key equals nothing: `add` is for that. `ttl`, `lease` and `fence` as for `set`.
        """
        seconds = self._seconds(timeout)
        return self._run(self._operations.compare_and_set(key, expected, value, ttl, lease, fence, seconds))

    def replace(
        self,
        key: K,
        value: V,
        *,
        revision: int,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the present one was written by `revision` (see `versioned`). Returns whether it was.

        `ttl`, `lease` and `fence` as for `set`.
        """
        return self._run(self._operations.replace(key, value, revision, ttl, lease, fence, self._seconds(timeout)))

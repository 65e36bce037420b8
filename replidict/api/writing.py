"""What a dict offers to store one value, on conditions, and for how long."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from replidict.api.coordination import expiring, fenced
from replidict.api.lease import Lease
from replidict.api.lock import Held
from replidict.machine import commands as cmd
from replidict.machine.codec import Codec
from replidict.machine.state_machine import StateMachine
from replidict.node.call_arguments import check_comparable, revision_of

if TYPE_CHECKING:
    from replidict.server.open_node import Host

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Writing(Generic[K, V]):
    """Part of `ReplicatedDict`."""

    _host: Host
    _codec: Codec
    _machine: StateMachine
    _timeout: float

    if TYPE_CHECKING:

        def _key(self, key: object) -> bytes: ...
        def _value(self, value: object) -> bytes: ...
        def _write(self, operation: cmd.Operation, size: int, timeout: float | None = None) -> cmd.Result: ...

    def set(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: Lease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> int:
        """Store a value. Returns the revision of this write.

        With `ttl` the key goes so many seconds after the call began, no sooner; with `lease` it goes with that; without
        either it is permanent. With `fence` it is stored only while that lock is held, which the log decides.

        Raises `NotCommitted`, `OutcomeUnknown`, `EncodingError`, `ClosedError` or `StorageError`, and of `NotCommitted`
        `LeaseLost` (the lease has ended) and `LockLost` (the lock is not held any more).
        """
        encoded, data = self._key(key), self._value(value)
        operation = fenced(expiring(cmd.Put(encoded, data), ttl, lease), fence)
        return self._write(operation, len(encoded) + len(data), timeout)  # type: ignore[return-value]

    def submit(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: Lease | None = None,
        fence: Held | None = None,
    ) -> Future[int]:
        """As `set`, but returns a future of the revision at once: one thread can have many writes under way.

        They are applied in the order of the calls, and resolved in a thread of their own, each within the timeout of
        this dict; `cancel` does nothing. Callbacks run in that thread, one after the other: while one takes its time,
        other callbacks and `close` wait. It may use this dict and its futures. Raises `EncodingError`, `ClosedError`
        or `StorageError`.
        """
        encoded, data = self._key(key), self._value(value)
        operation, size = fenced(expiring(cmd.Put(encoded, data), ttl, lease), fence), len(encoded) + len(data)
        return self._host.futures.submit(operation, size, self._timeout)

    def add(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: Lease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the key is absent. Returns whether it was. `ttl`, `lease` and `fence` as for `set`."""
        encoded, data = self._key(key), self._value(value)
        operation = fenced(expiring(cmd.Add(encoded, data), ttl, lease), fence)
        return self._write(operation, len(encoded) + len(data), timeout) is True

    def compare_and_set(
        self,
        key: K,
        expected: V,
        value: V,
        *,
        ttl: float | None = None,
        lease: Lease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the present one equals `expected`, by `==`. Returns whether it did.

        This is how to count, or to change what others may change too: read, compute, and try again if it is false.
        A value is also equal to itself when it holds NaN; one that holds a `ZoneInfo` equals nothing but itself. An
        absent key equals nothing: `add` is for that. `ttl`, `lease` and `fence` as for `set`.
        """
        encoded, old, data = self._key(key), self._value(expected), self._value(value)
        present = self._machine.find(key)
        check_comparable(self._codec, [old, data] if present is None else [old, data, present.value])
        operation = fenced(expiring(cmd.CompareAndSet(encoded, old, data), ttl, lease), fence)
        return self._write(operation, len(encoded) + len(old) + len(data), timeout) is True

    def replace(
        self,
        key: K,
        value: V,
        *,
        revision: int,
        ttl: float | None = None,
        lease: Lease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the present one was written by `revision` (see `versioned`). Returns whether it was.

        `ttl`, `lease` and `fence` as for `set`.
        """
        operation = cmd.Replace(self._key(key), self._value(value), revision_of(revision))
        size = len(operation.key) + len(operation.value)
        return self._write(fenced(expiring(operation, ttl, lease), fence), size, timeout) is True

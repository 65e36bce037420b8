"""The methods of a dict that write: those of etcd (`set` with a lease, `compare_and_set`), and those of `dict`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, MutableMapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, overload

from typing_extensions import override

from replidict.api.lease import GrantedLease
from replidict.api.lock import Held
from replidict.api.operations import Operations
from replidict.node.steps import Returned, Steps

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

    from replidict.server.open_node import Host

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

_ABSENT: Any = object()


class Writing(MutableMapping[K, V]):
    """Part of `ReplicatedDict`."""

    _host: Host
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

    # -- as `dict` does -----------------------------------------------------------------------------------------------

    def delete(self, key: K, *, timeout: float | None = None) -> bool:
        """Remove a key, without a look at its value. Returns whether it was there."""
        return self._run(self._operations.delete(key, self._seconds(timeout)))

    @overload
    def pop(self, key: K, /, *, timeout: float | None = ...) -> V: ...
    @overload
    def pop(self, key: K, /, default: V | D, *, timeout: float | None = ...) -> V | D: ...
    @override
    def pop(self, key: K, /, default: Any = _ABSENT, *, timeout: float | None = None) -> Any:
        """Remove a key and return its value, or `default`; `KeyError` if there is neither.

        Raises `DecodingError` if this machine can't decode the value, which stays.
        """
        try:
            return self._run(self._operations.pop(key, self._seconds(timeout)))
        except KeyError:
            if default is _ABSENT:
                raise
            return default

    @override
    def popitem(self, *, timeout: float | None = None) -> tuple[K, V]:
        """Remove the pair inserted last and return it; `KeyError` if the dict is empty. Else as `pop`."""
        return self._run(self._operations.popitem(self._seconds(timeout)))

    @overload
    def setdefault(
        self: Writing[K, D | None], key: K, default: None = None, *, timeout: float | None = ...
    ) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, *, timeout: float | None = ...) -> V: ...
    @override
    def setdefault(self, key: K, default: Any = None, *, timeout: float | None = None) -> Any:
        """Store `default` if the key is absent. Returns the value that is there afterwards."""
        return self._run(self._operations.setdefault(key, default, self._seconds(timeout)))

    @override
    def clear(self, *, timeout: float | None = None) -> None:
        """Remove everything."""
        self._run(self._operations.clear(self._seconds(timeout)))

    @overload
    def update(self, other: SupportsKeysAndGetItem[K, V], /) -> None: ...
    @overload
    def update(self: Writing[str, V], other: SupportsKeysAndGetItem[str, V], /, **values: V) -> None: ...
    @overload
    def update(self, other: Iterable[tuple[K, V]], /) -> None: ...
    @overload
    def update(self: Writing[str, V], other: Iterable[tuple[str, V]], /, **values: V) -> None: ...
    @overload
    def update(self: Writing[str, V], **values: V) -> None: ...
    @override  # type: ignore[misc]  # mypy holds that a positional-only name could be among the values
    def update(self, other: Any = (), /, **values: Any) -> None:
        """Store many values, all at once: others see all of them or none.

        Only what is larger, encoded, than `Options.max_command_bytes` goes as several commands, in order, all within
        one timeout; if one of them fails, those before it stay, and `OutcomeUnknown` says how many entries these hold.
        """
        self._run(self._operations.update(other, values, self._timeout))

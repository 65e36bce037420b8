"""The coroutine methods that write."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from replidict.aio.calls import Calls
from replidict.api.held_lock import Held
from replidict.api.lease import GrantedLease
from replidict.api.modifiers import modifiers_of

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

_ABSENT: Any = object()


class Writing(Generic[K, V]):
    """Part of `AsyncDict`. Each method is that of `ReplicatedDict`, with its arguments, results and errors."""

    _calls: Calls[K, V]

    async def set(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> int:
        """Store a value. Returns the revision of this write. A cancelled call is not taken back: it may be stored."""
        inside = self._calls.inside
        prepared, seconds = inside.operations.put(key, value, modifiers_of(ttl, lease, fence)), inside.seconds(timeout)
        return await self._calls.write(*prepared, seconds)  # type: ignore[return-value]

    async def add(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Store a value only if the key is absent. Returns whether it was. A cancelled call is not taken back."""
        inside = self._calls.inside
        return await self._calls.make(
            inside.operations.add(key, value, modifiers_of(ttl, lease, fence), inside.seconds(timeout))
        )

    async def compare_and_set(
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
        """Store a value only if the present one equals `expected`. Returns whether it did.

        A cancelled call is not taken back.
        """
        operations, seconds = self._calls.inside.operations, self._calls.inside.seconds(timeout)
        return await self._calls.make(
            operations.compare_and_set(key, expected, value, modifiers_of(ttl, lease, fence), seconds)
        )

    async def replace(
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
        """Store a value only if the present one was written by `revision`. Returns whether it was.

        A cancelled call is not taken back.
        """
        operations, seconds = self._calls.inside.operations, self._calls.inside.seconds(timeout)
        return await self._calls.make(
            operations.replace(key, value, revision, modifiers_of(ttl, lease, fence), seconds)
        )

    async def expire(self, key: object, ttl: float | None, *, timeout: float | None = None) -> bool:
        """Have a key go `ttl` seconds from now, or make it permanent. Returns whether there is such a key.

        A cancelled call is not taken back.
        """
        inside = self._calls.inside
        return await self._calls.make(inside.operations.expire(key, ttl, inside.seconds(timeout)))

    async def increment(
        self,
        key: K,
        by: int | float | Decimal = 1,
        *,
        default: int | float | Decimal = 0,
        timeout: float | None = None,
    ) -> int | float | Decimal:
        """Add to the number under a key, as one command. Returns the new value. A cancelled call is not taken back."""
        inside = self._calls.inside
        return await self._calls.make(inside.operations.increment(key, by, default, inside.seconds(timeout)))

    async def delete(self, key: K, *, timeout: float | None = None) -> bool:
        """Remove a key. Returns whether it was there. A cancelled call is not taken back: the key may go."""
        inside = self._calls.inside
        return await self._calls.make(inside.operations.delete(key, inside.seconds(timeout)))

    @overload
    async def pop(self, key: K, /, *, timeout: float | None = ...) -> V: ...
    @overload
    async def pop(self, key: K, /, default: V | D, *, timeout: float | None = ...) -> V | D: ...
    async def pop(self, key: K, /, default: Any = _ABSENT, *, timeout: float | None = None) -> Any:
        """Remove a key and return its value, or `default`; `KeyError` if there is neither.

        A cancelled call is not taken back: the key may go, and nobody has its value then.
        """
        inside = self._calls.inside
        try:
            return await self._calls.make(inside.operations.pop(key, inside.seconds(timeout)))
        except KeyError:
            if default is _ABSENT:
                raise
            return default

    async def popitem(self, *, timeout: float | None = None) -> tuple[K, V]:
        """Remove the pair inserted last and return it; `KeyError` if the dict is empty. If cancelled, as `pop`."""
        inside = self._calls.inside
        return await self._calls.make(inside.operations.popitem(inside.seconds(timeout)))

    @overload
    async def setdefault(
        self: Writing[K, D | None], key: K, default: None = None, *, timeout: float | None = ...
    ) -> D | None: ...
    @overload
    async def setdefault(self, key: K, default: V, *, timeout: float | None = ...) -> V: ...
    async def setdefault(self, key: K, default: Any = None, *, timeout: float | None = None) -> Any:
        """Store `default` if the key is absent. Returns the value that is there afterwards.

        A cancelled call is not taken back.
        """
        inside = self._calls.inside
        return await self._calls.make(inside.operations.setdefault(key, default, inside.seconds(timeout)))

    async def clear(self, *, timeout: float | None = None) -> None:
        """Remove everything. A cancelled call is not taken back."""
        inside = self._calls.inside
        await self._calls.make(inside.operations.clear(inside.seconds(timeout)))

    @overload
    async def update(self, other: SupportsKeysAndGetItem[K, V], /) -> None: ...
    @overload
    async def update(self: Writing[str, V], other: SupportsKeysAndGetItem[str, V], /, **values: V) -> None: ...
    @overload
    async def update(self, other: Iterable[tuple[K, V]], /) -> None: ...
    @overload
    async def update(self: Writing[str, V], other: Iterable[tuple[str, V]], /, **values: V) -> None: ...
    @overload
    async def update(self: Writing[str, V], **values: V) -> None: ...
    async def update(  # type: ignore[misc]  # mypy holds that a positional-only name could be among the values
        self, other: Any = (), /, **values: Any
    ) -> None:
        """Store many values, all at once. A cancelled call is not taken back.

        Of what is larger than one command, the commands that were not sent yet are not.
        """
        inside = self._calls.inside
        await self._calls.make(inside.operations.update(other, values, inside.timeout))

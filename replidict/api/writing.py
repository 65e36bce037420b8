"""The methods of a dict that write; what has an operator stands in `replicated_dict`, and calls these."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, MutableMapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar, overload

from typing_extensions import override

from replidict.api.held_lock import Held
from replidict.api.lease import GrantedLease
from replidict.api.modifiers import modifiers_of
from replidict.node.blocking_calls import write
from replidict.node.steps import Returned, Steps
from replidict.server.operations import Operations

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

    from replidict.server.shared_node import Opened

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

_ABSENT: Any = object()


class Writing(MutableMapping[K, V]):
    """The methods of `ReplicatedDict` that write.

    Each call is one atomic command in the log (`update` may be several). It returns once a majority of the voters has
    the command on disk and this node has applied it.
    """

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
        """Store a value.

        Args:
            key: The key: a hashable value of the types that `replidict.machine.codec` lists.
            value: The value, of the types listed there, or whatever `codec=` encodes.
            ttl: Seconds until the key expires, counted from the start of the call; it never expires earlier. None: no
                expiry.
            lease: The lease to attach the key to: the key is deleted when the lease ends. None: no lease.
            fence: A lock that must still be held when the command is applied. None: no condition.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            The revision of this write.

        Raises:
            ValueError: `ttl`, `lease`, `fence` or `timeout` makes no sense.
            EncodingError: The key or value can't be stored faithfully, or is too large; nothing was changed.
            LockLost: The lock of `fence` is not held any more; nothing was changed.
            LeaseLost: The lease has ended; nothing was changed.
            NotCommitted: The write was not applied and never will be; call again.
            OutcomeUnknown: The write may or may not be applied; read before calling again.
            ClosedError: The dict is closed.
            StorageError: The node has stopped because its disk failed.

        Example:
            >>> d.set("greeting", "hello")
            1
            >>> d.set("session/7", {"user": "alice"}, ttl=60)
            2
        """
        prepared = self._operations.put(key, value, modifiers_of(ttl, lease, fence))
        return write(self._host.node, *prepared, self._seconds(timeout))  # type: ignore[return-value]

    def submit(
        self,
        key: K,
        value: V,
        *,
        ttl: float | None = None,
        lease: GrantedLease | None = None,
        fence: Held | None = None,
    ) -> Future[int]:
        """Store a value without waiting: one thread can have many writes under way.

        The writes of one thread are applied in the order of its calls. `Future.cancel` has no effect. Callbacks of the
        futures run one after the other in a thread of this package; a slow callback delays the others, and `close`.

        Args:
            key: The key, as for `set`.
            value: The value, as for `set`.
            ttl: Seconds until the key expires; None: no expiry.
            lease: The lease to attach the key to; None: no lease.
            fence: A lock that must still be held when the command is applied; None: no condition.

        Returns:
            A future of the revision. It fails with the errors of `set`, within the dict's timeout.

        Raises:
            ValueError: `ttl`, `lease` or `fence` makes no sense.
            EncodingError: The key or value can't be stored; nothing was changed.
            ClosedError, StorageError: The node has stopped; nothing was changed.

        Example:
            >>> futures = [d.submit(n, n * n) for n in range(3)]
            >>> [future.result() for future in futures]
            [1, 2, 3]
        """
        return self._host.futures.submit(
            *self._operations.put(key, value, modifiers_of(ttl, lease, fence)), self._timeout
        )

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
        """Store a value only if the key is absent.

        Args:
            key: The key, as for `set`.
            value: The value, as for `set`.
            ttl: Seconds until the key expires; None: no expiry.
            lease: The lease to attach the key to; None: no lease.
            fence: A lock that must still be held when the command is applied; None: no condition.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            Whether the value was stored.

        Raises:
            ValueError, EncodingError, LockLost, LeaseLost, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As
                `set`.

        Example:
            >>> d.add("owner", "node 1"), d.add("owner", "node 2")
            (True, False)
        """
        return self._run(self._operations.add(key, value, modifiers_of(ttl, lease, fence), self._seconds(timeout)))

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
        """Store a value only if the present value equals `expected`, by `==`.

        Use it to change what others may change too: read, compute, store, and start again if the answer is False. A
        value that holds NaN equals itself. A value that holds a `ZoneInfo` equals only a value encoded alike. An absent
        key equals nothing: `add` is for that.

        Args:
            key: The key, as for `set`.
            expected: The value that must be there.
            value: The value to store, as for `set`.
            ttl: Seconds until the key expires; None: no expiry.
            lease: The lease to attach the key to; None: no lease.
            fence: A lock that must still be held when the command is applied; None: no condition.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            Whether the value was stored.

        Raises:
            ValueError, EncodingError, LockLost, LeaseLost, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As
                `set`.

        Example:
            >>> d["state"] = "new"
            >>> d.compare_and_set("state", "new", "done"), d.compare_and_set("state", "new", "failed")
            (True, False)
        """
        seconds = self._seconds(timeout)
        return self._run(
            self._operations.compare_and_set(key, expected, value, modifiers_of(ttl, lease, fence), seconds)
        )

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
        """Store a value only if the present value was written at `revision`.

        Args:
            key: The key, as for `set`.
            value: The value, as for `set`.
            revision: The revision of the present value, as `versioned` returns it.
            ttl: Seconds until the key expires; None: no expiry.
            lease: The lease to attach the key to; None: no lease.
            fence: A lock that must still be held when the command is applied; None: no condition.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            Whether the value was stored.

        Raises:
            ValueError, EncodingError, LockLost, LeaseLost, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As
                `set`.

        Example:
            >>> d["config"] = {"debug": False}
            >>> value, revision = d.versioned("config")
            >>> d.replace("config", value | {"debug": True}, revision=revision)
            True
            >>> d.replace("config", {}, revision=revision)  # it has been written since
            False
        """
        return self._run(
            self._operations.replace(key, value, revision, modifiers_of(ttl, lease, fence), self._seconds(timeout))
        )

    # -- as `dict` does -----------------------------------------------------------------------------------------------

    def delete(self, key: K, *, timeout: float | None = None) -> bool:
        """Remove a key without reading its value.

        Args:
            key: The key.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            Whether the key was present.

        Raises:
            EncodingError: `key` can't be a key.
            NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> d.delete("missing")
            False
        """
        return self._run(self._operations.delete(key, self._seconds(timeout)))

    @overload
    def pop(self, key: K, /, *, timeout: float | None = ...) -> V: ...
    @overload
    def pop(self, key: K, /, default: V | D, *, timeout: float | None = ...) -> V | D: ...
    @override
    def pop(self, key: K, /, default: Any = _ABSENT, *, timeout: float | None = None) -> Any:
        """Remove a key and return its value.

        Args:
            key: The key.
            default: What to return if the key is absent; without it, `KeyError` is raised.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            The removed value, or `default`.

        Raises:
            KeyError: The key is absent and there is no `default`.
            DecodingError: This machine can't decode the value; the key stays.
            EncodingError, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> d["task"] = "sweep"
            >>> d.pop("task"), d.pop("task", None)
            ('sweep', None)
        """
        try:
            return self._run(self._operations.pop(key, self._seconds(timeout)))
        except KeyError:
            if default is _ABSENT:
                raise
            return default

    @override
    def popitem(self, *, timeout: float | None = None) -> tuple[K, V]:
        """Remove the pair that was inserted last.

        Args:
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            The removed key and value.

        Raises:
            KeyError: The dict is empty.
            DecodingError: This machine can't decode the value; the pair stays.
            NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> d.update(a=1, b=2)
            >>> d.popitem()
            ('b', 2)
        """
        return self._run(self._operations.popitem(self._seconds(timeout)))

    @overload
    def setdefault(
        self: Writing[K, D | None], key: K, default: None = None, *, timeout: float | None = ...
    ) -> D | None: ...
    @overload
    def setdefault(self, key: K, default: V, *, timeout: float | None = ...) -> V: ...
    @override
    def setdefault(self, key: K, default: Any = None, *, timeout: float | None = None) -> Any:
        """Store `default` if the key is absent.

        Args:
            key: The key, as for `set`.
            default: The value to store.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            The value that the key has afterwards.

        Raises:
            DecodingError: This machine can't decode the value.
            EncodingError, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> d.setdefault("limit", 10), d.setdefault("limit", 20)
            (10, 10)
        """
        return self._run(self._operations.setdefault(key, default, self._seconds(timeout)))

    @override
    def clear(self, *, timeout: float | None = None) -> None:
        """Remove all keys, as one command.

        Args:
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Raises:
            NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> d.update(a=1, b=2)
            >>> d.clear()
            >>> len(d)
            0
        """
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
        """Store many values as one command: others see all of them or none.

        What is larger, encoded, than `Options.max_command_bytes` is split into several commands, applied in order, all
        within one timeout. If one of them fails, those before it stay.

        Args:
            other: A mapping, or pairs of keys and values.
            values: More pairs, whose keys are str.

        Raises:
            OutcomeUnknown: As `set`; if the call was split, the text says how many entries were stored for sure.
            EncodingError, NotCommitted, ClosedError, StorageError: As `set`.

        Example:
            >>> d.update({"a": 1}, b=2)
            >>> dict(d)
            {'a': 1, 'b': 2}
        """
        self._run(self._operations.update(other, values, self._timeout))

"""The dict itself: encoding in the caller's thread, waiting, and the habits of `dict`. All logic is further down."""

from __future__ import annotations

import os
import weakref
from collections.abc import (
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Reversible,
)
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, overload

from typing_extensions import override

from replidict.api.administration import Administration
from replidict.api.coordination import Coordination
from replidict.api.operations import Operations
from replidict.api.transaction import Transactions
from replidict.api.views import Items, Keys, Values, Versioned, contents
from replidict.api.watch import Watching
from replidict.api.writing import Writing
from replidict.client.join import way_in
from replidict.machine.codec import DEFAULT_CODEC, Codec
from replidict.machine.values import value_of
from replidict.node.blocking_calls import make_current, make_recent
from replidict.node.call_arguments import (
    check_kinds,
    encoded_key,
    founders_of,
    member_to_join,
    network_of,
    seconds_of,
)
from replidict.node.steps import Returned, Steps, run
from replidict.options import NO_NETWORK, Options
from replidict.security import TLS, Strings
from replidict.server.open_node import Host

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

    from replidict.aio.async_dict import AsyncDict

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")
K2 = TypeVar("K2", bound=Hashable)


class ReplicatedDict(
    Administration, Writing[K, V], Transactions[K, V], Watching[K, V], Coordination, MutableMapping[K, V], Reversible[K]
):
    """A dict kept the same on every node of a cluster, on disk, by Raft.

    `path` is a directory for this node alone. Without `address`, it is a single durable node and uses no network.
    With `address` ("host:port") it listens there and forms a cluster with `peers`, the addresses of the other
    founding members, or enters the running cluster of which the node at `join` is a member: as a learner, which becomes
    a voter by itself once it has everything, or stays a read replica with `voter=False`. These three matter the first
    time only, afterwards the directory knows the members.

    The constructor opens the files and the address, and returns once it is let in, if it joins; operations wait for a
    leader, up to `timeout` seconds. Writes return once a majority has them on disk; plain reads are this node's copy.
    Any number of threads may use one object, and so may signal handlers and finalizers; what would wait for the node in
    its own thread, where a codec or finalizer may run, is refused at once. Left open, it is closed after the functions
    that `atexit` was given since the import. After `os.fork` it belongs to the parent: the child gets `ClosedError`.

    Off loopback every node needs the same `secret` (at least 8 bytes) or `tls`, or `insecure=True`. `codec`
    replaces the encoding of values (not of keys); it must be the same on every node, and pure.

    Raises `ValueError` (an argument that makes no sense), `StorageError` (the directory), `RemovedError` (its cluster
    was recovered without it), `SecurityError`, `ReplidictError` (the address can't be listened on, or `join` refuses
    it); other `NotCommitted` or `OutcomeUnknown` when nobody let it in within `timeout` seconds: do the same again.

    Keys: what `dict` takes, of the types listed in `replidict.machine.codec`. Each mutating method is one atomic
    command
    and raises `NotCommitted` (surely not applied), `OutcomeUnknown` (may or may not be applied), `EncodingError`
    (a key or value that can't be kept), `ClosedError` or `StorageError`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        address: str | None = None,
        peers: Strings = (),
        join: str | None = None,
        voter: bool = True,
        timeout: float = 10.0,
        tls: TLS | None = None,
        secret: str | bytes | None = None,
        insecure: bool = False,
        codec: Codec = DEFAULT_CODEC,
        options: Options = Options(),  # noqa: B008 -- frozen
    ) -> None:
        check_kinds(options, codec, tls)
        founders = founders_of(address, peers)
        member = member_to_join(join, address, founders, voter)
        self._timeout = seconds_of(timeout, "timeout")
        security = network_of(address, tls, secret, insecure)
        join_by = way_in(founders[0], member, voter, security, self._timeout)
        self._options = options
        self._codec = codec
        self._decode = codec.decode
        self._host = Host(path, (address or NO_NETWORK).lower(), founders, join_by, security, codec, options)
        self._machine = self._host.node.machine
        self._operations = Operations[K, V](self._host.node, codec, options)
        weakref.finalize(self, self._host.forgotten).atexit = False  # `open_node` sees to that

    # -- reading ----------------------------------------------------------------------------------------------------

    @override
    def __getitem__(self, key: K) -> V:
        """Return this node's copy of the value. Raises `KeyError`, and `DecodingError`, as all reads of values do."""
        machine = self._machine
        item = machine.readable.get(key) if type(key) is str and not machine.pending else machine.find(key)
        if item is None:
            raise KeyError(key)
        try:
            return self._decode(item.value)  # type: ignore[no-any-return]
        except Exception:  # noqa: BLE001 -- raised again, with the name of the key
            return value_of(self._decode, key, item.value)  # type: ignore[no-any-return]

    @overload
    def get(
        self, key: K, /, *, linearizable: bool = ..., max_staleness: float | None = ..., timeout: float | None = ...
    ) -> V | None: ...
    @overload
    def get(
        self,
        key: K,
        default: V | D,
        *,
        linearizable: bool = ...,
        max_staleness: float | None = ...,
        timeout: float | None = ...,
    ) -> V | D: ...
    @override
    def get(
        self,
        key: K,
        default: Any = None,
        *,
        linearizable: bool = False,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The value of `key`, or `default`.

        By default this is this node's copy: no network, never ahead of the commit, never going backwards.
        With `linearizable=True` it includes every write that returned anywhere before the call (Raft thesis
        6.4). With `max_staleness` (seconds) it includes every write that returned anywhere up to so many seconds
        before the call, on this node's clock: answered at once when this node heard from the leader recently
        enough to know, otherwise as with `linearizable=True`.

        Raises `ReadTimeout` when that could not be made sure within `timeout` seconds.
        """
        if linearizable or max_staleness is not None or timeout is not None:
            self._catch_up(linearizable, max_staleness, timeout)
        machine = self._machine
        item = machine.readable.get(key) if type(key) is str and not machine.pending else machine.find(key)
        return default if item is None else value_of(self._decode, key, item.value)

    def versioned(self, key: K, *, linearizable: bool = False, timeout: float | None = None) -> Versioned[V] | None:
        """The value of `key` with the revision that wrote it; None if the key is absent.

        Raises `ReadTimeout` as `get` does.
        """
        self._catch_up(linearizable, None, timeout)
        machine = self._machine
        item = machine.readable.get(key) if type(key) is str and not machine.pending else machine.find(key)
        return None if item is None else Versioned(value_of(self._decode, key, item.value), item.revision)

    def _catch_up(self, linearizable: bool, max_staleness: float | None, timeout: float | None) -> None:
        seconds = self._seconds(timeout)  # checked, whether it is needed or not
        if linearizable:
            make_current(self._host.node, seconds)
        elif max_staleness is not None:
            make_recent(self._host.node, seconds_of(max_staleness, "max_staleness"), seconds)

    def snapshot(self) -> dict[K, V]:
        """This node's copy at one moment, as a plain dict, in insertion order.

        Raises `DecodingError`, which names the key, if a value can't be decoded; keys and `get` still give the rest.
        """
        return {key: value_of(self._decode, key, item.value) for key, item in self._machine.moment().items()}  # type: ignore[misc]

    @override
    def __contains__(self, key: object) -> bool:
        """Return whether this node's copy has the key."""
        machine = self._machine
        return (
            machine.readable.get(key) if type(key) is str and not machine.pending else machine.find(key)
        ) is not None

    @override
    def __len__(self) -> int:
        """Return the number of keys in this node's copy."""
        return self._machine.count()

    @override
    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys of one moment, in insertion order."""
        return iter(self._machine.moment())  # type: ignore[arg-type]

    @override
    def __reversed__(self) -> Iterator[K]:
        """Iterate over the keys of one moment, the one inserted last first."""
        return reversed(self._machine.moment())  # type: ignore[arg-type]

    @override
    def keys(self) -> Keys[K]:
        """A view of the keys; each iteration sees one moment."""
        return Keys(self)

    @override
    def items(self) -> Items[K, V]:
        """A view of the pairs; each iteration sees one moment."""
        return Items(self, self._machine.moment, self._decode)

    @override
    def values(self) -> Values[V]:
        """A view of the values; each iteration sees one moment."""
        return Values(self, self._machine.moment, self._decode)

    # -- writing ----------------------------------------------------------------------------------------------------

    @override
    def __setitem__(self, key: K, value: V) -> None:
        """Store a value, as `set` does. `d[key] += 1` is a read and a write, between which others may write."""
        self.set(key, value)

    @override
    def __delitem__(self, key: K) -> None:
        """Remove a key, as `delete` does, but raise `KeyError` if it is absent."""
        if not self.delete(key):
            raise KeyError(key)

    @overload
    def __or__(self, other: Mapping[K, V]) -> dict[K, V]: ...
    @overload
    def __or__(self, other: Mapping[K2, D]) -> dict[K | K2, V | D]: ...
    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return self.snapshot() | dict(other) if isinstance(other, Mapping) else NotImplemented

    @overload
    def __ror__(self, other: Mapping[K, V]) -> dict[K, V]: ...
    @overload
    def __ror__(self, other: Mapping[K2, D]) -> dict[K | K2, V | D]: ...
    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return dict(other) | self.snapshot() if isinstance(other, Mapping) else NotImplemented

    @overload  # type: ignore[misc]  # takes pairs as well, as dict does
    def __ior__(self, other: SupportsKeysAndGetItem[K, V]) -> Self: ...
    @overload
    def __ior__(self, other: Iterable[tuple[K, V]]) -> Self: ...
    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    def copy(self) -> dict[K, V]:
        """A plain dict with this node's copy; the same as `snapshot`."""
        return self.snapshot()

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError(
            "a ReplicatedDict is a running node, of which there is no deep copy: snapshot() is a plain dict"
        )

    @override
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a ReplicatedDict is a running node, which can't be pickled or sent to another process: send snapshot(), a "
            "plain dict, or open a node there, with a directory and an address of its own"
        )

    def _key(self, key: object) -> bytes:
        return encoded_key(key, self._options)

    def _run(self, steps: Steps[Returned]) -> Returned:
        return run(self._host.node, steps)

    @property
    def aio(self) -> AsyncDict[K, V]:
        """The same dict for coroutines of asyncio, the same object each time. See `replidict.aio`."""
        face: AsyncDict[K, V] | None = self.__dict__.get("_aio")
        if face is None:
            from replidict.aio.async_dict import AsyncDict

            face = self.__dict__.setdefault("_aio", AsyncDict(self))
        return face

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop this node and let go of its files and address. Idempotent, for any thread and signal handler.

        Writes under way elsewhere in this process get `OutcomeUnknown` or `ClosedError`. It waits until callbacks of
        futures have run, for ten seconds at most. Called by one of these, in a node's thread, or by a signal handler
        that has interrupted a backup, it does not wait: the node ends once that has returned.
        """
        self._host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ipython_key_completions_(self) -> list[K]:
        return list(self)

    @override
    def __repr__(self) -> str:
        host = self._host
        if host.node.failure is None:
            moment = self._machine.moment()
            state = f"{len(moment)} keys: {contents(moment.items(), self._decode)}"
        else:
            state = "closed"
        return f"<{type(self).__name__} {host.node.engine.address} in {str(host.directory.path)!r}, {state}>"

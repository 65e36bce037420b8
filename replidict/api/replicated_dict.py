"""`ReplicatedDict`: its constructor, which opens a node, the methods of `MutableMapping` that read, and operators."""

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
from replidict.api.transaction import Transactions
from replidict.api.views import Items, Keys, Values, Versioned, contents
from replidict.api.watch import Watching
from replidict.api.writing import Writing
from replidict.client.join import way_in
from replidict.machine.codec import DEFAULT_CODEC, Codec
from replidict.machine.stored_values import value_of
from replidict.node.blocking_calls import make_current, make_recent
from replidict.node.call_arguments import (
    check_kinds,
    check_share,
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
from replidict.server.operations import Operations
from replidict.server.shared_node import SharedNode
from replidict.storage.directory import Directory

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
    """A dict that every node of a cluster keeps a copy of, on disk, by Raft.

    Opening one starts a node in this process. Writes return once a majority of the voters has them on disk; plain reads
    read this node's copy, without the network. The constructor returns when the files and the address are open, and,
    with `join`, when the cluster has let the node in; later calls wait for a leader. Any number of threads may use one
    object, and so may signal handlers and finalizers. In the node's own thread (where a codec or finalizer may run), a
    call that would wait for the node raises instead. After `os.fork` the dict belongs to the parent: in the child,
    calls raise `ClosedError`. A dict that is still open at exit is closed after the `atexit` functions registered since
    the import.

    Args:
        path: The node's own directory; it is made if it does not exist. It remembers the members: `peers`, `join` and
            `voter` matter only the first time.
        address: "host:port" at which this node listens and its peers reach it; None: a single node without a network.
        peers: The addresses of the other founding members.
        join: The address of a member of a running cluster, which this new node joins as a learner.
        voter: Whether a node that joins becomes a voter once it has everything; if not, it stays a learner (read
            replica).
        timeout: Seconds for which calls wait, and the constructor with `join`.
        tls: Certificates that protect the connections.
        secret: At least 8 bytes that all nodes know, to authenticate the connections.
        insecure: Whether to listen off loopback without `tls` or `secret`.
        codec: Encodes and decodes values (not keys); it must be pure, and the same on every node.
        share: Whether other processes of this machine that open the directory with it use the same node: one runs it,
            the others attach to that one, and take over when it ends.
        options: Timings and limits.

    Raises:
        ValueError: An argument makes no sense.
        StorageError: The directory can't be used: it is damaged, in use, or of a newer release.
        RemovedError: This node was removed, or its cluster was recovered without it.
        SecurityError: The network would be open to anyone, or a file of `tls` can't be used.
        ReplidictError: `address` can't be listened on, or the cluster refuses `join`.
        NotCommitted, OutcomeUnknown: Nobody let this node in within `timeout`; open it again with the same arguments.

    Example:
        >>> from replidict import ReplicatedDict
        >>> with ReplicatedDict("data") as stored:
        ...     stored["greeting"] = "hello"
        >>> with ReplicatedDict("data") as stored:
        ...     stored["greeting"]
        'hello'
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
        share: bool = False,
        options: Options = Options(),  # noqa: B008 -- frozen
    ) -> None:
        check_kinds(options, codec, tls)
        check_share(share)
        founders = founders_of(address, peers)
        member = member_to_join(join, address, founders, voter)
        seconds = seconds_of(timeout, "timeout")
        security = network_of(address, tls, secret, insecure)
        join_by = way_in(founders[0], member, voter, security, seconds)
        own = (address or NO_NETWORK).lower()

        def open_host(directory: Directory) -> Host:
            return Host(directory, own, founders, join_by, security, codec, options, shared=share)

        host = SharedNode(path, own, open_host, codec, options, seconds) if share else open_host(Directory(path))
        self._use(host, codec, options, seconds)
        weakref.finalize(self, host.forgotten).atexit = False  # `open_node` sees to that

    def _use(self, host: Host | SharedNode, codec: Codec, options: Options, seconds: float) -> None:
        """Be the dict that an open node keeps."""
        self._timeout = seconds
        self._options = options
        self._codec = codec
        self._decode = codec.decode
        self._host = host
        self._machine = host.machine
        self._operations = Operations[K, V](host.bare_node, codec, options)

    # -- reading ----------------------------------------------------------------------------------------------------

    @override
    def __getitem__(self, key: K) -> V:
        """Return the value of a key in this node's copy. Raises `KeyError`, or `DecodingError` as `get` does."""
        if type(key) is str:  # the same as below, but quicker
            try:
                item = self._machine.readable[key]
            except KeyError:
                raise KeyError(key) from None
        elif (found := self._machine.find(key)) is not None:
            item = found
        else:
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
        """Read a value from this node's copy, or one that is guaranteed to be current.

        A plain read needs no network. It never shows an uncommitted write and never goes back in time.

        Args:
            key: The key.
            default: What to return if the key is absent.
            linearizable: Include every write that returned on any node before this call (Raft thesis 6.4).
            max_staleness: Seconds: include every write that returned on any node up to so long before this call, by
                this node's clock. It is answered at once if this node heard from the leader recently enough to know.
            timeout: Seconds to wait for such a guarantee; None: the dict's timeout.

        Returns:
            The value, or `default`.

        Raises:
            ReadTimeout: The guarantee could not be given in time.
            DecodingError: This machine can't decode the value.
            ClosedError, StorageError: The node has stopped.

        Example:
            >>> d["a"] = 1
            >>> d.get("a"), d.get("b"), d.get("a", linearizable=True)
            (1, None, 1)
        """
        if linearizable or max_staleness is not None or timeout is not None:
            self._catch_up(linearizable, max_staleness, timeout)
        machine = self._machine
        item = machine.readable.get(key) if type(key) is str else machine.find(key)
        if item is None:
            return default
        try:
            return self._decode(item.value)
        except Exception:  # noqa: BLE001 -- raised again, with the name of the key
            return value_of(self._decode, key, item.value)

    def versioned(self, key: K, *, linearizable: bool = False, timeout: float | None = None) -> Versioned[V] | None:
        """Read a value with the revision that wrote it, for `replace`.

        Args:
            key: The key.
            linearizable: Include every write that returned on any node before this call.
            timeout: Seconds to wait for that; None: the dict's timeout.

        Returns:
            A `Versioned`, or None if the key is absent.

        Raises:
            ReadTimeout, DecodingError, ClosedError, StorageError: As `get`.

        Example:
            >>> d["a"] = 1
            >>> d.versioned("a")
            Versioned(value=1, revision=1)
        """
        self._catch_up(linearizable, None, timeout)
        item = self._machine.find(key)
        return None if item is None else Versioned(value_of(self._decode, key, item.value), item.revision)

    def _catch_up(self, linearizable: bool, max_staleness: float | None, timeout: float | None) -> None:
        seconds = self._seconds(timeout)  # checked, whether it is needed or not
        if linearizable:
            make_current(self._host.node, seconds)
        elif max_staleness is not None:
            make_recent(self._host.node, seconds_of(max_staleness, "max_staleness"), seconds)

    def snapshot(self) -> dict[K, V]:
        """Return this node's copy at one moment, as a plain dict in insertion order.

        Raises:
            DecodingError: This machine can't decode a value, which the error names; keys and `get` still give the
                others.
            ClosedError, StorageError: The node has stopped.
        """
        return {key: value_of(self._decode, key, item.value) for key, item in self._machine.moment().items()}  # type: ignore[misc]

    @override
    def __contains__(self, key: object) -> bool:
        """Return whether this node's copy has the key."""
        if type(key) is str:
            return key in self._machine.readable
        return self._machine.find(key) is not None

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
        """Return a view of the keys; each iteration sees one moment."""
        return Keys(self)

    @override
    def items(self) -> Items[K, V]:
        """Return a view of the pairs; each iteration sees one moment. A value may raise `DecodingError`."""
        return Items(self, self._machine.moment, self._decode)

    @override
    def values(self) -> Values[V]:
        """Return a view of the values; each iteration sees one moment. A value may raise `DecodingError`."""
        return Values(self, self._machine.moment, self._decode)

    # -- writing ----------------------------------------------------------------------------------------------------

    @override
    def __setitem__(self, key: K, value: V) -> None:
        """Store a value, as `set` does. Others may write between the read and the write of `d[key] += 1`."""
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
        """Return this node's copy as a plain dict; the same as `snapshot`.

        Raises:
            DecodingError, ClosedError, StorageError: As `snapshot`.
        """
        return self.snapshot()

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a ReplicatedDict is a running node and can't be deep-copied: snapshot() returns a plain dict")

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
        """Stop this node, and release its files and its address. Any thread and signal handler may call it, and again.

        Writes of other threads that are under way raise `OutcomeUnknown` or `ClosedError`. It waits until the callbacks
        of futures have run, for ten seconds at most. It does not wait when such a callback calls it, when it is called
        in the node's thread, or by a signal handler that has interrupted a backup: the node then stops once that has
        returned.
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
        if host.failure is None:
            moment = self._machine.moment()
            state = f"{len(moment)} keys: {contents(moment.items(), self._decode)}"
        else:
            state = "closed"
        return f"<{type(self).__name__} {host.address} in {str(host.path)!r}, {state}>"

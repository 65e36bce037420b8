"""The dict itself: encoding in the caller's thread, waiting, and the habits of `dict`. All logic is further down."""

from __future__ import annotations

import os
import weakref
from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Reversible,
    ValuesView,
)
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from typing_extensions import override

from replidict.api.views import Items, Keys, Values, Versioned
from replidict.client.join import way_in
from replidict.errors import ReadTimeout, raise_anew
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, Codec, decode_key
from replidict.monotonic_clock import clock
from replidict.node.backup import Backup
from replidict.node.blocking_calls import make_current, update, write
from replidict.node.call_arguments import (
    check_kinds,
    encoded_key,
    encoded_value,
    founders_of,
    in_commands,
    member_to_join,
    network_of,
    pairs_of,
    seconds_of,
)
from replidict.options import NO_NETWORK, Options
from replidict.protocol.peer_messages import AddMember, RemoveMember
from replidict.security import TLS, member_of
from replidict.server.open_node import Host
from replidict.status import Member, Status
from replidict.storage.restore import restore

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

_ABSENT: Any = object()


class ReplicatedDict(MutableMapping[K, V], Reversible[K]):
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
        peers: Iterable[str] = (),
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
        weakref.finalize(self, self._host.forgotten).atexit = False  # `open_node` sees to that

    # -- reading ----------------------------------------------------------------------------------------------------

    @override
    def __getitem__(self, key: K) -> V:
        machine = self._machine
        item = machine.find(key) if machine.pending else machine.readable.get(key)
        if item is None:
            raise KeyError(key)
        return self._decode(item.value)  # type: ignore[no-any-return]

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
        if linearizable:
            self._make_current(timeout)
        elif max_staleness is not None:
            bound = seconds_of(max_staleness, "max_staleness")
            if not clock() - self._host.node.engine.read_index.fresh_as_of <= bound:
                self._make_current(timeout)
        if timeout is not None:
            seconds_of(timeout, "timeout")  # whether it was needed or not
        machine = self._machine
        item = machine.find(key) if machine.pending else machine.readable.get(key)
        return default if item is None else self._decode(item.value)

    def versioned(self, key: K, *, linearizable: bool = False, timeout: float | None = None) -> Versioned[V] | None:
        """The value of `key` with the revision that wrote it; None if the key is absent.

        Raises `ReadTimeout` as `get` does.
        """
        if linearizable:
            self._make_current(timeout)
        elif timeout is not None:
            seconds_of(timeout, "timeout")
        machine = self._machine
        item = machine.find(key) if machine.pending else machine.readable.get(key)
        return None if item is None else Versioned(self._decode(item.value), item.revision)

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until this node's copy has all that was acknowledged anywhere before; else raises `ReadTimeout`."""
        self._make_current(timeout)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until there is a leader and this node's copy is up to date. False after `timeout` seconds."""
        try:
            self._make_current(timeout)
        except ReadTimeout:
            return False
        return True

    def snapshot(self) -> dict[K, V]:
        """This node's copy at one moment, as a plain dict, in insertion order."""
        decode = self._decode
        return {key: decode(item.value) for key, item in self._machine.moment().items()}  # type: ignore[misc]

    @property
    def revision(self) -> int:
        """Of the last change applied on this node: the count of changes since the cluster was founded."""
        return self._machine.revision

    def status(self) -> Status:
        """What this node knows of itself and its cluster. Never waits; answers on a closed dict, too."""
        return self._host.node.status()

    @override
    def __contains__(self, key: object) -> bool:
        machine = self._machine
        return (machine.find(key) if machine.pending else machine.readable.get(key)) is not None

    @override
    def __len__(self) -> int:
        return self._machine.count()

    @override
    def __iter__(self) -> Iterator[K]:
        return iter(self._machine.moment())  # type: ignore[arg-type]

    @override
    def __reversed__(self) -> Iterator[K]:
        return reversed(self._machine.moment())  # type: ignore[arg-type]

    @override
    def keys(self) -> KeysView[K]:
        """A view of the keys; each iteration sees one moment."""
        return Keys(self)

    @override
    def items(self) -> ItemsView[K, V]:
        """A view of the pairs; each iteration sees one moment."""
        return Items(self, self._machine.moment, self._decode)

    @override
    def values(self) -> ValuesView[V]:
        """A view of the values; each iteration sees one moment."""
        return Values(self, self._machine.moment, self._decode)

    def _make_current(self, timeout: float | None) -> None:
        make_current(self._host.node, self._seconds(timeout))

    # -- writing ----------------------------------------------------------------------------------------------------

    def set(self, key: K, value: V, *, timeout: float | None = None) -> int:
        """Store a value. Returns the revision of this write.

        Raises `NotCommitted`, `OutcomeUnknown`, `EncodingError`, `ClosedError` or `StorageError`.
        """
        encoded, data = self._key(key), self._value(value)
        return self._write(cmd.Put(encoded, data), len(encoded) + len(data), timeout)  # type: ignore[return-value]

    @override
    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    def submit(self, key: K, value: V) -> Future[int]:
        """As `set`, but returns a future of the revision at once: one thread can have many writes under way.

        They are applied in the order of the calls, and resolved in a thread of their own, each within the timeout of
        this dict; `cancel` does nothing. Callbacks run in that thread, one after the other: while one takes its time,
        other callbacks and `close` wait. It may use this dict and its futures. Raises `EncodingError`, `ClosedError`
        or `StorageError`.
        """
        encoded, data = self._key(key), self._value(value)
        operation, size = cmd.Put(encoded, data), len(encoded) + len(data)
        return self._host.futures.submit(operation, size, self._timeout)

    def add(self, key: K, value: V, *, timeout: float | None = None) -> bool:
        """Store a value only if the key is absent. Returns whether it was."""
        encoded, data = self._key(key), self._value(value)
        return self._write(cmd.Add(encoded, data), len(encoded) + len(data), timeout) is True

    def compare_and_set(self, key: K, expected: V, value: V, *, timeout: float | None = None) -> bool:
        """Store a value only if the present one equals `expected`, by `==`. Returns whether it did.

        A value is also equal to itself when it holds NaN; one that holds a `ZoneInfo` equals nothing but itself. An
        absent key equals nothing: `add` is for that.
        """
        encoded, old, data = self._key(key), self._value(expected), self._value(value)
        operation = cmd.CompareAndSet(encoded, old, data)
        return self._write(operation, len(encoded) + len(old) + len(data), timeout) is True

    def replace(self, key: K, value: V, *, revision: int, timeout: float | None = None) -> bool:
        """Store a value only if the present one was written by `revision` (see `versioned`). Returns whether it was."""
        if isinstance(revision, bool) or not isinstance(revision, int) or not 0 <= revision < 2**63:
            raise ValueError(f"revision={revision!r}: must be a revision, as `versioned` and `set` give it")
        encoded, data = self._key(key), self._value(value)
        return self._write(cmd.Replace(encoded, data, int(revision)), len(encoded) + len(data), timeout) is True

    @override
    def __delitem__(self, key: K) -> None:
        encoded = self._key(key)
        if self._write(cmd.Delete(encoded), len(encoded)) is False:
            raise KeyError(key)

    @overload
    def pop(self, key: K, /, *, timeout: float | None = ...) -> V: ...
    @overload
    def pop(self, key: K, /, default: V | D, *, timeout: float | None = ...) -> V | D: ...
    @override
    def pop(self, key: K, /, default: Any = _ABSENT, *, timeout: float | None = None) -> Any:
        """Remove a key and return its value, or `default`; `KeyError` if there is neither."""
        encoded = self._key(key)
        data = self._write(cmd.Pop(encoded), len(encoded), timeout)
        if isinstance(data, bytes):
            return self._decode(data)
        if default is _ABSENT:
            raise KeyError(key)
        return default

    @override
    def popitem(self, *, timeout: float | None = None) -> tuple[K, V]:
        """Remove the pair inserted last and return it; `KeyError` if the dict is empty."""
        pair = self._write(cmd.PopItem(), 0, timeout)
        if not isinstance(pair, list):
            raise KeyError("popitem(): dictionary is empty")
        return decode_key(pair[0]), self._decode(pair[1])  # type: ignore[return-value]

    @override
    def setdefault(self, key: K, default: Any = None, *, timeout: float | None = None) -> Any:
        """Store `default` if the key is absent. Returns the value that is there afterwards."""
        encoded, data = self._key(key), self._value(default)
        found = self._write(cmd.SetDefault(encoded, data), len(encoded) + len(data), timeout)
        assert isinstance(found, bytes)
        return self._decode(found)

    @override
    def clear(self, *, timeout: float | None = None) -> None:
        """Remove everything."""
        self._write(cmd.Clear(), 0, timeout)

    @override
    def update(self, other: Any = (), /, **values: V) -> None:
        """Store many values, all at once: others see all of them or none.

        Only what is larger, encoded, than `Options.max_command_bytes` goes as several commands, in order, all within
        one timeout; if one of them fails, those before it stay, and `OutcomeUnknown` says how many entries these hold.
        """
        pairs = other.items() if isinstance(other, Mapping) else pairs_of(other)
        encoded = [(self._key(key), self._value(value)) for key, value in pairs]
        encoded += [(self._key(key), self._value(value)) for key, value in values.items()]
        update(self._host.node, in_commands(encoded, self._options.max_command_bytes), len(encoded), self._timeout)

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return self.snapshot() | dict(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return dict(other) | self.snapshot() if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]  # takes pairs as well, as dict does
        self.update(other)
        return self

    def copy(self) -> dict[K, V]:
        """A plain dict with this node's copy; the same as `snapshot`."""
        return self.snapshot()

    def _key(self, key: object) -> bytes:
        return encoded_key(key, self._options)

    def _value(self, value: object) -> bytes:
        return encoded_value(value, self._codec, self._options)

    def _write(self, operation: cmd.Operation, size: int, timeout: float | None = None) -> cmd.Result:
        return write(self._host.node, operation, size, self._seconds(timeout))

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else seconds_of(timeout, "timeout")

    # -- the cluster ------------------------------------------------------------------------------------------------

    def members(self) -> tuple[Member, ...]:
        """Everybody in the cluster, in order of address, and how far the leader knows them to be.

        Waits for the leader for two election timeouts at most; without one, tells what this node knows.
        """
        return self._host.cluster.members()

    def add_peer(self, address: str, *, voter: bool = True, timeout: float | None = None) -> None:
        """Make room for a member at an address, from any node (thesis 4.2.1). Returns when that is committed.

        It comes in as a learner, and becomes a voter once it is there and has everything. A new node is started there
        with `join=`, which does this by itself if it was not done before; `add_peer` is for a read replica that shall
        have a vote, or a cluster that shall know beforehand who comes.

        Raises `NotCommitted` (surely not made), `OutcomeUnknown`, `ReplidictError` (it is a voter, and is to be none),
        `SecurityError` (nobody is called there without secret= or tls=), `ValueError`, `ClosedError`, `StorageError`.
        """
        self._host.cluster.change(AddMember(member_of(address), voter), self._seconds(timeout))

    def remove_peer(self, address: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Let a member go, from any node, itself included (thesis 4.1). Returns when that is committed.

        A leader that is removed hands over first. No voter is removed when a majority of those that are left can't be
        reached: remove the ones that are lost first. With `force`, for a member that must go at any price, it is; the
        cluster then has no leader and takes no writes until enough of the missing are back, and this call raises
        `OutcomeUnknown` meanwhile. It is no way out of a lost quorum: that is `replidict recover`.

        Raises `NotCommitted` (surely not made: no leader, another change under way), `OutcomeUnknown`, `ReplidictError`
        (there is no such member, or it is the only voter), `ValueError`, `ClosedError` or `StorageError`.
        """
        self._host.cluster.change(RemoveMember(member_of(address), force), self._seconds(timeout))

    def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> None:
        """Have another voter lead: `to`, or the one whose log is furthest (thesis 3.10). From any node.

        Raises as `remove_peer`; `ReplidictError` when there is no such voter.
        """
        self._host.cluster.hand_over(None if to is None else member_of(to), self._seconds(timeout))

    # -- backups ----------------------------------------------------------------------------------------------------

    def backup(self, path: str | os.PathLike[str]) -> Backup:
        """Write what this node holds at one moment to a new file, for `restore`; others write meanwhile.

        It has every write acknowledged on this node before the call (`barrier` first, for those acknowledged anywhere).
        When this returns, it is checked and on disk. Raises `FileExistsError`, `ReplidictError` (it can't be written
        there: the node goes on), `ClosedError` or `StorageError`.
        """
        if (failure := self._host.node.failure) is not None:
            raise_anew(failure)
        return self._host.backups.make(path)

    @staticmethod
    def restore(backup: str | os.PathLike[str], path: str | os.PathLike[str], *, address: str | None = None) -> None:
        """Make `path` the directory of a node that holds what a backup, or an automatic snapshot, holds.

        It is a new cluster, of which this node is the only member: open it with this `path` and `address`. Raises
        `StorageError` when the backup is damaged, or there is a node at `path` already; nothing was changed then.
        """
        restore(Path(backup).absolute(), Path(path).absolute(), NO_NETWORK if address is None else member_of(address))

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

    @override
    def __repr__(self) -> str:
        state = f"{len(self)} keys" if self._host.node.failure is None else "closed"
        return (
            f"<{type(self).__name__} {self._host.node.engine.address} in {str(self._host.directory.path)!r}, {state}>"
        )

"""`AsyncDict`: the methods of `ReplicatedDict` as coroutines."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Hashable,
    ItemsView,
    Iterator,
    KeysView,
    Reversible,
)
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, overload

from replidict.aio.calls import Calls, in_thread
from replidict.aio.coordination import Coordination
from replidict.aio.watch import Watch
from replidict.aio.writing import Writing
from replidict.api.attempts import Attempts, Body
from replidict.api.commit import conflict
from replidict.api.held_lock import Held
from replidict.api.internals import Inside
from replidict.api.modifiers import fence_of
from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.transaction_view import Transaction
from replidict.api.views import Values, Versioned
from replidict.api.watched_changes import ANY
from replidict.errors import ReadTimeout, ReplidictError, TransactionConflict
from replidict.node.call_arguments import seconds_of
from replidict.node.online_backup import Backup
from replidict.status import Member, Status

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")
Returned = TypeVar("Returned")


class AsyncDict(Writing[K, V], Coordination[K, V], Collection[K], Reversible[K], Generic[K, V]):
    """The coroutine interface of a dict: `d.aio`, or what `replidict.aio.open` returns. `sync` is the `ReplicatedDict`.

    What may wait is a coroutine, and needs no thread; arguments, results and errors are those of the methods of
    `ReplicatedDict` with the same names. Plain reads are of memory and need no `await`: `a[k]`, `k in a`, `len(a)`,
    iteration, `scan`. It is bound to no event loop, and any number of them may use it.

    A write whose call is cancelled is not taken back: it may be applied, within its timeout.
    """

    def __init__(self, d: ReplicatedDict[K, V]) -> None:
        """For `d.aio`, which gives the same object each time."""
        self.sync = d
        """The `ReplicatedDict` under it, whose methods wait in the thread that calls them."""
        self._calls = Calls(Inside(d))

    # -- reading memory -----------------------------------------------------------------------------------------------

    def __getitem__(self, key: K) -> V:
        """This node's copy of the value. Raises `KeyError`, and `DecodingError`."""
        return self.sync[key]

    def __contains__(self, key: object) -> bool:
        return key in self.sync

    def __len__(self) -> int:
        return len(self.sync)

    def __iter__(self) -> Iterator[K]:
        return iter(self.sync)

    def __reversed__(self) -> Iterator[K]:
        return reversed(self.sync)

    def keys(self) -> KeysView[K]:
        """A view of the keys; each iteration sees one moment."""
        return self.sync.keys()

    def items(self) -> ItemsView[K, V]:
        """A view of the pairs; each iteration sees one moment."""
        return self.sync.items()

    def values(self) -> Values[V]:
        """A view of the values; each iteration sees one moment."""
        return self.sync.values()

    def scan(self, prefix: str = "", *, after: str | None = None, limit: int | None = None) -> list[tuple[str, V]]:
        """Pairs whose keys are texts that begin with `prefix`, in order; see `ReplicatedDict.scan`."""
        return self.sync.scan(prefix, after=after, limit=limit)

    def ttl(self, key: object) -> float | None:
        """Seconds until a key goes, as this node knows; None: it is permanent. Raises `KeyError`."""
        return self.sync.ttl(key)

    @property
    def revision(self) -> int:
        """Of the last change applied on this node."""
        return self.sync.revision

    def status(self) -> Status:
        """What this node knows of itself and its cluster. It works on a closed dict, too."""
        return self.sync.status()

    def on_stop(self, callback: Callable[[ReplidictError], object]) -> None:
        """Have `callback(error)` called, in a thread, if this node stops by itself; see `ReplicatedDict.on_stop`."""
        self.sync.on_stop(callback)

    # -- reading what is current --------------------------------------------------------------------------------------

    @overload
    async def get(
        self, key: K, /, *, linearizable: bool = ..., max_staleness: float | None = ..., timeout: float | None = ...
    ) -> V | None: ...
    @overload
    async def get(
        self,
        key: K,
        default: V | D,
        *,
        linearizable: bool = ...,
        max_staleness: float | None = ...,
        timeout: float | None = ...,
    ) -> V | D: ...
    async def get(
        self,
        key: K,
        default: Any = None,
        *,
        linearizable: bool = False,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The value of `key`, or `default`, as current as is asked for; see `ReplicatedDict.get`.

        Raises `ReadTimeout` when that could not be made sure within `timeout` seconds.
        """
        await self._catch_up(linearizable, max_staleness, timeout)
        return self.sync.get(key, default)

    async def versioned(
        self, key: K, *, linearizable: bool = False, timeout: float | None = None
    ) -> Versioned[V] | None:
        """The value of `key` with the revision that wrote it; None if the key is absent. Raises as `get`."""
        await self._catch_up(linearizable, None, timeout)
        return self.sync.versioned(key)

    async def _catch_up(self, linearizable: bool, max_staleness: float | None, timeout: float | None) -> None:
        seconds = self._calls.inside.seconds(timeout)
        if linearizable:
            await self._calls.make_current(seconds)
        elif max_staleness is not None:
            await self._calls.make_recent(seconds_of(max_staleness, "max_staleness"), seconds)

    async def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until this node's copy has all that was acknowledged anywhere before; else raises `ReadTimeout`."""
        await self._calls.make_current(self._calls.inside.seconds(timeout))

    async def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until there is a leader and this node's copy is up to date. False after `timeout` seconds."""
        try:
            await self.barrier(timeout=timeout)
        except ReadTimeout:
            return False
        return True

    async def snapshot(self) -> dict[K, V]:
        """This node's copy at one moment, as a plain dict. It is decoded in a thread, since that may take long."""
        return await in_thread(self.sync.snapshot)

    # -- watching -----------------------------------------------------------------------------------------------------

    def watch(
        self,
        key: K = ANY,
        *,
        prefix: str | None = None,
        after: int | None = None,
        snapshot: bool = False,
        resync: bool = False,
    ) -> Watch[K, V]:
        """Watch changes, of all keys or some; see `ReplicatedDict.watch` for arguments and errors. It does not wait.

        Returns:
            An asynchronous iterator over `Change`, with `next(timeout)` and `close()`, and an asynchronous context
            manager, for the event loop in which it was made.

        Example:
            >>> await a.set("settings/theme", "dark")
            1
            >>> async with a.watch(prefix="settings/", snapshot=True) as changes:
            ...     async for change in changes:
            ...         print(change.kind, [(event.key, event.value) for event in change.events])
            ...         break
            snapshot [('settings/theme', 'dark')]
        """
        return Watch(self._calls, key, prefix, after, snapshot, resync)

    # -- transactions -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(
        self, *, linearizable: bool = False, fence: Held | None = None, timeout: float | None = None
    ) -> AsyncIterator[Transaction[K, V]]:
        """Read and write several keys as one step; see `ReplicatedDict.transaction` for arguments and errors.

        The body reads and writes without `await`: all of it is in memory until the block ends. If the body is
        cancelled, nothing is written; if the leaving is, the writes are not taken back.

        Example:
            >>> await a.update(alice=50, bob=0)
            >>> async with a.transaction() as t:
            ...     t["alice"] -= 10
            ...     t["bob"] += 10
            >>> a["alice"], a["bob"]
            (40, 10)
        """
        inside, calls = self._calls.inside, self._calls
        seconds = inside.seconds(timeout)
        fence_of(fence)
        if linearizable:
            await calls.make_current(seconds)
        t: Transaction[K, V] = Transaction(inside.node, inside.codec, inside.options)
        with Body(t) as body:
            yield t
        if body.error is not None:
            raise conflict(t.changed) from body.error
        await calls.make(t.committing(seconds, fence))

    @overload
    async def transact(
        self,
        function: Callable[..., Awaitable[Returned]],
        *args: Any,
        attempts: int | None = ...,
        fence: Held | None = ...,
        timeout: float | None = ...,
    ) -> Returned: ...
    @overload
    async def transact(
        self,
        function: Callable[..., Returned],
        *args: Any,
        attempts: int | None = ...,
        fence: Held | None = ...,
        timeout: float | None = ...,
    ) -> Returned: ...
    async def transact(
        self,
        function: Callable[..., Any],
        *args: Any,
        attempts: int | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Await `function(t, *args)` as one transaction, and again after a pause when others have changed what it read.

        See `ReplicatedDict.transact` for arguments and errors; the function may be a plain one as well. If this is
        cancelled in the body, nothing is written; when the body has ended, the writes are not taken back.

        Example:
            >>> async def rename(t, old, new):
            ...     t[new] = t.pop(old)
            >>> await a.set("draft", "text")
            1
            >>> await a.transact(rename, "draft", "final")
            >>> a["final"]
            'text'
        """
        inside, calls = self._calls.inside, self._calls
        tries = Attempts(inside.node, inside.seconds(timeout), attempts)
        fence_of(fence)
        while True:
            t: Transaction[K, V] = Transaction(inside.node, inside.codec, inside.options)
            with Body(t) as body:
                returned = function(t, *args)
                result = await returned if inspect.isawaitable(returned) else returned
            if body.error is None:
                try:
                    await calls.make(t.committing(tries.seconds(), fence))
                    return result
                except TransactionConflict as error:
                    keys = error.keys
            else:
                keys = tuple(t.changed)
            body.error = None  # its traceback refers to all this
            await asyncio.sleep(tries.pause(keys))

    # -- the node and its cluster -------------------------------------------------------------------------------------

    async def members(self) -> tuple[Member, ...]:
        """The members of the cluster; see `ReplicatedDict.members`.

        This call and the following ones run in a thread. A cancelled one ends first, as it would have ended without;
        then `CancelledError` is raised.
        """
        return await in_thread(self.sync.members)

    async def add_peer(self, address: str, *, voter: bool = True, timeout: float | None = None) -> None:
        """Make room for a member at an address; see `ReplicatedDict.add_peer`."""
        await in_thread(lambda: self.sync.add_peer(address, voter=voter, timeout=timeout))

    async def remove_peer(self, address: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Let a member go; see `ReplicatedDict.remove_peer`."""
        await in_thread(lambda: self.sync.remove_peer(address, force=force, timeout=timeout))

    async def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> None:
        """Have another voter lead; see `ReplicatedDict.transfer_leadership`."""
        await in_thread(lambda: self.sync.transfer_leadership(to, timeout=timeout))

    async def backup(self, path: str | os.PathLike[str]) -> Backup:
        """Write what this node holds at one moment to a new file; see `ReplicatedDict.backup`."""
        return await in_thread(lambda: self.sync.backup(path))

    async def close(self) -> None:
        """Stop this node and release its files and address. Idempotent. Calls that are waiting get an error.

        If this is cancelled, it closes all the same, and then `CancelledError` passes.
        """
        await in_thread(self.sync.close)

    def __repr__(self) -> str:
        return f"<aio of {self.sync!r}>"

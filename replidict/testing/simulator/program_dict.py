"""The dict as a simulated program has it: what waits is awaited, in simulated time.

It is for coroutines what `ReplicatedDict` is for threads, as far as a workload needs it. A method that writes is that
of `ReplicatedDict`: it is called until it asks for a write, and again, from its beginning, when that is answered.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from typing_extensions import override

from replidict.api.commit import conflict
from replidict.api.coordination import check_fence, fenced
from replidict.api.lock import Held
from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.transaction_view import Changed, Transaction
from replidict.api.views import Versioned
from replidict.api.watch import ANY
from replidict.brief import brief
from replidict.errors import ReadTimeout, ReplidictError, TransactionConflict, raise_anew
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, decode_key
from replidict.machine.locks import EXCLUSIVE
from replidict.node.blocking_calls import given_up
from replidict.node.call_arguments import pairs_of, ttl_of
from replidict.node.linearizable_reads import Read
from replidict.node.node import Node
from replidict.node.proposals import Write, result_of
from replidict.server.open_node import Host
from replidict.status import LockInfo
from replidict.testing.simulator.bell import Bell
from replidict.testing.simulator.loop import Trace
from replidict.testing.simulator.program_locks import Granting, ProgramLock
from replidict.testing.simulator.program_watch import ProgramWatch

TIMEOUT = 10.0
"""Seconds that calls wait if they are not told otherwise, as those of `ReplicatedDict`."""

PAUSE = 0.05
"""Seconds that a transaction waits at most before its body runs again."""


class _Asked(BaseException):
    """A method needs the answer to a write. Not an `Exception`, since nothing in between may handle it."""

    def __init__(self, operation: cmd.Operation, size: int, seconds: float) -> None:
        super().__init__()
        self.operation, self.size, self.seconds = operation, size, seconds


class SimulatedDict(ReplicatedDict[Any, Any]):
    """A `ReplicatedDict` on a simulated node, for what does not wait. What waits is for `ProgramDict`."""

    def __init__(self, node: Node) -> None:
        self._use(cast(Host, SimpleNamespace(node=node)), DEFAULT_CODEC, node.engine.options, TIMEOUT)
        self.answers: Iterator[cmd.Result] = iter(())
        """Those that are known, for the writes of the next call."""

    @override
    def _write(self, operation: cmd.Operation, size: int, timeout: float | None = None) -> cmd.Result:
        for answer in self.answers:
            return answer
        raise _Asked(operation, size, self._seconds(timeout))

    @override
    def _catch_up(self, linearizable: bool, max_staleness: float | None, timeout: float | None) -> None:
        """This copy is what there is: nothing waits here."""

    @override
    def locks(self) -> tuple[LockInfo, ...]:
        node = self._host.node
        return node.locks.infos(node.expiry.now())

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} keys on {self._host.node.engine.address}>"


class ProgramDict:
    """What a workload is given; see `replidict.testing.simulate`. Names and arguments are those of `ReplicatedDict`."""

    def __init__(self, node: Node, rng: random.Random, trace: Trace, name: str) -> None:
        self.sync = SimulatedDict(node)
        """The same for plain reads only, as a mapping."""
        self._node, self._rng, self._trace, self._name = node, rng, trace, name

    # -- plain reads --------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        return self.sync[key]

    def __contains__(self, key: object) -> bool:
        return key in self.sync

    def __len__(self) -> int:
        return len(self.sync)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.sync)

    def keys(self) -> Any:
        """A view of the keys; each iteration sees one moment."""
        return self.sync.keys()

    def items(self) -> Any:
        """A view of the pairs; each iteration sees one moment."""
        return self.sync.items()

    def values(self) -> Any:
        """A view of the values; each iteration sees one moment."""
        return self.sync.values()

    def scan(self, prefix: str = "", *, after: str | None = None, limit: int | None = None) -> list[tuple[str, Any]]:
        """Pairs whose keys are texts that begin with `prefix`, in order."""
        return self.sync.scan(prefix, after=after, limit=limit)

    def ttl(self, key: object) -> float | None:
        """Seconds until a key goes, as this node knows; None: it is permanent."""
        return self.sync.ttl(key)

    def locks(self) -> tuple[LockInfo, ...]:
        """Who holds a lock or a permit, as this node's copy says."""
        return self.sync.locks()

    def leader(self, name: str) -> LockInfo | None:
        """Who leads `name`, as this node's copy says; None: nobody."""
        return self.sync.leader(name)

    @property
    def revision(self) -> int:
        """Of the last change applied on this node."""
        return self.sync.revision

    # -- reads that wait ----------------------------------------------------------------------------------------------

    async def get(
        self, key: Any, default: Any = None, *, linearizable: bool = False, timeout: float | None = None
    ) -> Any:
        """The value of `key`, or `default`."""
        if linearizable:
            await self.barrier(timeout=timeout)
        return self.sync.get(key, default)

    async def versioned(
        self, key: Any, *, linearizable: bool = False, timeout: float | None = None
    ) -> Versioned[Any] | None:
        """The value of `key` with the revision that wrote it; None if the key is absent."""
        if linearizable:
            await self.barrier(timeout=timeout)
        return self.sync.versioned(key)

    async def snapshot(self) -> dict[Any, Any]:
        """This node's copy at one moment, as a plain dict."""
        return self.sync.snapshot()

    async def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until this node's copy has all that was acknowledged anywhere before; else raises `ReadTimeout`."""
        bell = Bell()
        read = Read(bell.ring)
        self._node.reads.submit(read)
        if not await bell.wait(self.sync._seconds(timeout)):
            read.abandoned = True
            raise ReadTimeout("no majority of the cluster confirmed in time that this node is up to date")
        if read.error is not None:
            raise_anew(read.error)

    # -- writes -------------------------------------------------------------------------------------------------------

    async def _make(self, name: str, key: object, *arguments: Any, **named: Any) -> Any:
        """Have a method of `ReplicatedDict` done."""
        method, answers = getattr(self.sync, name), list[cmd.Result]()
        self._trace.note(self._name, "call", f"{name} {brief(key)}")
        while True:
            self.sync.answers = iter(answers)
            try:
                found = method(key, *arguments, **named)
            except _Asked as asked:
                answers.append(await self._write(asked.operation, asked.size, asked.seconds))
            else:
                self._trace.note(self._name, "done", f"{name} {brief(key)}")
                return found

    async def _write(self, operation: cmd.Operation, size: int, seconds: float) -> cmd.Result:
        bell = Bell()
        write = Write(operation, size, bell.ring)
        try:
            self._node.proposals.submit(write)
            if not await bell.wait(seconds):
                raise given_up(self._node, write, seconds)
            return result_of(write)
        except ReplidictError as error:
            self._trace.note(self._name, "failed", type(error).__name__)
            raise

    async def set(self, key: Any, value: Any, **named: Any) -> int:
        """Store a value. Returns the revision of this write."""
        return cast(int, await self._make("set", key, value, **named))

    async def add(self, key: Any, value: Any, **named: Any) -> bool:
        """Store a value only if the key is absent. Returns whether it was."""
        return cast(bool, await self._make("add", key, value, **named))

    async def compare_and_set(self, key: Any, expected: Any, value: Any, **named: Any) -> bool:
        """Store a value only if the present one equals `expected`. Returns whether it did."""
        return cast(bool, await self._make("compare_and_set", key, expected, value, **named))

    async def replace(self, key: Any, value: Any, **named: Any) -> bool:
        """Store a value only if the present one was written by `revision`. Returns whether it was."""
        return cast(bool, await self._make("replace", key, value, **named))

    async def delete(self, key: Any, **named: Any) -> bool:
        """Remove a key. Returns whether it was there."""
        return cast(bool, await self._make("delete", key, **named))

    async def setdefault(self, key: Any, default: Any = None, **named: Any) -> Any:
        """Store `default` if the key is absent. Returns the value that is there afterwards."""
        return await self._make("setdefault", key, default, **named)

    async def increment(self, key: Any, by: Any = 1, **named: Any) -> Any:
        """Add to a number. Returns the sum."""
        return await self._make("increment", key, by, **named)

    async def expire(self, key: Any, ttl: float | None, **named: Any) -> bool:
        """Have a key go `ttl` seconds from now, or make it permanent. Returns whether there is such a key."""
        return cast(bool, await self._make("expire", key, ttl, **named))

    async def break_lock(self, name: str, *, token: int) -> bool:
        """Take a lock from its holder. Returns whether it was held with that token."""
        return cast(bool, await self._make("break_lock", name, token=token))

    async def clear(self, *, timeout: float | None = None) -> None:
        """Remove everything."""
        await self._write(cmd.Clear(), 0, self.sync._seconds(timeout))

    async def update(self, other: Any = (), /, **values: Any) -> None:
        """Store many values, all at once."""
        encoded = [(self.sync._key(key), self.sync._value(value)) for key, value in pairs_of(other, values)]
        await self._write(cmd.Update(encoded), sum(len(key) + len(value) for key, value in encoded), TIMEOUT)

    async def pop(self, key: Any, *default: Any, timeout: float | None = None) -> Any:
        """Remove a key and return its value, or `default`; `KeyError` if there is neither."""
        return await self.transact(lambda t: t.pop(key, *default), timeout=timeout)

    async def popitem(self, *, timeout: float | None = None) -> tuple[Any, Any]:
        """Remove the pair inserted last and return it; `KeyError` if the dict is empty."""
        return cast(tuple[Any, Any], await self.transact(lambda t: t.popitem(), timeout=timeout))

    # -- transactions -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def transaction(
        self, *, linearizable: bool = False, fence: Held | None = None, timeout: float | None = None
    ) -> AsyncIterator[Transaction[Any, Any]]:
        """Read and write several keys as one step: `async with d.transaction() as t`."""
        seconds = self.sync._seconds(timeout)
        check_fence(fence)
        if linearizable:
            await self.barrier(timeout=timeout)
        t = self._begin()
        try:
            yield t
        except Changed:
            pass  # to be told below
        except Exception as error:
            if not t.stale():
                raise
            raise conflict(t.changed) from error
        await self._commit(t, seconds, fence)

    async def transact(
        self,
        function: Callable[..., Awaitable[Any] | Any],
        *arguments: Any,
        attempts: int | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Call, or await, `function(t, *arguments)` as one transaction, and again when others changed what it read."""
        check_fence(fence)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.sync._seconds(timeout)
        for run in count(1):
            t = self._begin()
            try:
                result = function(t, *arguments)
                result = await result if inspect.isawaitable(result) else result
            except (Changed, Exception):
                if not t.stale():
                    raise
            else:
                try:
                    await self._commit(t, max(deadline - loop.time(), 0.0), fence)
                    return result
                except TransactionConflict:
                    pass
            if run == attempts or loop.time() >= deadline:
                raise conflict(t.changed)
            await asyncio.sleep(self._rng.uniform(0.0, PAUSE))
        raise AssertionError("a count has no end")

    def _begin(self) -> Transaction[Any, Any]:
        return Transaction(self._node, DEFAULT_CODEC, self._node.engine.options)

    async def _commit(self, t: Transaction[Any, Any], seconds: float, fence: Held | None) -> None:
        if t.stale():
            raise conflict(t.changed)
        prepared = t.prepared()
        if not prepared.writes:
            return
        operation, size = prepared.operation()
        found = await self._write(fenced(operation, fence), size, seconds)
        if isinstance(found, list):
            raise conflict([decode_key(key) for key in found])
        if isinstance(found, bytes):
            raise TypeError(f"the value of {brief(decode_key(found))} can't be incremented by that")

    # -- leases, locks, watches ---------------------------------------------------------------------------------------

    def lease(self, ttl: float = 10.0) -> Granting:
        """A new lease: `await d.lease()`, or `async with d.lease() as lease`, which revokes it."""
        return Granting(self._node, ttl_of(ttl), TIMEOUT)

    def lock(self, name: str, *, ttl: float = 10.0, shared: bool = False, info: str = "") -> ProgramLock:
        """A lock that one process has at a time: `async with d.lock("x") as held`."""
        return ProgramLock(self._node, self.sync._wanted(name, ttl, shared, EXCLUSIVE, info), TIMEOUT)

    def semaphore(self, name: str, permits: int, *, ttl: float = 10.0, info: str = "") -> ProgramLock:
        """A permit of a semaphore, as a lock."""
        return ProgramLock(self._node, self.sync._wanted(name, ttl, False, permits, info), TIMEOUT)

    def watch(self, key: Any = ANY, **named: Any) -> ProgramWatch:
        """Watch changes: `async for change in d.watch()`."""
        return ProgramWatch(self.sync, key, named)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.sync!r}>"

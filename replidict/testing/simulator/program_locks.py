"""Leases and locks as a simulated program has them."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from replidict.api.lease import Lease
from replidict.api.lock import Held
from replidict.errors import LockLost, LockTimeout, NotCommitted
from replidict.node.leases import Leases
from replidict.node.locks import State, Wanted
from replidict.node.node import Node
from replidict.node.proposals import result_of
from replidict.testing.simulator.bell import Bell


class ProgramLease(Lease):
    """A lease whose end is awaited."""

    async def revoke(self) -> None:  # type: ignore[override]  # it is awaited
        """End it now: its keys go, as one change."""
        bell = Bell()
        self._leases.give_back(self._held, "it was revoked", bell.ring)
        await bell.wait(self._timeout)


class Granting:
    """A lease that is asked for: await it, or enter it."""

    def __init__(self, node: Node, ttl: float, timeout: float) -> None:
        self._leases: Leases = node.leases
        self._ttl, self._timeout = ttl, timeout

    def __await__(self) -> Generator[Any, None, ProgramLease]:
        return self._grant().__await__()

    async def _grant(self) -> ProgramLease:
        bell = Bell()
        held, write = self._leases.ask(self._ttl, bell.ring)
        try:
            if not await bell.wait(self._timeout):
                raise NotCommitted(f"no majority granted a lease within {self._timeout:g} s")
            result_of(write)
        except BaseException:
            self._leases.give_back(held, "nobody waited for it")
            raise
        return ProgramLease(self._leases, held, self._timeout)

    async def __aenter__(self) -> ProgramLease:
        self._lease = await self._grant()
        return self._lease

    async def __aexit__(self, *exception: object) -> None:
        await self._lease.revoke()


class ProgramLock:
    """A lock, or a permit, that is acquired by awaiting it, or by `async with`."""

    def __init__(self, node: Node, wanted: Wanted, timeout: float) -> None:
        self._node, self._wanted, self._timeout = node, wanted, timeout
        self.held: Held | None = None
        """What is held, after `acquire`."""

    async def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for it, for `timeout` seconds at most (-1: for as long as it takes). Returns whether it was obtained."""
        seconds = None if blocking and timeout < 0 else timeout if blocking else self._timeout
        loop, locks = asyncio.get_running_loop(), self._node.locks
        deadline = None if seconds is None else loop.time() + seconds
        while True:
            bell = Bell()
            request = locks.ask(self._wanted, blocking, bell.ring)
            try:
                while request.state in (State.ASKED, State.WAITING):
                    left = None if deadline is None else max(deadline - loop.time(), 0.0)
                    if not await bell.wait(left):
                        locks.withdraw(request)
                        return False
            except BaseException:
                locks.withdraw(request)
                raise
            if request.state is State.HELD:
                self.held = Held(self._node, request)
                return True
            if request.state is State.REFUSED:
                locks.withdraw(request)
                return False
            if request.error is not None:
                raise request.error

    async def release(self) -> None:
        """Give it back. Raises `RuntimeError` if it is not held, and `LockLost` if it was lost before."""
        held, self.held = self.held, None
        if held is None:
            raise RuntimeError(f"{self._wanted.name!r} is not held here")
        bell = Bell()
        try:
            held.check()
        except LockLost:
            self._node.locks.withdraw(held._request)
            raise
        write = self._node.locks.release(held._request, bell.ring)
        if write is not None and await bell.wait(self._timeout) and write.error is None and write.result is not True:
            raise LockLost(f"{self._wanted.name!r} was lost: it is not held any more, says the log")

    def locked(self) -> bool:
        """Whether anybody holds it, as this node's copy says."""
        lock = self._node.machine.coordination.locks.by_name.get(self._wanted.name)
        return lock is not None and bool(lock.holders)

    async def __aenter__(self) -> Held:
        if not await self.acquire(timeout=self._timeout) or self.held is None:
            raise LockTimeout(f"{self._wanted.name!r} was not obtained within {self._timeout:g} s")
        return self.held

    async def __aexit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self.held is None:
            return  # the body has given it back
        try:
            await self.release()
        except LockLost:
            if kind is None:
                raise

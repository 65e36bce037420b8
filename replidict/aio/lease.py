"""A lease with coroutine methods."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self

from replidict.aio.calls import Calls
from replidict.api.lease import GrantedLease, not_granted
from replidict.errors import raise_anew
from replidict.node.held_leases import HeldLease
from replidict.node.proposals import result_of


class Lease(GrantedLease):
    """A lease whose methods that end it are coroutines; see `replidict.Lease`.

    Example:
        >>> lease = await a.lease(ttl=5)
        >>> await lease.revoke()
        >>> lease.lost.is_set()
        True
    """

    def __init__(self, calls: Calls[Any, Any], held: HeldLease) -> None:
        super().__init__(calls.inside.node.leases, held, calls.inside.timeout)
        self._calls = calls

    async def revoke(self) -> None:
        """End it now: its keys go, as one change. Does nothing if it has ended already.

        It is lost here at once. That its keys are gone is waited for, for the timeout of the dict at most. If this is
        cancelled, the lease ends all the same.
        """
        bell = self._calls.bell()
        self._leases.give_back(self._held, "it was revoked", bell.ring)
        await bell.wait(self._timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.revoke()


class Granting:
    """A lease that was requested: `await` it, or use it in `async with`, which revokes the lease at the end.

    Nothing is asked for before. If it is cancelled meanwhile, the lease is given back.
    """

    def __init__(self, calls: Calls[Any, Any], ttl: float) -> None:
        self._calls, self._ttl = calls, ttl
        self._lease: Lease | None = None

    async def _grant(self) -> Lease:
        calls, node = self._calls, self._calls.inside.node
        if node.failure is not None:
            raise_anew(node.failure)
        bell, seconds = calls.bell(), calls.inside.timeout
        held, write = node.leases.ask(self._ttl, bell.ring)
        try:
            if not await bell.wait(seconds):
                raise not_granted(seconds)
            result_of(write)
        except BaseException:
            node.leases.give_back(held, "nobody waited for it")
            raise
        return Lease(calls, held)

    def __await__(self) -> Generator[Any, Any, Lease]:
        return self._grant().__await__()

    async def __aenter__(self) -> Lease:
        self._lease = await self._grant()
        return self._lease

    async def __aexit__(self, *exception: object) -> None:
        if self._lease is not None:
            await self._lease.revoke()

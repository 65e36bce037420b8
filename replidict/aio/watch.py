"""A watch as an asynchronous iterator."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Generic, Self, TypeVar

from replidict.aio.calls import Calls
from replidict.api.watched_changes import Change, Changes, interest_in, revision_after
from replidict.call import Call
from replidict.errors import ClosedError
from replidict.node.call_arguments import seconds_of

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

AT_ONCE = 32
"""Changes that are given without letting other tasks go on: they are there, and nobody had to wait for them."""


class Watch(Generic[K, V]):
    """An asynchronous iterator over changes; see `AsyncDict.watch`. For one task; any thread may call `close`.

    A watch that nobody refers to any more ends.
    """

    def __init__(
        self,
        calls: Calls[K, V],
        key: Any,
        prefix: str | None,
        after: int | None,
        snapshot: bool,
        resync: bool,
    ) -> None:
        if snapshot and after is not None:
            raise ValueError("watch() begins with a snapshot or after= a revision, not both")
        inside = calls.inside
        (interest, self._what), revision = interest_in(key, prefix, inside.encoded), revision_after(after)
        self._node, self._bell = inside.node, calls.bell()
        self._given = 0
        self._looking: Call[None] | None = None
        self._changes: Changes[K, V] = Changes(
            self._node, inside.codec.decode, interest, revision, snapshot, resync, self._bell.ring
        )
        if self._changes.wants_state:
            self._begin_to_look()

    @property
    def revision(self) -> int:
        """All changes up to this revision were delivered, or were none of what is watched."""
        return self._changes.revision

    async def next(self, timeout: float | None = None) -> Change[K, V] | None:
        """Wait for the next change, and return it. If this is cancelled, the next call gives it.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes, 0 not at all.

        Returns:
            The change, or None if there was none in time; `revision` has then moved up to what is applied here.

        Raises:
            HistoryLost: It is further behind than this node can tell; not with `resync=True`.
            ClosedError: The watch or the dict is closed.
            StorageError: The node has stopped.
            DecodingError: A value can't be decoded on this machine; the same change is tried again by the next call.
        """
        clock = self._node.engine.clock
        deadline = None if timeout is None else clock() + seconds_of(timeout, "timeout")
        waited = False
        self._given += 1
        if self._given % AT_ONCE == 0:
            await asyncio.sleep(0)
        while True:
            change = self._changes.take()
            if change is None and self._changes.wants_state:
                await self._look()
            elif change is not None or waited:
                return change
            else:
                left = None if deadline is None else max(deadline - clock(), 0.0)
                waited = not await self._bell.wait(left)

    async def _look(self) -> None:
        """Have the state taken down. If this is cancelled, the next call waits for the same."""
        looking = self._looking or self._begin_to_look()
        while not looking.done():
            await self._bell.wait()
        self._looking = None
        looking.result()

    def _begin_to_look(self) -> Call[None]:
        self._looking = self._node.call(self._changes.look, self._bell.ring)
        return self._looking

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[K, V]:
        try:
            change = await self.next()
        except ClosedError:
            if self._changes.closed:
                raise StopAsyncIteration from None
            raise
        assert change is not None, "without a timeout there is no end to waiting"
        return change

    def close(self) -> None:
        """End it: iteration ends, also where it waits, and `next` raises `ClosedError`. Idempotent, for any thread."""
        self._changes.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        changes: Changes[K, V] | None = getattr(self, "_changes", None)  # absent if it was never opened
        if changes is not None and not changes.closed:
            changes.close()

    def __repr__(self) -> str:
        return f"<Watch of {self._what} at revision {self.revision}{', closed' if self._changes.closed else ''}>"

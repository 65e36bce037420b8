"""Watches as a simulated program has them."""

from __future__ import annotations

from typing import Any, Self

from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.watch import Change, open_watch
from replidict.errors import ClosedError
from replidict.testing.simulator.bell import Bell


class ProgramWatch:
    """An asynchronous iterator over changes."""

    def __init__(self, d: ReplicatedDict[Any, Any], key: Any, named: dict[str, Any]) -> None:
        self._bell = Bell()
        self._watch = open_watch(d, key, wake=self._bell.ring, **named)

    @property
    def revision(self) -> int:
        """All changes up to this revision were delivered, or were none of what is watched."""
        return self._watch.revision

    async def next(self, timeout: float | None = None) -> Change[Any, Any] | None:
        """Wait for the next change; None if there was none in time."""
        while (change := self._watch.next(0)) is None:
            if not await self._bell.wait(timeout):
                return self._watch.next(0)
        return change

    def close(self) -> None:
        """Watch no more."""
        self._watch.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[Any, Any]:
        try:
            change = await self.next()
        except ClosedError:
            raise StopAsyncIteration from None
        assert change is not None
        return change

    def __del__(self) -> None:
        if hasattr(self, "_watch"):
            self._watch.close()  # its process may have crashed: nobody has forgotten it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

"""`replidict.aio.open`: opens a dict without blocking the event loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

from replidict.aio.async_dict import AsyncDict
from replidict.aio.calls import in_thread
from replidict.api.replicated_dict import ReplicatedDict

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
P = ParamSpec("P")


class Opening(Generic[K, V]):
    """A dict that `async with` opens and closes."""

    def __init__(self, make: Callable[[], ReplicatedDict[K, V]]) -> None:
        self._make = make
        self._opened: list[ReplicatedDict[K, V]] = []

    async def __aenter__(self) -> AsyncDict[K, V]:
        try:
            await in_thread(lambda: self._opened.append(self._make()))
        except BaseException:
            for d in self._opened:  # it was cancelled meanwhile
                await in_thread(d.close)
            raise
        return self._opened[0].aio

    async def __aexit__(self, *exception: object) -> None:
        await self._opened[0].aio.close()


def _with_arguments_of(
    make: Callable[P, ReplicatedDict[Any, Any]],
) -> Callable[[Callable[..., Opening[Any, Any]]], Callable[P, Opening[Any, Any]]]:
    def same(function: Callable[..., Opening[Any, Any]]) -> Callable[P, Opening[Any, Any]]:
        function.__signature__ = inspect.signature(make)  # type: ignore[attr-defined]
        return function

    return same


@_with_arguments_of(ReplicatedDict)
def open(*args: Any, **arguments: Any) -> Opening[Any, Any]:
    """Open a dict for coroutines: `async with replidict.aio.open(path, ...) as a`.

    The event loop goes on meanwhile, and while the dict is closed at the end of the block. If the opening is cancelled,
    what was opened is closed again before `CancelledError` passes.

    Args:
        args: As for `ReplicatedDict`: the directory.
        arguments: As for `ReplicatedDict`.

    Returns:
        An asynchronous context manager, which gives an `AsyncDict`; `a.sync` is the `ReplicatedDict`.

    Raises:
        ValueError, StorageError, RemovedError, SecurityError, NotCommitted, OutcomeUnknown: As `ReplicatedDict` does,
            on entering.

    Example:
        >>> async with replidict.aio.open("data") as other:
        ...     await other.set("greeting", "hello")
        ...     print(other["greeting"])
        1
        hello
    """
    return Opening(lambda: ReplicatedDict(*args, **arguments))

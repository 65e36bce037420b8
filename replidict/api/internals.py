"""`Inside`: the parts of a `ReplicatedDict` that the asyncio interface uses."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from replidict.api.replicated_dict import ReplicatedDict
from replidict.machine.codec import Codec
from replidict.node.node import Node
from replidict.options import Options
from replidict.server.operations import Operations

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Inside(Generic[K, V]):
    """The parts of one dict that the asyncio interface uses."""

    def __init__(self, d: ReplicatedDict[K, V]) -> None:
        self._dict = d

    @property
    def node(self) -> Node:
        """Its node."""
        return self._dict._host.node

    @property
    def operations(self) -> Operations[K, V]:
        """The operations that it writes with."""
        return self._dict._operations

    @property
    def codec(self) -> Codec:
        """The codec of its values."""
        return self._dict._codec

    @property
    def options(self) -> Options:
        """Its options."""
        return self._dict._options

    @property
    def timeout(self) -> float:
        """The default timeout of its calls, in seconds."""
        return self._dict._timeout

    def seconds(self, timeout: float | None) -> float:
        """The timeout of a call, checked; None is the dict's. Raises `ValueError`."""
        return self._dict._seconds(timeout)

    def encoded(self, key: Any) -> bytes:
        """A key as bytes. Raises `EncodingError`."""
        return self._dict._key(key)

"""What the measuring loop asks of a system under test; one adapter each, as thin as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Value = bytes | str

Change = Callable[[list[int]], list[int]]
"""What a transaction makes of the numbers that it has read."""


class Store(Protocol):
    """A system under test, as one client sees it."""

    def set(self, key: str, value: Value) -> object:
        """Store a value; returns once it is acknowledged."""
        ...

    def get(self, key: str) -> object:
        """The cheapest read that the system has."""
        ...

    def strong_get(self, key: str) -> object:
        """A linearizable read."""
        ...

    def update(self, pairs: dict[str, Value], /) -> object:
        """Store many values in one operation."""
        ...

    def try_set(self, key: str, value: Value) -> object:
        """As `set`, with the patience that suits a client that lives through the death of a leader."""
        ...

    def barrier(self) -> object:
        """Wait until this node is level with the cluster."""
        ...

    def status(self) -> dict[str, Any]:
        """At least `is_leader` and `leader`; and what more it knows."""
        ...

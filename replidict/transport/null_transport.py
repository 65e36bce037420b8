"""The transport of a node without a network."""

from __future__ import annotations

from typing import Any

from pysyncobj.node import Node
from pysyncobj.transport import Transport
from typing_extensions import override


class NoTransport(Transport):
    """Sends nothing, receives nothing, and is never due."""

    @override
    def send(self, node: Node, message: Any) -> bool:
        return False

    def probe(self, node: Node) -> None:
        """There is nobody."""

    def tick(self, now: float) -> None:
        """Nothing is ever due."""

    def next_deadline(self) -> float:
        """Never."""
        return float("inf")

    def abandon(self) -> None:
        """Nothing is open."""

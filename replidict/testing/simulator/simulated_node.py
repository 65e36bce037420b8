"""A node without threads: functions for its thread are called at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from typing_extensions import override

from replidict.node.raft_node import RaftNode

Returned = TypeVar("Returned")


class SimulatedNode(RaftNode):
    """The node of a simulated machine: calls come between two of its steps."""

    @override
    def call_and_wait(self, function: Callable[[], Returned]) -> Returned:
        return function()

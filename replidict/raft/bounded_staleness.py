"""How a follower knows, by its own clock, how old its state is at most, without extra messages."""

from __future__ import annotations

from replidict.protocol.peer_messages import AppendEntries
from replidict.raft.state import RaftState

CLOCK_DRIFT = 0.1
"""How much faster or slower than another a node's clock may run for this, and for leases, to be right."""


class Freshness:
    """What this node knows about the age of its state."""

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self._latest: tuple[int, float] = (0, float("-inf"))

    def heard_leader(self, message: AppendEntries) -> None:
        """Note how fresh the state up to this message's commit index is.

        The leader answers with our own time stamp (`echo`), so it sent the message after that; and it knew itself
        to be the leader `age` seconds before it sent it. What was committed by then is within `commit_index`.
        """
        since = message.echo - message.age * (1 + CLOCK_DRIFT)
        if 0 < message.echo <= self._state.clock() and since > self._latest[1]:
            self._latest = (message.commit_index, since)

    @property
    def applied_as_of(self) -> float:
        """The applied state includes all that was committed then, anywhere, as far as a leader has said so."""
        index, since = self._latest
        return since if self._state.last_applied >= index else float("-inf")

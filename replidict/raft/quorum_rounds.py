"""Counts rounds of messages to all members, and which of them a majority has answered.

A member's answer to a round says that it followed this leader when the round began, or later. So once a majority has
answered a round, no other leader had been elected when it began (thesis 6.4, step 3).
"""

from __future__ import annotations

from collections import deque

from replidict.raft.progress import Peer
from replidict.raft.state import RaftState


class QuorumRounds:
    """The rounds of one kind, numbered from 1. Numbers are never reused, not even in another term."""

    def __init__(self, state: RaftState) -> None:
        self._state = state
        self._open: deque[tuple[int, float]] = deque()  # (number, when it began), not yet answered by a majority
        self._answered: dict[Peer, int] = {}  # the latest that each has answered
        self.number = 0
        """The round that began last."""
        self.began_at = float("-inf")
        """When that was, on this node's clock; not before `reset`."""
        self.confirmed = 0
        """The last round that a majority has answered."""
        self.confirmed_at = float("-inf")
        """When that began, on this node's clock; not before `reset`."""

    def reset(self) -> None:
        """A leadership begins or ends: forget all answers."""
        self._open.clear()
        self._answered.clear()
        self.began_at = self.confirmed_at = float("-inf")

    def begin(self, now: float) -> int:
        """Begin a round; its number."""
        self.number += 1
        self.began_at = now
        self._open.append((self.number, now))
        return self.number

    def answered_by(self, peer: Peer) -> int:
        """The last round that a peer has answered; 0: none since this leadership began."""
        return self._answered.get(peer, 0)

    def answer(self, peer: Peer, number: int) -> None:
        """A peer has answered a round, and with it all before. One that was never begun is not counted."""
        if self._answered.get(peer, 0) < number <= self.number:
            self._answered[peer] = number
            self.count()

    def count(self) -> None:
        """Close the rounds that a majority of the present voters has answered."""
        state = self._state
        while self._open:
            number, began = self._open[0]
            answered = {peer.address for peer in state.peers.values() if self._answered.get(peer, 0) >= number}
            if not state.members.is_majority({state.address} | answered):
                break
            self._open.popleft()
            self.confirmed, self.confirmed_at = number, began

"""Requests to the leader: each is answered by the node it was sent to, or fails with its connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from replidict.protocol.peer_messages import Message
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.state import RaftState

Answer = TypeVar("Answer")


class LeaderCalls(Generic[Answer]):
    """The pending requests of one kind, each with the `Answer` that is called with the reply."""

    def __init__(self, state: RaftState, outbox: Outbox) -> None:
        self._state, self._outbox = state, outbox
        self._number = 0
        self._waiting: dict[int, tuple[Peer, int, Answer]] = {}  # by number: who was asked, on which connection

    def ask(self, question: Callable[[int], Message], answer: Answer) -> bool:
        """Send the leader what `question` makes of a number. False: no leader could be reached, forget `answer`."""
        leader = self._state.leading_peer
        self._number += 1
        if leader is None or not self._outbox.send(leader, question(self._number)):
            return False
        self._waiting[self._number] = (leader, leader.connections, answer)
        return True

    def answered(self, peer: Peer, number: int) -> Answer | None:
        """A peer has answered: what waits for that, if it was asked this and has not answered before."""
        asked = self._waiting.get(number)
        if asked is None or asked[0] is not peer:
            return None
        del self._waiting[number]
        return asked[2]

    def take_lost(self) -> list[Answer]:
        """Return the requests that will not be answered, because their node no longer leads or their connection is
        lost."""
        if not self._waiting:
            return []
        leader = self._state.leading_peer
        lost = [
            number
            for number, (peer, connection, _) in self._waiting.items()
            if peer is not leader or connection != peer.connections or not peer.connected
        ]
        return [self._waiting.pop(number)[2] for number in lost]

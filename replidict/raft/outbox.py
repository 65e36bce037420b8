"""Sends messages to peers: at once, or when the disk has what they promise.

Rules kept here:

1. No message that tells of a state leaves before that state is on disk: such messages are held until the next commit.
2. An answer is sent on the connection that the question came by, or not at all: another process may be at the other end
   of the next connection.
3. Acknowledgements to the same leader that wait for the same commit are merged into one.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec
from pysyncobj.node import Node

from replidict.protocol.peer_messages import AppendReply, Message, SnapshotReply
from replidict.raft.progress import Peer
from replidict.raft.state import RaftState


class Network(Protocol):
    """What the engine needs of a transport. The names in mixed case are PySyncObj's."""

    def addNode(self, node: Node) -> None:
        """Let a node in, and connect with it."""

    def dropNode(self, node: Node) -> None:
        """Close the connection with a node, and refuse new ones."""

    def send(self, node: Node, message: Message) -> bool:
        """Send, or queue, a message. False: it surely does not go out."""

    def probe(self, node: Node) -> None:
        """Find out whether anybody listens at the address of a node that has closed its connection."""

    def tick(self, now: float) -> None:
        """Do what is due."""

    def next_deadline(self) -> float:
        """The clock time at which `tick` wants to run next."""

    def destroy(self) -> None:
        """Close everything; nothing is heard any more. Idempotent."""

    def abandon(self) -> None:
        """Close the descriptors of a forked child, and say nothing to anyone."""


class Outbox:
    """Sends messages at once, after the next commit to disk, or as answers."""

    def __init__(self, state: RaftState, network: Network) -> None:
        self._state, self._network = state, network
        self._held: list[tuple[Peer, Message]] = []
        self._unsent: dict[str, tuple[Peer, int, deque[Message]]] = {}  # answers, and the connection they belong to

    def send(self, peer: Peer, message: Message) -> bool:
        """Send now. Only for what tells of nothing that is not on disk. False: it surely did not go out."""
        return peer.connected and self._network.send(peer.node, message)

    def answer(self, peer: Peer, connection: int, message: Message) -> None:
        """Rule 2. While the connection's queue is full, the answer waits: the other side would not ask again."""
        if peer.connections != connection or not peer.connected:
            return
        _, of, waiting = self._unsent.get(peer.address, (peer, connection, None))
        if waiting is not None and of == connection:
            waiting.append(message)
        elif not self.send(peer, message):
            self._unsent[peer.address] = (peer, connection, deque([message]))

    def retry_answers(self) -> None:
        """Send the answers that wait for room, as far as there is some now."""
        for address, (peer, connection, waiting) in list(self._unsent.items()):
            current = peer.connections == connection and peer.connected
            while current and waiting and self.send(peer, waiting[0]):
                waiting.popleft()
            if not current or not waiting:
                del self._unsent[address]

    def hold(self, peer: Peer, message: Message) -> None:
        """Send after the next commit."""
        held = self._held
        if type(message) is AppendReply and message.success:
            for position, (other, earlier) in enumerate(held):
                if other is peer and type(earlier) is AppendReply and earlier.success and earlier.term == message.term:
                    del held[position]
                    match_index = max(message.match_index, earlier.match_index)
                    digest = message.digest or earlier.digest
                    message = msgspec.structs.replace(message, match_index=match_index, digest=digest)
                    break
        held.append((peer, message))

    def persist(self) -> None:
        """Commit what is gathered, then send what waited for it. Raises `StorageError`."""
        state = self._state
        state.store.commit(state.commit_index)
        if self._held:
            held, self._held = self._held, []
            for peer, message in held:
                if type(message) is AppendReply and message.term < state.term:
                    # A later leader has spoken since, and may have cut off what this would acknowledge.
                    message = AppendReply(state.term, False, 0, message.round)
                if type(message) is SnapshotReply:
                    self.answer(peer, peer.connections, message)
                else:
                    self.send(peer, message)  # if it is lost, the next one will do

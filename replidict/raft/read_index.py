"""How a leader knows that it still is one, without writing to the log (thesis 6.4).

Rules kept here:

1. The leader takes its commit index when a read arrives, but only once an entry of its own term is committed:
   before that it may not know of everything committed earlier (6.4, step 1).
2. It then asks everybody whether a higher term exists, in a round begun after the read arrived; when a majority has
   answered for that round, no other leader had been elected when it began (step 3). One round serves all that wait.
3. A change of term or role fails everything that waits here; who asked tries again, until its own deadline.
4. An answer goes back by the connection that the question came by, or not at all (`Engine.answer`).
5. With a lease (6.4.1) the round may be one that began earlier, if no majority can have elected another leader since:
   voters keep silent towards candidates for an election timeout after they answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from replidict.protocol.peer_messages import (
    AppendEntries,
    ConfirmLeader,
    LeaderConfirmed,
    ReadIndexReply,
    ReadIndexRequest,
)

if TYPE_CHECKING:
    from replidict.raft.engine import Engine
    from replidict.raft.progress import Peer

CLOCK_DRIFT = 0.1
"""How much faster or slower than another a node's clock may run for a lease to be safe."""

Answer = Callable[[int | None], None]
"""Called with the index to wait for, or None: not the leader (any more)."""


class ReadIndex:
    """Both sides of a read index round."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._round = 0
        self._sent_at = float("-inf")  # when the last round was sent, or sent again
        self._began: dict[int, float] = {}
        self._acked: dict[str, int] = {}
        self._new: list[Answer] = []
        self._waiting: list[tuple[int, int, Answer]] = []  # (round, read index, answer)
        self._term = 0
        self._asked: dict[int, tuple[Peer, int, Answer]] = {}  # by request id: who was asked, on which connection
        self._request_id = 0
        self._fresh: tuple[int, float] = (0, float("-inf"))
        self._confirmed_at = float("-inf")
        self.lease_until = float("-inf")
        """Until then no other leader can have been elected: a leader's reads need no round. On this node's clock."""
        self.fresh_as_of = float("-inf")
        """This node's applied state includes all that was committed then, anywhere. On this node's clock."""
        engine.on(ConfirmLeader, self._on_confirm)
        engine.on(LeaderConfirmed, self._on_confirmed)
        engine.on(ReadIndexRequest, self._on_request)
        engine.on(ReadIndexReply, self._on_reply)

    def ask(self, answer: Answer) -> None:
        """Find the index that a linearizable read which begins now must wait for. Answers now or later, once."""
        engine = self._engine
        if engine.is_leader:
            self._new.append(answer)
            return
        leader = engine.leading_peer
        self._request_id += 1
        if leader is None or not engine.send(leader, ReadIndexRequest(engine.term, self._request_id)):
            answer(None)
            return
        self._asked[self._request_id] = (leader, leader.connections, answer)

    def tick(self) -> None:
        """Begin one round for all reads that came since the last; fail those whose leader is gone."""
        engine = self._engine
        if (not engine.is_leader or engine.term != self._term) and self._waiting:
            waiting, self._waiting = self._waiting, []
            for _, _, answer in waiting:
                answer(None)
        if self._asked:
            gone = [
                number
                for number, (peer, connection, _) in self._asked.items()
                if peer is not engine.leading_peer or connection != peer.connections or not peer.connected
            ]
            for number in gone:
                self._asked.pop(number)[2](None)
        self._note_time()
        if self._waiting:
            self._answer_confirmed()  # by fewer, perhaps, than when the round began
        if self._new:
            new, self._new = self._new, []
            self._begin_round(new)
        elif self._waiting and engine.clock() >= self._sent_at + engine.options.heartbeat:
            self._send_round()  # what was sent may be lost with a connection

    def _begin_round(self, answers: list[Answer]) -> None:
        engine = self._engine
        if not engine.is_leader or engine.log.term_at(engine.commit_index) != engine.term:
            for answer in answers:  # rule 1; the floor above tries again in a moment
                answer(None)
            return
        if engine.term != self._term:
            self._term = engine.term
            self._began.clear()
            self._acked.clear()
            self._confirmed_at = float("-inf")
        index = engine.commit_index
        if engine.clock() < self.lease_until:
            for answer in answers:
                answer(index)
            return
        self._round += 1
        self._began[self._round] = engine.clock()
        self._waiting += [(self._round, index, answer) for answer in answers]
        self._send_round()

    def _send_round(self) -> None:
        engine = self._engine
        self._sent_at = engine.clock()
        message = ConfirmLeader(engine.term, self._round)
        for peer in engine.peers.values():
            if self._acked.get(peer.address, 0) < self._round:
                engine.send(peer, message)

    def _on_confirm(self, peer: Peer, message: ConfirmLeader) -> None:
        engine = self._engine
        if message.term > engine.term or (message.term == engine.term and engine.leader is None):
            engine.elections.step_down(message.term, peer.address)
        if message.term == engine.term:
            engine.elections.heard_leader()
        reply = LeaderConfirmed(engine.term, message.round)
        if engine.store.term_pending:
            engine.hold(peer, reply)  # the term it speaks of must be on disk first
        else:
            engine.send(peer, reply)

    def _on_confirmed(self, peer: Peer, message: LeaderConfirmed) -> None:
        engine = self._engine
        engine.elections.see_term(message.term)
        if not engine.is_leader or message.term != engine.term or engine.term != self._term:
            return
        if message.round > self._round:
            return  # a round that was never begun
        peer.heard_at = engine.clock()
        self._acked[peer.address] = max(self._acked.get(peer.address, 0), message.round)
        self._answer_confirmed()

    def _answer_confirmed(self) -> None:
        """Answer the reads whose round a majority has answered."""
        engine = self._engine
        while self._waiting:
            number, index, answer = self._waiting[0]
            answered = {address for address, acked in self._acked.items() if acked >= number}
            if not engine.members.is_majority({engine.address} | answered):
                break
            self._confirmed_at = self._began.get(number, self._confirmed_at)
            for earlier in [n for n in self._began if n < number]:
                del self._began[earlier]
            del self._waiting[0]
            answer(index)

    # -- for followers ----------------------------------------------------------------------------------------------

    def _on_request(self, peer: Peer, message: ReadIndexRequest) -> None:
        engine = self._engine
        term, number = engine.term, message.request_id
        if not engine.is_leader:
            engine.answer(peer, peer.connections, ReadIndexReply(term, number, None))
            return

        connection = peer.connections

        def reply(index: int | None) -> None:
            engine.answer(peer, connection, ReadIndexReply(term, number, index))
            if index is not None:
                peer.wants_commit = max(peer.wants_commit, index)

        self._new.append(reply)

    def _on_reply(self, peer: Peer, message: ReadIndexReply) -> None:
        asked = self._asked.get(message.request_id)
        if asked is not None and asked[0] is peer:
            del self._asked[message.request_id]
            asked[2](message.index)

    # -- bounded staleness --------------------------------------------------------------------------------------------

    def heard_leader(self, message: AppendEntries) -> None:
        """Follower: note how fresh the state up to this message's commit index is, on this node's own clock.

        The leader answers with our own time stamp (`echo`), so it sent the message after that; and it knew itself
        to be the leader `age` seconds before it sent it. What was committed by then is within `commit_index`.
        """
        since = message.echo - message.age * (1 + CLOCK_DRIFT)
        if 0 < message.echo <= self._engine.clock() and since > self._fresh[1]:
            self._fresh = (message.commit_index, since)

    def _note_time(self) -> None:
        """Work out `lease_until` and `fresh_as_of`, which other threads read at any time."""
        engine = self._engine
        self.lease_until = float("-inf")
        if not engine.is_leader:
            index, since = self._fresh
            self.fresh_as_of = since if engine.last_applied >= index else float("-inf")
        elif engine.log.term_at(engine.commit_index) != engine.term or engine.last_applied < engine.commit_index:
            self.fresh_as_of = float("-inf")
        elif engine.members.voters == {engine.address}:
            self.lease_until = self.fresh_as_of = float("inf")
        else:
            confirmed = self._confirmed_at if engine.term == self._term else float("-inf")
            self.fresh_as_of = max(confirmed, engine.replication.leader_since)
            if engine.options.lease_reads and engine.transfer.lease_ended_in != engine.term:
                self.lease_until = self.fresh_as_of + engine.options.election_timeout * (1 - CLOCK_DRIFT)

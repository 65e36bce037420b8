"""How a leader confirms that it still leads, without writing to the log (thesis 6.4).

Rules kept here:

1. The leader takes its commit index when a read arrives, but only once an entry of its own term is committed:
   before that it may not know of everything committed earlier (6.4, step 1).
2. It then asks all members whether there is a higher term, in a round begun after the read arrived; when a majority has
   answered that round, no other leader had been elected when it began (step 3). One round serves all waiting reads.
3. A change of term or role fails all waiting reads; they are tried again, until their own deadlines.
4. An answer is sent on the connection that the question came by, or not at all (`Outbox.answer`).
5. With a lease (6.4.1) the round may be one that began earlier, if no majority can have elected another leader since:
   voters ignore candidates for an election timeout after they answered.
"""

from __future__ import annotations

from collections.abc import Callable

from replidict.protocol.peer_messages import (
    ConfirmLeader,
    LeaderConfirmed,
    ReadIndexReply,
    ReadIndexRequest,
)
from replidict.raft.bounded_staleness import CLOCK_DRIFT, Freshness
from replidict.raft.elections import Elections
from replidict.raft.leader_calls import LeaderCalls
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.quorum_rounds import QuorumRounds
from replidict.raft.replication import Replication
from replidict.raft.state import RaftState

Answer = Callable[[int | None], None]
"""Called with the index to wait for, or None: not the leader (any more)."""


class ReadIndex:
    """Both sides of a read index round."""

    def __init__(
        self, state: RaftState, outbox: Outbox, elections: Elections, replication: Replication, freshness: Freshness
    ) -> None:
        self._state, self._outbox, self._elections = state, outbox, elections
        self._replication, self._freshness = replication, freshness
        self._rounds = QuorumRounds(state)
        self._term = 0  # that the rounds belong to
        self._sent_at = float("-inf")  # when the last round was sent, or sent again
        self._new: list[Answer] = []
        self._waiting: list[tuple[int, int, Answer]] = []  # (round, read index, answer)
        self._calls: LeaderCalls[Answer] = LeaderCalls(state, outbox)
        self._lease_ended_in = 0  # the last term in which a follower was told to stand
        self.lease_until = float("-inf")
        """Until then no other leader can have been elected: a leader's reads need no round. On this node's clock."""
        self.fresh_as_of = float("-inf")
        """This node's applied state includes all that was committed then, anywhere. On this node's clock."""

    def ask(self, answer: Answer) -> None:
        """Find the index that a linearizable read which begins now must wait for. Answers now or later, once."""
        term = self._state.term
        if self._state.is_leader:
            self._new.append(answer)
        elif not self._calls.ask(lambda number: ReadIndexRequest(term, number), answer):
            answer(None)

    @property
    def waiting(self) -> bool:
        """Whether a read waits for a majority to confirm this leader."""
        return bool(self._waiting or self._new)

    def tick(self) -> None:
        """Begin one round for all reads that came since the last; fail those whose leader is gone."""
        state = self._state
        if (not state.is_leader or state.term != self._term) and self._waiting:
            waiting, self._waiting = self._waiting, []
            for _, _, answer in waiting:
                answer(None)
        for answer in self._calls.take_lost():
            answer(None)
        self.note_time()
        if self._waiting:
            self._rounds.count()  # by fewer, perhaps, than when the round began
            self._answer_confirmed()
        if self._new:
            new, self._new = self._new, []
            self._begin_round(new)
        elif self._waiting and state.clock() >= self._sent_at + state.options.heartbeat:
            self._send_round()  # what was sent may be lost with a connection

    def _begin_round(self, answers: list[Answer]) -> None:
        state = self._state
        if not state.is_leader or not state.committed_in_term:
            for answer in answers:  # rule 1; the floor above tries again in a moment
                answer(None)
            return
        if state.term != self._term:
            self._term = state.term
            self._rounds.reset()
        index = state.commit_index
        if state.clock() < self.lease_until:
            for answer in answers:
                answer(index)
            return
        number = self._rounds.begin(state.clock())
        self._waiting += [(number, index, answer) for answer in answers]
        self._send_round()

    def _send_round(self) -> None:
        state = self._state
        self._sent_at = state.clock()
        message = ConfirmLeader(state.term, self._rounds.number)
        for peer in state.peers.values():
            if self._rounds.answered_by(peer) < self._rounds.number:
                self._outbox.send(peer, message)

    def on_confirm_leader(self, peer: Peer, message: ConfirmLeader) -> None:
        """Answer a leader that asks whether a higher term exists (rule 2)."""
        state = self._state
        if message.term > state.term or (message.term == state.term and state.leader is None):
            self._elections.step_down(message.term, peer.address)
        if message.term == state.term:
            self._elections.heard_leader()
        reply = LeaderConfirmed(state.term, message.round)
        if state.store.term_pending:
            self._outbox.hold(peer, reply)  # the term it speaks of must be on disk first
        else:
            self._outbox.send(peer, reply)

    def on_leader_confirmed(self, peer: Peer, message: LeaderConfirmed) -> None:
        """Leader: a round is answered."""
        state = self._state
        self._elections.see_term(message.term)
        if not state.is_leader or message.term != state.term or state.term != self._term:
            return
        if message.round > self._rounds.number:
            return  # a round that was never begun
        peer.heard_at = state.clock()
        self._rounds.answer(peer, message.round)
        self._answer_confirmed()

    def _answer_confirmed(self) -> None:
        """Answer the reads whose round a majority has answered."""
        while self._waiting and self._waiting[0][0] <= self._rounds.confirmed:
            _, index, answer = self._waiting.pop(0)
            answer(index)

    # -- for followers ----------------------------------------------------------------------------------------------

    def on_read_index_request(self, peer: Peer, message: ReadIndexRequest) -> None:
        """A follower asks for a read index."""
        state = self._state
        term, number = state.term, message.request_id
        if not state.is_leader:
            self._outbox.answer(peer, peer.connections, ReadIndexReply(term, number, None))
            return

        connection = peer.connections

        def reply(index: int | None) -> None:
            self._outbox.answer(peer, connection, ReadIndexReply(term, number, index))
            if index is not None:
                peer.wants_commit = max(peer.wants_commit, index)

        self._new.append(reply)

    def on_read_index_reply(self, peer: Peer, message: ReadIndexReply) -> None:
        """The leader has answered with an index, or says that it leads no longer."""
        answer = self._calls.answered(peer, message.request_id)
        if answer is not None:
            answer(message.index)

    # -- leases and bounded staleness --------------------------------------------------------------------------------

    def end_lease(self) -> None:
        """Leader: read without a lease for the rest of this term, as a follower is told to stand (thesis 6.4.1)."""
        self._lease_ended_in = self._state.term
        self.lease_until = float("-inf")

    def note_time(self) -> None:
        """Work out `lease_until` and `fresh_as_of`, which other threads read at any time."""
        state = self._state
        self.lease_until = float("-inf")
        if not state.is_leader:
            self.fresh_as_of = self._freshness.applied_as_of
        elif not state.committed_in_term or state.last_applied < state.commit_index:
            self.fresh_as_of = float("-inf")
        elif state.members.voters == {state.address}:
            self.lease_until = self.fresh_as_of = float("inf")
        else:
            confirmed = self._rounds.confirmed_at if state.term == self._term else float("-inf")
            self.fresh_as_of = max(confirmed, self._replication.rounds.confirmed_at)
            if state.options.lease_reads and self._lease_ended_in != state.term:
                self.lease_until = self.fresh_as_of + state.options.election_timeout * (1 - CLOCK_DRIFT)

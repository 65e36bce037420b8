"""Guards of elections, and of the reads that rely on them."""

from __future__ import annotations

from typing import Any
from unittest import mock

from replidict.node import linearizable_reads
from replidict.protocol.peer_messages import AppendEntries, ConfirmLeader, VoteReply
from replidict.raft import bounded_staleness, elections, leader_death, outbox, progress, read_index, replication
from replidict.raft.role import Role
from replidict.storage import log
from tests.simulator import failover_scenarios, scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("5.4.1", 25)
def vote_for_complete_logs_only() -> Replacements:
    """A node leads that lacks committed entries."""

    def may_vote(self: elections.Elections, candidate: progress.Peer, message: Any, asked: int) -> bool:
        state = self._state
        return (
            asked > state.term if message.pre else asked == state.term and state.voted_for in (None, candidate.address)
        )

    yield elections.Elections, "_may_vote", may_vote


@guard("5.2", 25)
def one_vote_a_term() -> Replacements:
    """A node votes twice in a term: two lead it."""

    def may_vote(self: elections.Elections, candidate: progress.Peer, message: Any, asked: int) -> bool:
        state = self._state
        if (message.last_term, message.last_index) < (state.log.last_term, state.log.last_index):
            return False
        return asked > state.term if message.pre else asked == state.term

    yield elections.Elections, "_may_vote", may_vote


@guard("E12", 25)
def votes_of_this_election_only() -> Replacements:
    """A vote for another term, or a mere promise to vote, counts as a vote."""

    def on_vote_reply(self: elections.Elections, sender: progress.Peer, message: VoteReply) -> None:
        self.see_term(message.term)
        if message.granted and self._state.role is not Role.LEADER:
            self._votes.add(sender.address)
            self._count()

    yield elections.Elections, "on_vote_reply", on_vote_reply


@guard("E12", scenario=scenarios.a_voter_counts_once, nodes=5)
def count_voters() -> Replacements:
    """A vote that is heard twice counts twice."""

    def on_vote_reply(self: elections.Elections, sender: progress.Peer, message: VoteReply) -> None:
        state = self._state
        if message.granted and state.role is Role.CANDIDATE and message.asked == state.term and not message.pre:
            heard = getattr(self, "_heard", 1) + 1
            self._heard = heard  # type: ignore[attr-defined]
            if heard * 2 > len(state.members.voters):
                self._lead()

    yield elections.Elections, "on_vote_reply", on_vote_reply


@guard("E12, thesis 9.6", scenario=scenarios.a_node_that_returns_disturbs_nobody)
def ask_before_standing() -> Replacements:
    """A node that was cut off raises its term all the time, and deposes the leader when it is back."""

    def ask(self: elections.Elections, *, pre: bool, transfer: bool = False) -> None:
        if pre:
            self._stand(transfer=False)
        else:
            original(self, pre=pre, transfer=transfer)

    original = elections.Elections._ask
    yield elections.Elections, "_ask", ask


@guard("E9, thesis 6.2", scenario=scenarios.a_leader_without_a_majority_steps_down)
def step_down_without_a_majority() -> Replacements:
    """A deposed leader believes for long that it leads."""

    def tick(self: elections.Elections) -> None:
        if not self._state.is_leader:
            original(self)

    original = elections.Elections.tick
    yield elections.Elections, "tick", tick


@guard("E12, thesis 6.4.1", scenario=scenarios.a_voter_is_true_to_its_leader)
def silence_towards_candidates() -> Replacements:
    """Voters elect another leader while the present one holds a lease."""

    def leader_is_alive(self: elections.Elections) -> bool:
        return False

    yield elections.Elections, "leader_is_alive", leader_is_alive


@guard("thesis 6.4.1", scenario=scenarios.a_voter_is_true_after_a_restart)
def silence_after_a_restart() -> Replacements:
    """A node forgets, by restarting, that it promised a leader its silence."""

    def init(self: elections.Elections, *arguments: Any) -> None:
        original(self, *arguments)
        self._heard_leader_at = float("-inf")

    original = elections.Elections.__init__
    yield elections.Elections, "__init__", init


@guard("fig. 2, all servers", 25)
def follow_higher_terms() -> Replacements:
    """A node does not take over a higher term: it can't vote, and a deposed leader goes on."""

    def see_term(self: elections.Elections, term: int) -> None:
        pass

    yield elections.Elections, "see_term", see_term


@guard("thesis 6.4, step 3", scenario=scenarios.a_deposed_leader_serves_no_read)
def a_round_for_each_read() -> Replacements:
    """A deposed leader that does not know it yet answers a linearizable read."""

    def begin_round(self: read_index.ReadIndex, answers: list[read_index.Answer]) -> None:
        state = self._state
        known = state.is_leader and state.committed_in_term
        for answer in answers:
            answer(state.commit_index if known else None)

    yield read_index.ReadIndex, "_begin_round", begin_round


@guard("thesis 6.4, step 1", scenario=scenarios.a_new_leader_serves_no_read_yet)
def read_after_an_entry_of_the_own_term() -> Replacements:
    """A new leader, which does not know yet what is committed, answers a linearizable read."""

    def begin_round(self: read_index.ReadIndex, answers: list[read_index.Answer]) -> None:
        state = self._state
        if not state.is_leader or state.committed_in_term:
            original(self, answers)
            return
        if state.term != self._term:
            self._term = state.term
            self._rounds.reset()
        number = self._rounds.begin(state.clock())
        self._waiting += [(number, state.commit_index, answer) for answer in answers]
        for other in state.peers.values():
            self._outbox.send(other, ConfirmLeader(state.term, number))

    original = read_index.ReadIndex._begin_round
    yield read_index.ReadIndex, "_begin_round", begin_round


@guard("thesis 6.4, step 4", 50)
def wait_for_the_read_index() -> Replacements:
    """A read is served before this node has applied what it must see."""

    def release(self: linearizable_reads.Reads) -> None:
        while self._waiting:
            for read in self._waiting.pop(0)[2]:
                read.done()

    yield linearizable_reads.Reads, "release", release


@guard("thesis 6.4.1", 200)
def a_lease_shorter_than_the_silence() -> Replacements:
    """A lease outlives the time for which voters keep silent."""
    yield bounded_staleness, "CLOCK_DRIFT", -1.0
    yield read_index, "CLOCK_DRIFT", -1.0


@guard("thesis 6.4.1", scenario=scenarios.a_lease_ends_with_a_transfer)
def no_lease_after_a_transfer() -> Replacements:
    """A leader that asked another one to stand still reads under its lease."""

    def end_lease(self: read_index.ReadIndex) -> None:
        pass

    yield read_index.ReadIndex, "end_lease", end_lease


@guard("promise 3", scenario=scenarios.an_answer_meets_a_full_queue)
def answers_wait_for_their_queue() -> Replacements:
    """The answer to a follower's read is dropped where much else is under way: the read waits for ever (found: S7)."""

    def answer(self: outbox.Outbox, receiver: progress.Peer, connection: int, message: Any) -> None:
        if receiver.connections == connection:
            self.send(receiver, message)

    yield outbox.Outbox, "answer", answer


@guard("bounded staleness", 25)
def fresh_by_own_term_only() -> Replacements:
    """A new leader tells followers that they are up to date, before it knows what is committed (found: S1)."""

    def send(self: replication.Replication, receiver: progress.Peer, *arguments: Any) -> bool:
        term = self._state.term

        def term_at(held: log.Log, index: int) -> int:
            return term

        with mock.patch.object(log.Log, "term_at", term_at):
            return original(self, receiver, *arguments)

    original = replication.Replication._send
    yield replication.Replication, "_send", send


@guard("bounded staleness", 50)
def forget_the_clock_of_a_last_life() -> Replacements:
    """A node whose clock began anew with its machine believes itself fresh, by what is said of its old clock."""

    def reconnected(self: progress.Peer) -> None:
        stamp = getattr(self, "stamp", 0.0)
        original(self)
        self.stamp = stamp

    def heard_leader(self: bounded_staleness.Freshness, message: AppendEntries) -> None:
        since = message.echo - message.age * (1 + bounded_staleness.CLOCK_DRIFT)
        if message.echo > 0 and since > self._latest[1]:
            self._latest = (message.commit_index, since)

    original = progress.Peer.reconnected
    yield progress.Peer, "reconnected", reconnected
    yield bounded_staleness.Freshness, "heard_leader", heard_leader


@guard("bounded staleness", 25)
def fresh_when_applied() -> Replacements:
    """A node believes itself fresh though it has not applied yet what it knows to be committed (found: S2)."""

    def note_time(self: read_index.ReadIndex) -> None:
        state = self._state
        applied, state.last_applied = state.last_applied, 1 << 60
        try:
            original(self)
        finally:
            state.last_applied = applied

    original = read_index.ReadIndex.note_time
    yield read_index.ReadIndex, "note_time", note_time


@guard("failover", scenario=failover_scenarios.a_killed_leader_is_replaced_at_once)
def evidence_that_the_leader_died() -> Replacements:
    """The followers of a leader that was killed wait for its election timeout to pass."""

    def on_closed(self: leader_death.LeaderDeath, peer: progress.Peer, may_hold_lease: bool) -> None:
        pass

    yield leader_death.LeaderDeath, "on_closed", on_closed


@guard("thesis 4.2.3", scenario=failover_scenarios.a_leader_that_loses_its_connections_leads_on)
def a_refusal_beside_the_end_of_a_connection() -> Replacements:
    """A leader is deposed because its connections were closed, though it lives."""

    def on_closed(self: leader_death.LeaderDeath, peer: progress.Peer, may_hold_lease: bool) -> None:
        if peer.address == self._state.leader:
            self._elections.leader_died()

    yield leader_death.LeaderDeath, "on_closed", on_closed


@guard("thesis 4.2.3", scenario=failover_scenarios.who_alone_is_refused_disturbs_nobody)
def a_voter_believes_its_own_eyes() -> Replacements:
    """A voter that hears its leader believes a candidate that the leader has died."""

    def on_request_vote(self: elections.Elections, sender: progress.Peer, message: Any) -> None:
        if message.pre:
            self._heard_leader_at = float("-inf")
        original(self, sender, message)

    original = elections.Elections.on_request_vote
    yield elections.Elections, "on_request_vote", on_request_vote


@guard("thesis 6.4.1", scenario=failover_scenarios.a_leader_with_a_lease_seems_to_have_ended)
def no_evidence_against_a_lease() -> Replacements:
    """Voters that saw a leader's connections refused elect another one while it holds a lease."""

    def on_closed(self: leader_death.LeaderDeath, peer: progress.Peer, may_hold_lease: bool) -> None:
        original(self, peer, False)

    original = leader_death.LeaderDeath.on_closed
    yield leader_death.LeaderDeath, "on_closed", on_closed

"""Elections and votes (Raft 5.2, 5.4.1), with pre-votes and leader stickiness (thesis 4.2.3, 6.2, 9.6).

Rules kept here:

1. A vote is on disk before it is sent, and a node's vote for itself before it asks others: one vote a term.
2. Only a candidate whose log is at least as up to date as the voter's gets its vote (5.4.1).
3. Votes are counted by voter and term, among the members of the configuration in force. A voter that an uncommitted
   change lets go may stand all the same: the others may need its log (4.2.2, figure 4.6). Its own vote does not count.
4. Before it raises its term, a node asks whether it could win (pre-vote, 9.6): one that was paused or cut off
   comes back without disturbing a healthy leader.
5. A node that heard from a leader within the election timeout answers no candidate, unless that leader itself
   asked for the election (4.2.3). A node that has just started counts as having heard from one: before it went
   down it may have promised a leader its silence (6.4.1, leases). One that has seen the leader's process end (see
   `leader_death`) owes it no silence, and asks after a short wait, drawn so that two seldom ask at once.
6. A leader that has not heard from a majority for an election timeout steps down (6.2).
7. A node that was told that its cluster goes on elsewhere may have to abstain (see `superseded`).
"""

from __future__ import annotations

from collections.abc import Callable

from replidict.errors import StorageError
from replidict.logging_thread import Logger
from replidict.machine import commands as cmd
from replidict.protocol.peer_messages import RequestVote, TimeoutNow, VoteReply
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.replicated_log import ReplicatedLog
from replidict.raft.role import Role
from replidict.raft.state import RaftState

logger = Logger(__name__)


class Elections:
    """The part of the engine that decides on leadership, and the only one that changes role, term and vote."""

    def __init__(
        self, state: RaftState, outbox: Outbox, log: ReplicatedLog, on_role_change: Callable[[Role, Role], None]
    ) -> None:
        """`on_role_change` is told of each change of role, when it has been made: from which one, and to which."""
        self._state, self._outbox, self._log = state, outbox, log
        self._on_role_change = on_role_change
        self._votes: set[str] = set()
        self._asking_before: int | None = None  # the term a pre-vote is under way for
        self._heard_leader_at = state.clock() if self._has_others() else float("-inf")
        self._led_at: float | None = None
        self._abstain_until = float("-inf")
        self._hurried_until = float("-inf")
        self._deadline = 0.0
        self._put_off()
        if not self._has_others():
            self._deadline = state.clock()

    def _has_others(self) -> bool:
        return self._state.members.voters != {self._state.address}

    @property
    def _hurried(self) -> bool:
        """Whether the leader is known to be dead, and its election timeout is not over: without a leader, waits are
        short. Where the next election takes longer than that, they are as long as ever, or it would never end."""
        return self._state.clock() < self._hurried_until

    def _put_off(self) -> None:
        state = self._state
        wait = state.options.heartbeat if self._hurried else state.options.election_timeout
        self._deadline = state.clock() + wait * (1 + state.rng.random())

    def _become(self, role: Role, term: int, leader: str | None, voted_for: str | None = None) -> None:
        """Take a role in a term. A vote belongs to one term only; the term and the vote go out with the next commit."""
        state = self._state
        before = (state.role, state.term, state.leader)
        if term != state.term or voted_for is not None:
            state.term, state.voted_for = term, voted_for
            state.store.set_vote(term, voted_for)
        state.role, state.leader = role, leader
        if (role, term, leader) != before:
            logger.debug("%s: %s of term %d, leader %s", state.address, role.value, term, leader)
        if role is not before[0]:
            self._on_role_change(before[0], role)

    def follow(self, peer: Peer, term: int) -> None:
        """Entries or a snapshot came from the leader of a term, at least the present one (figure 2, candidates).

        Raises `StorageError` where that can't be.
        """
        state = self._state
        if state.is_leader and term == state.term:
            raise StorageError(
                f"{state.store.name}: {peer.address} leads term {term}, and so does this node: one of the two has "
                "lost its vote; this node stops"
            )
        if state.term != term or state.leader != peer.address or state.role is not Role.FOLLOWER:
            self.step_down(term, peer.address)
        self.heard_leader()

    def heard_leader(self) -> None:
        """A message of the current term's leader came in."""
        self._heard_leader_at = self._led_at = self._state.clock()
        self._asking_before = None
        self._hurried_until = float("-inf")
        self._put_off()

    def leader_died(self) -> None:
        """This node has seen that the process which led has ended: it is silent for nobody's sake (rule 5)."""
        state = self._state
        now = state.clock()
        logger.info("%s: the process of %s, which led term %d, has ended", state.address, state.leader, state.term)
        self.step_down(state.term)
        self._heard_leader_at = float("-inf")
        self._hurried_until = now + state.options.election_timeout
        self._deadline = now + state.options.heartbeat / 2 * state.rng.random()

    def next_deadline(self) -> float:
        """When `tick` wants to run next."""
        if self._state.is_leader:
            return self._state.clock() + self._state.options.heartbeat
        return self._deadline

    def tick(self) -> None:
        """Start an election that is due, or give up a leadership without a majority."""
        state = self._state
        now = state.clock()
        if state.is_leader:
            self._led_at = now
            since = now - state.options.election_timeout
            heard = {peer.address for peer in state.peers.values() if peer.heard_at > since}
            if not state.members.is_majority({state.address} | heard):
                logger.warning("%s: no majority answers: no longer the leader of term %d", state.address, state.term)
                self.step_down(state.term)
        elif now >= self._deadline:
            # Asking costs nobody anything, so it is repeated soon: the others may have heard the leader a bit later.
            self._deadline = now + state.options.heartbeat * (1 + state.rng.random())
            if state.leader is not None:
                self.step_down(state.term)  # whoever led is silent: nobody is to wait for it
            if self.abstains:
                return
            if state.address in state.members.voters | state.committed_members.voters:
                if self._has_others():
                    self._ask(pre=True)
                else:
                    self._stand(transfer=False)

    def step_down(self, term: int, leader: str | None = None) -> None:
        """Be a follower in this term, which is at least the present one."""
        self._become(Role.FOLLOWER, term, leader)
        self._asking_before = None

    def see_term(self, term: int) -> None:
        """Figure 2, rules for all servers: a higher term ends whatever this node was."""
        if term > self._state.term:
            self.step_down(term)

    # -- standing ---------------------------------------------------------------------------------------------------

    def _ask(self, *, pre: bool, transfer: bool = False) -> None:
        state = self._state
        self._votes = {state.address}
        self._asking_before = state.term + 1 if pre else None
        log = state.log
        request = RequestVote(state.term, log.last_index, log.last_term, pre, transfer)
        for address in sorted(state.members.voters - {state.address}):
            self._outbox.send(state.peers[address], request)

    def _stand(self, *, transfer: bool) -> None:
        state = self._state
        self._become(Role.CANDIDATE, state.term + 1, None, voted_for=state.address)
        self._outbox.persist()  # rule 1
        self._put_off()
        self._ask(pre=False, transfer=transfer)
        self._count()

    def _count(self) -> None:
        state = self._state
        if not state.members.is_majority(self._votes):
            return
        if self._asking_before is not None:
            self._stand(transfer=False)
        else:
            self._lead()

    def _lead(self) -> None:
        state = self._state
        self._become(Role.LEADER, state.term, state.address)
        logger.info("%s: leader of term %d", state.address, state.term)
        self._log.append(cmd.NO_OP)  # Raft 8: only an entry of its own term tells a leader what is committed

    def on_vote_reply(self, peer: Peer, message: VoteReply) -> None:
        """Candidate: count a vote, or what a voter would do (rules 3 and 4)."""
        state = self._state
        self.see_term(message.term)
        if message.pre:
            counts = self._asking_before == message.asked == state.term + 1 and state.role is not Role.LEADER
        else:
            counts = state.role is Role.CANDIDATE and self._asking_before is None and message.asked == state.term
        if counts and message.granted:
            self._votes.add(peer.address)
            self._count()

    # -- voting -----------------------------------------------------------------------------------------------------

    def on_request_vote(self, peer: Peer, message: RequestVote) -> None:
        """Figure 2, RequestVote."""
        state = self._state
        asked = message.term + 1 if message.pre else message.term
        if not message.transfer and (self.leader_is_alive() or self.abstains):
            granted = False  # rules 5 and 7; the candidate's term is not taken over
        else:
            if not message.pre:
                self.see_term(message.term)
            granted = self._may_vote(peer, message, asked)
            if granted and not message.pre:
                self._become(state.role, state.term, state.leader, voted_for=peer.address)
            if granted and (not message.pre or self._hurried):
                self._put_off()  # also for who is about to stand: two that stand at once split the votes
        self._outbox.hold(peer, VoteReply(state.term, granted, message.pre, asked))

    def leader_is_alive(self) -> bool:
        """Whether this node leads, or has heard from the leader within an election timeout."""
        state = self._state
        return state.is_leader or state.clock() - self._heard_leader_at < state.options.election_timeout

    @property
    def led_at(self) -> float | None:
        """When this node last led or heard from a leader, since it started; None: never."""
        return self._state.clock() if self._state.is_leader else self._led_at

    def abstain(self, until: float) -> None:
        """Rule 7: neither stand nor vote before `until`, on this node's clock, unless there was a leader."""
        self._abstain_until = until

    @property
    def abstains(self) -> bool:
        """Rule 7: whether this node may neither stand nor vote for the time being."""
        return self.led_at is None and self._state.clock() < self._abstain_until

    def _may_vote(self, peer: Peer, message: RequestVote, asked: int) -> bool:
        state = self._state
        log = state.log
        if (message.last_term, message.last_index) < (log.last_term, log.last_index):
            return False  # rule 2
        if message.pre:
            return asked > state.term
        return asked == state.term and state.voted_for in (None, peer.address)

    def on_timeout_now(self, peer: Peer, message: TimeoutNow) -> None:
        """The leader asks this node to stand (thesis 3.10)."""
        state = self._state
        if message.term == state.term and peer.address == state.leader and state.address in state.members.voters:
            self._stand(transfer=True)

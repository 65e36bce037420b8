"""Who leads (Raft 5.2, 5.4.1) and good manners in finding out (thesis 4.2.3, 6.2, 9.6).

Rules kept here:

1. A vote is on disk before it is sent, and a node's vote for itself before it asks others: one vote a term.
2. Only a candidate whose log is at least as up to date as the voter's gets its vote (5.4.1).
3. Votes are counted by voter and term, among the members of the configuration in force. A voter that an uncommitted
   change lets go may stand all the same: the others may need its log (4.2.2, figure 4.6). Its own vote does not count.
4. Before it raises its term, a node asks whether it could win (pre-vote, 9.6): one that was paused or cut off
   comes back without disturbing a healthy leader.
5. A node that heard from a leader within the election timeout answers no candidate, unless that leader itself
   asked for the election (4.2.3). A node that has just started counts as having heard from one: before it went
   down it may have promised a leader its silence (6.4.1, leases).
6. A leader that has not heard from a majority for an election timeout steps down (6.2).
7. A node that was told that its cluster goes on elsewhere may have to abstain (see `succession`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replidict.errors import StorageError
from replidict.log_writer import Logger
from replidict.machine import commands as cmd
from replidict.protocol.peer_messages import RequestVote, TimeoutNow, VoteReply
from replidict.raft.role import Role

if TYPE_CHECKING:
    from replidict.raft.engine import Engine
    from replidict.raft.progress import Peer

logger = Logger(__name__)


class Elections:
    """The part of the engine that decides on leadership."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._votes: set[str] = set()
        self._asking_before: int | None = None  # the term a pre-vote is under way for
        self._heard_leader_at = engine.clock() if self._has_others() else float("-inf")
        self._led_at: float | None = None
        self._deadline = 0.0
        self._put_off()
        if not self._has_others():
            self._deadline = engine.clock()
        engine.on(RequestVote, self._on_request)
        engine.on(VoteReply, self._on_reply)
        engine.on(TimeoutNow, self._on_timeout_now)

    def _has_others(self) -> bool:
        return self._engine.members.voters != {self._engine.address}

    def _put_off(self) -> None:
        timeout = self._engine.options.election_timeout
        self._deadline = self._engine.clock() + timeout * (1 + self._engine.rng.random())

    def follow(self, peer: Peer, term: int) -> None:
        """Entries or a snapshot came from the leader of a term, at least the present one (figure 2, candidates).

        Raises `StorageError` where that can't be.
        """
        engine = self._engine
        if engine.is_leader and term == engine.term:
            raise StorageError(
                f"{engine.store.name}: {peer.address} leads term {term}, and so does this node: one of the two has "
                "lost its vote; this node stops"
            )
        if engine.term != term or engine.leader != peer.address or engine.role is not Role.FOLLOWER:
            self.step_down(term, peer.address)
        self.heard_leader()

    def heard_leader(self) -> None:
        """A message of the current term's leader came in."""
        self._heard_leader_at = self._led_at = self._engine.clock()
        self._asking_before = None
        self._put_off()

    def next_deadline(self) -> float:
        """When `tick` wants to run next."""
        if self._engine.is_leader:
            return self._engine.clock() + self._engine.options.heartbeat
        return self._deadline

    def tick(self) -> None:
        """Start an election that is due, or give up a leadership without a majority."""
        engine = self._engine
        now = engine.clock()
        if engine.is_leader:
            self._led_at = now
            since = now - engine.options.election_timeout
            heard = {peer.address for peer in engine.peers.values() if peer.heard_at > since}
            if not engine.members.is_majority({engine.address} | heard):
                logger.warning("%s: no majority answers: no longer the leader of term %d", engine.address, engine.term)
                self.step_down(engine.term)
        elif now >= self._deadline:
            # Asking costs nobody anything, so it is repeated soon: the others may have heard the leader a bit later.
            self._deadline = now + engine.options.heartbeat * (1 + engine.rng.random())
            if engine.leader is not None:
                self.step_down(engine.term)  # whoever led is silent: nobody is to wait for it
            if engine.succession.abstains:
                return
            if engine.address in engine.members.voters | engine.committed_members.voters:
                if self._has_others():
                    self._ask(pre=True)
                else:
                    self._stand(transfer=False)

    def step_down(self, term: int, leader: str | None = None) -> None:
        """Be a follower in this term, which is at least the present one."""
        self._engine.become(Role.FOLLOWER, term, leader)
        self._asking_before = None

    def see_term(self, term: int) -> None:
        """Figure 2, rules for all servers: a higher term ends whatever this node was."""
        if term > self._engine.term:
            self.step_down(term)

    # -- standing ---------------------------------------------------------------------------------------------------

    def _ask(self, *, pre: bool, transfer: bool = False) -> None:
        engine = self._engine
        self._votes = {engine.address}
        self._asking_before = engine.term + 1 if pre else None
        log = engine.log
        request = RequestVote(engine.term, log.last_index, log.last_term, pre, transfer)
        for address in sorted(engine.members.voters - {engine.address}):
            engine.send(engine.peers[address], request)

    def _stand(self, *, transfer: bool) -> None:
        engine = self._engine
        engine.become(Role.CANDIDATE, engine.term + 1, None, voted_for=engine.address)
        engine.persist()  # rule 1
        self._put_off()
        self._ask(pre=False, transfer=transfer)
        self._count()

    def _count(self) -> None:
        engine = self._engine
        if not engine.members.is_majority(self._votes):
            return
        if self._asking_before is not None:
            self._stand(transfer=False)
        else:
            self._lead()

    def _lead(self) -> None:
        engine = self._engine
        engine.become(Role.LEADER, engine.term, engine.address)
        logger.info("%s: leader of term %d", engine.address, engine.term)
        engine.replication.start_leading()
        engine.append(cmd.NO_OP)  # Raft 8: only an entry of its own term tells a leader what is committed

    def _on_reply(self, peer: Peer, message: VoteReply) -> None:
        engine = self._engine
        self.see_term(message.term)
        if message.pre:
            counts = self._asking_before == message.asked == engine.term + 1 and engine.role is not Role.LEADER
        else:
            counts = engine.role is Role.CANDIDATE and self._asking_before is None and message.asked == engine.term
        if counts and message.granted:
            self._votes.add(peer.address)
            self._count()

    # -- voting -----------------------------------------------------------------------------------------------------

    def _on_request(self, peer: Peer, message: RequestVote) -> None:
        engine = self._engine
        asked = message.term + 1 if message.pre else message.term
        if not message.transfer and (self.leader_is_alive() or engine.succession.abstains):
            granted = False  # rules 5 and 7; the candidate's term is not taken over
        else:
            if not message.pre:
                self.see_term(message.term)
            granted = self._may_vote(peer, message, asked)
            if granted and not message.pre:
                engine.become(engine.role, engine.term, engine.leader, voted_for=peer.address)
                self._put_off()
        engine.hold(peer, VoteReply(engine.term, granted, message.pre, asked))

    def leader_is_alive(self) -> bool:
        """Whether this node leads, or has heard who does within an election timeout."""
        engine = self._engine
        return engine.is_leader or engine.clock() - self._heard_leader_at < engine.options.election_timeout

    @property
    def led_at(self) -> float | None:
        """When this node last led, or heard who does, since it started; None: never."""
        return self._engine.clock() if self._engine.is_leader else self._led_at

    def _may_vote(self, peer: Peer, message: RequestVote, asked: int) -> bool:
        engine = self._engine
        log = engine.log
        if (message.last_term, message.last_index) < (log.last_term, log.last_index):
            return False  # rule 2
        if message.pre:
            return asked > engine.term
        return asked == engine.term and engine.voted_for in (None, peer.address)

    def _on_timeout_now(self, peer: Peer, message: TimeoutNow) -> None:
        engine = self._engine
        if message.term == engine.term and peer.address == engine.leader and engine.address in engine.members.voters:
            self._stand(transfer=True)

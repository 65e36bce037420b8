"""Adds and removes members, one at a time (thesis, chapter 4).

Rules kept here:

1. One change at a time: the next configuration is appended once the last one is committed, and once an entry of the
   leader's own term is (4.1, and the correction of July 2015 to it). So any two configurations in force at once differ
   by one voter, and their majorities overlap.
2. A node is added as a learner, which does not count; the leader promotes it to voter when it has caught up (4.2.1).
3. The leader does not remove itself: it transfers leadership, and its successor removes it (4.2.2).
4. A change that would leave no majority within reach is refused, unless it is forced: it is in force at once, so
   nothing can be committed then until the missing voters are back.
5. Every answer is one of: `done` (committed), `later` (surely not done: ask again), `lost` (may be done), `absent` (not
   a member) or `never`. Asking again after `lost` is safe, because a change that is already made is `done`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from replidict.errors import ReplidictError
from replidict.logging_thread import Logger
from replidict.machine import commands as cmd
from replidict.protocol.peer_messages import (
    WHY_MAX,
    AddMember,
    Change,
    ChangeReply,
    ChangeRequest,
    DigestAt,
    MembersReply,
    MembersRequest,
    RemoveMember,
    TransferTo,
    Verdict,
)
from replidict.raft.configuration import MemberSet
from replidict.raft.divergence import Divergence
from replidict.raft.leader_calls import LeaderCalls
from replidict.raft.leadership_transfer import LeadershipTransfer
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.replicated_log import ReplicatedLog
from replidict.raft.replication import Replication
from replidict.raft.state import RaftState
from replidict.security import is_same, split_address

logger = Logger(__name__)

MAX_PROMOTION_LAG = 256
"""A learner so many entries behind what is committed, or fewer, is level."""

Answer = Callable[[Verdict, str], None]


class MemberProgress(NamedTuple):
    """The last index known to be on a member's disk, seconds since its last answer, and its digest, if it told one."""

    match_index: int
    last_contact: float
    digest: DigestAt | None


Progress = dict[str, MemberProgress]
"""By address."""
ProgressAnswer = Callable[[Progress | None], None]


class Reconfiguration:
    """The part of the engine that changes the members, or the leader."""

    def __init__(
        self,
        state: RaftState,
        outbox: Outbox,
        log: ReplicatedLog,
        replication: Replication,
        transfer: LeadershipTransfer,
        divergence: Divergence,
    ) -> None:
        self._state, self._outbox, self._log = state, outbox, log
        self._replication, self._transfer, self._divergence = replication, transfer, divergence
        self._calls: LeaderCalls[Answer] = LeaderCalls(state, outbox)
        self._progress_calls: LeaderCalls[ProgressAnswer] = LeaderCalls(state, outbox)
        self._waiting: list[tuple[int, int, Answer]] = []  # (index, term, answer), in the log and not yet committed
        self._handing_over: list[tuple[int, bool, Answer]] = []  # (term, whether to whom matters, answer)

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(self, change: Change, answer: Answer) -> None:
        """Have the leader make a change. Answers now or later, once."""
        term = self._state.term
        if self._state.is_leader:
            self._make(change, answer)
        elif not self._calls.ask(lambda number: ChangeRequest(term, number, change), answer):
            answer("later", "no leader could be reached")

    def ask_progress(self, answer: ProgressAnswer) -> None:
        """How far everybody is, as the leader sees it; None if there is none to ask. Answers now or later, once."""
        term = self._state.term
        if self._state.is_leader:
            answer(self._progress())
        elif not self._progress_calls.ask(lambda number: MembersRequest(term, number), answer):
            answer(None)

    def _progress(self) -> Progress:
        state, now = self._state, self._state.clock()
        progress = {
            peer.address: MemberProgress(peer.match_index, max(0.0, now - peer.heard_at), peer.digest)
            for peer in state.peers.values()
        }
        progress[state.address] = MemberProgress(state.log.durable_index, 0.0, self._divergence.latest)
        return progress

    def on_change_reply(self, peer: Peer, message: ChangeReply) -> None:
        """The leader has decided."""
        answer = self._calls.answered(peer, message.request_id)
        if answer is not None:
            answer(message.verdict, message.why)

    def on_members_reply(self, peer: Peer, message: MembersReply) -> None:
        """The leader says how far everybody is."""
        answer = self._progress_calls.answered(peer, message.request_id)
        if answer is not None:
            known = message.progress
            answer(
                None
                if known is None
                else {who: MemberProgress(*each, message.digests.get(who)) for who, each in known.items()}
            )

    # -- the leader ---------------------------------------------------------------------------------------------------

    def on_change_request(self, peer: Peer, message: ChangeRequest) -> None:
        """A member asks for a change."""
        state = self._state
        connection = peer.connections

        def reply(verdict: Verdict, why: str) -> None:
            self._outbox.answer(peer, connection, ChangeReply(state.term, message.request_id, verdict, why[:WHY_MAX]))

        if state.is_leader:
            self._make(message.change, reply)
        else:
            reply("later", f"{state.address} is not the leader any more")

    def on_members_request(self, peer: Peer, message: MembersRequest) -> None:
        """A member asks for the progress of all members."""
        state = self._state
        known = self._progress() if state.is_leader else None
        progress = None if known is None else {who: each[:2] for who, each in known.items()}
        digests = {who: each.digest for who, each in (known or {}).items() if each.digest is not None}
        self._outbox.answer(peer, peer.connections, MembersReply(state.term, message.request_id, progress, digests))

    def _make(self, change: Change, answer: Answer) -> None:
        state = self._state
        if (why := self._not_now()) is not None:
            answer("later", why)
        elif isinstance(change, TransferTo):
            self._hand_over(change, answer)
        else:
            wanted = self._added(change) if isinstance(change, AddMember) else self._removed(change)
            if isinstance(wanted, MemberSet):
                self._waiting.append((self._append(wanted), state.term, answer))
            else:
                answer(*wanted)

    def _not_now(self) -> str | None:
        """Rule 1."""
        state = self._state
        if self._transfer.active:
            return "the leader is handing over"
        if not state.committed_in_term:
            return "the leader has only just been elected"
        if state.members.index > state.last_applied:  # so that whoever was removed is forgotten
            return "another change of the members is under way"
        return None

    def _append(self, wanted: MemberSet) -> int:
        """Put a configuration into the log, with the identities that this node knows; returns the index."""
        state = self._state
        identity = state.store.identity
        known = {**state.store.pins, identity.address: identity.node_id, **wanted.node_ids}
        node_ids = {address: known[address] for address in sorted(wanted.all) if address in known}
        self._log.append(cmd.encode(replace(wanted, node_ids=node_ids).configuration()))
        return state.log.last_index

    def _added(self, change: AddMember) -> MemberSet | tuple[Verdict, str]:
        members, address = self._state.members, change.address
        try:
            split_address(address)
        except ReplidictError as error:
            return "never", str(error)
        same = None if address in members.all else next((m for m in sorted(members.all) if is_same(m, address)), None)
        if same is not None:
            return "never", f"{address} is the member {same}, spelled in another way: go by {same} everywhere"
        node_ids = dict(members.node_ids)
        if change.node_id is not None:
            known = node_ids.get(address) or self._state.store.pins.get(address)
            if address in members.all and known not in (None, change.node_id):
                return "never", (
                    f"{address} is a member already, with another disk than this node's: remove it from the cluster "
                    "first, then let it join anew"
                )
            if address in members.voters and known is None:  # it may have voted, with a disk that is lost
                return "never", (
                    f"{address} is a founding member, and nobody knows whether this node was it: start it as the other "
                    "founders were, with peers=, or remove it from the cluster first, then let it join anew"
                )
            node_ids[address] = change.node_id
        if address in members.voters and not change.voter:
            return "never", f"{address} is a voter: remove it first, then let it join with voter=False"
        learners, readers = members.learners, members.readers - {address}
        if address not in members.voters:
            learners |= {address}
            readers |= set() if change.voter else {address}
        wanted = replace(members, learners=learners, readers=readers, node_ids=node_ids)
        return ("done", "") if wanted == members else wanted

    def _removed(self, change: RemoveMember) -> MemberSet | tuple[Verdict, str]:
        state, members, address = self._state, self._state.members, change.address
        if address not in members.all:
            return "absent", f"{address} is no member; the members are {', '.join(sorted(members.all))}"
        if members.voters == {address}:
            return "never", f"{address} is the only voter: a cluster without one could do nothing any more"
        if address == state.address:
            if not self._transfer.begin():
                return "later", f"{address} leads, and no other voter is connected to hand over to"
            return "later", f"{address} leads, and is handing over first"
        left = members.voters - {address}
        if not change.force and address in members.voters and (missing := self._missing(left)):
            return "later", (
                f"without {address} there would be no majority: {', '.join(missing)} can't be reached, out of the "
                f"{len(left)} voters that would be left; start them again, or remove those first that are lost "
                "(forced, everything would stand still until they are back)"
            )
        node_ids = {other: node_id for other, node_id in members.node_ids.items() if other != address}
        return replace(
            members, voters=left, learners=members.learners - {address}, readers=members.readers - {address},
            node_ids=node_ids,
        )  # fmt: skip

    def _missing(self, voters: frozenset[str]) -> list[str]:
        """Rule 4: which of these are out of reach, if the rest is no majority of them."""
        state = self._state
        rounds = self._replication.rounds
        since = state.clock() - state.options.election_timeout
        near = {
            peer.address
            for peer in state.peers.values()
            if peer.connected
            and peer.heard_at > since
            and rounds.answered_by(peer)  # a new leader has heard nobody yet
        }
        near.add(state.address)
        return [] if replace(state.members, voters=voters).is_majority(near) else sorted(voters - near)

    def _hand_over(self, change: TransferTo, answer: Answer) -> None:
        state, address = self._state, change.address
        if address == state.address:
            answer("done", "")
        elif address is not None and address not in state.members.voters:
            answer("never", f"{address} is no voter; the voters are {', '.join(sorted(state.members.voters))}")
        elif address is None and state.members.voters == {state.address}:
            answer("never", f"{state.address} is the only voter: there is nobody to hand over to")
        elif not self._transfer.begin(address):
            answer("later", f"no connection to {address or 'any other voter'}")
        else:
            self._handing_over.append((state.term, address is not None, answer))

    # -- as time goes by ----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Promote learners that have caught up, and fail requests to a leader that is gone."""
        for answer in self._calls.take_lost():
            answer("lost", "the leader was lost")
        for answer_progress in self._progress_calls.take_lost():
            answer_progress(None)
        if self._state.is_leader and self._state.members.promotable:
            self._promote()

    def _promote(self) -> None:
        state, members = self._state, self._state.members
        since = state.clock() - state.options.election_timeout
        for address in sorted(members.promotable):
            peer = state.peers.get(address)
            if peer is None or not peer.connected or peer.heard_at <= since or peer.snapshot_sending is not None:
                continue
            voters = members.voters | {address}
            if (
                peer.match_index + MAX_PROMOTION_LAG >= state.commit_index
                and peer.match_index
                and not self._missing(voters)
            ):
                if self._not_now() is None:
                    logger.info("%s: %s is level, and becomes a voter", state.address, address)
                    self._append(replace(members, voters=voters, learners=members.learners - {address}))
                return

    def settle(self) -> None:
        """Answer what has been decided."""
        state = self._state
        while self._waiting:
            index, term, answer = self._waiting[0]
            if state.commit_index >= index:
                verdict: Verdict = "done" if state.log.term_at(index) in (term, None) else "later"
            elif state.is_leader and state.term == term:
                break
            else:
                verdict = "lost"
            del self._waiting[0]
            answer(verdict, "" if verdict == "done" else "the leader lost its office")
        if self._handing_over and not (state.is_leader and self._transfer.active):
            ended, self._handing_over = self._handing_over, []
            for term, to_whom_matters, answer in ended:
                if state.is_leader and state.term == term:
                    answer("later", "the one that was to take over did not do so in time")
                else:
                    answer(*(("later", "somebody else took over") if to_whom_matters else ("done", "")))

"""How the cluster grows, shrinks and changes hands (thesis chapter 4 and 3.10).

Rules kept here:

1. One change at a time: the next configuration joins the log once the last one is committed, and once an entry of the
   leader's own term is (4.1, and the correction of July 2015 to it). So any two configurations in force at once differ
   by one voter, and their majorities overlap.
2. A node comes in as a learner, which counts for nothing; the leader makes it a voter when its log is level (4.2.1).
3. The leader does not remove itself: it hands over, and its successor does (4.2.2).
4. No change is made that would leave no majority within reach, unless it is forced: it is in force at once, so nothing
   can be committed then until the missing are back.
5. Every answer is one of: `done` (committed), `later` (surely not done: ask again), `lost` (may be done), `absent` (it
   is no member) or `never`. To ask again after `lost` is safe, because what is so already is `done`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from replidict.errors import ReplidictError
from replidict.log_writer import Logger
from replidict.machine import commands as cmd
from replidict.protocol.peer_messages import (
    WHY_MAX,
    AddMember,
    Change,
    ChangeReply,
    ChangeRequest,
    MembersReply,
    MembersRequest,
    RemoveMember,
    TransferTo,
    Verdict,
)
from replidict.raft.configuration import Members
from replidict.security import is_same, split_address

if TYPE_CHECKING:
    from replidict.raft.engine import Engine
    from replidict.raft.progress import Peer

logger = Logger(__name__)

LEVEL = 256
"""A learner so many entries behind what is committed, or fewer, is level."""

Answer = Callable[[Verdict, str], None]
Progress = dict[str, tuple[int, float]]
"""By address: the last index known to be on that member's disk, and seconds since its last answer."""
ProgressAnswer = Callable[[Progress | None], None]


class Changes:
    """The part of the engine that changes the members, or the leader."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._request_id = 0
        self._asked: dict[int, tuple[Peer, int, Answer]] = {}  # by request: who was asked, on which connection
        self._asked_progress: dict[int, tuple[Peer, int, ProgressAnswer]] = {}
        self._waiting: list[tuple[int, int, Answer]] = []  # (index, term, answer), in the log and not yet committed
        self._handing_over: list[tuple[int, bool, Answer]] = []  # (term, whether to whom matters, answer)
        engine.on(ChangeRequest, self._on_request)
        engine.on(ChangeReply, self._on_reply)
        engine.on(MembersRequest, self._on_members_request)
        engine.on(MembersReply, self._on_members_reply)

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask(self, change: Change, answer: Answer) -> None:
        """Have the leader make a change. Answers now or later, once."""
        engine = self._engine
        if engine.is_leader:
            self._make(change, answer)
            return
        leader = engine.leading_peer
        self._request_id += 1
        if leader is None or not engine.send(leader, ChangeRequest(engine.term, self._request_id, change)):
            answer("later", "no leader could be reached")
            return
        self._asked[self._request_id] = (leader, leader.connections, answer)

    def ask_progress(self, answer: ProgressAnswer) -> None:
        """How far everybody is, as the leader sees it; None if there is none to ask. Answers now or later, once."""
        engine = self._engine
        if engine.is_leader:
            answer(self._progress())
            return
        leader = engine.leading_peer
        self._request_id += 1
        if leader is None or not engine.send(leader, MembersRequest(engine.term, self._request_id)):
            answer(None)
            return
        self._asked_progress[self._request_id] = (leader, leader.connections, answer)

    def _progress(self) -> Progress:
        engine, now = self._engine, self._engine.clock()
        progress = {peer.address: (peer.match_index, max(0.0, now - peer.heard_at)) for peer in engine.peers.values()}
        progress[engine.address] = (engine.log.durable_index, 0.0)
        return progress

    def _on_reply(self, peer: Peer, message: ChangeReply) -> None:
        asked = self._asked.get(message.request_id)
        if asked is not None and asked[0] is peer:
            del self._asked[message.request_id]
            asked[2](message.verdict, message.why)

    def _on_members_reply(self, peer: Peer, message: MembersReply) -> None:
        asked = self._asked_progress.get(message.request_id)
        if asked is not None and asked[0] is peer:
            del self._asked_progress[message.request_id]
            asked[2](message.progress)

    # -- the leader ---------------------------------------------------------------------------------------------------

    def _on_request(self, peer: Peer, message: ChangeRequest) -> None:
        engine = self._engine
        connection = peer.connections

        def reply(verdict: Verdict, why: str) -> None:
            engine.answer(peer, connection, ChangeReply(engine.term, message.request_id, verdict, why[:WHY_MAX]))

        if engine.is_leader:
            self._make(message.change, reply)
        else:
            reply("later", f"{engine.address} is not the leader any more")

    def _on_members_request(self, peer: Peer, message: MembersRequest) -> None:
        engine = self._engine
        progress = self._progress() if engine.is_leader else None
        engine.answer(peer, peer.connections, MembersReply(engine.term, message.request_id, progress))

    def _make(self, change: Change, answer: Answer) -> None:
        engine = self._engine
        if (why := self._not_now()) is not None:
            answer("later", why)
        elif isinstance(change, TransferTo):
            self._hand_over(change, answer)
        else:
            wanted = self._added(change) if isinstance(change, AddMember) else self._removed(change)
            if isinstance(wanted, Members):
                self._waiting.append((self._append(wanted), engine.term, answer))
            else:
                answer(*wanted)

    def _not_now(self) -> str | None:
        """Rule 1."""
        engine = self._engine
        if engine.transfer.active:
            return "the leader is handing over"
        if engine.log.term_at(engine.commit_index) != engine.term:
            return "the leader has only just been elected"
        if engine.members.index > engine.last_applied:  # so that whoever was removed is forgotten
            return "another change of the members is under way"
        return None

    def _append(self, wanted: Members) -> int:
        """Put a configuration into the log, with the identities that this node knows; returns the index."""
        engine = self._engine
        identity = engine.store.identity
        known = {**engine.store.pins, identity.address: identity.node_id, **wanted.node_ids}
        node_ids = {address: known[address] for address in sorted(wanted.all) if address in known}
        engine.append(cmd.encode(replace(wanted, node_ids=node_ids).configuration()))
        return engine.log.last_index

    def _added(self, change: AddMember) -> Members | tuple[Verdict, str]:
        members, address = self._engine.members, change.address
        try:
            split_address(address)
        except ReplidictError as error:
            return "never", str(error)
        same = None if address in members.all else next((m for m in sorted(members.all) if is_same(m, address)), None)
        if same is not None:
            return "never", f"{address} is the member {same}, spelled in another way: go by {same} everywhere"
        node_ids = dict(members.node_ids)
        if change.node_id is not None:
            known = node_ids.get(address) or self._engine.store.pins.get(address)
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

    def _removed(self, change: RemoveMember) -> Members | tuple[Verdict, str]:
        engine, members, address = self._engine, self._engine.members, change.address
        if address not in members.all:
            return "absent", f"{address} is no member; the members are {', '.join(sorted(members.all))}"
        if members.voters == {address}:
            return "never", f"{address} is the only voter: a cluster without one could do nothing any more"
        if address == engine.address:
            if not engine.transfer.begin():
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
        """Rule 4: who of these is out of reach, if that leaves no majority of them."""
        engine = self._engine
        since = engine.clock() - engine.options.election_timeout
        near = {
            peer.address
            for peer in engine.peers.values()
            if peer.connected and peer.heard_at > since and peer.round_acked  # a new leader has heard nobody yet
        }
        near.add(engine.address)
        return [] if replace(engine.members, voters=voters).is_majority(near) else sorted(voters - near)

    def _hand_over(self, change: TransferTo, answer: Answer) -> None:
        engine, address = self._engine, change.address
        if address == engine.address:
            answer("done", "")
        elif address is not None and address not in engine.members.voters:
            answer("never", f"{address} is no voter; the voters are {', '.join(sorted(engine.members.voters))}")
        elif address is None and engine.members.voters == {engine.address}:
            answer("never", f"{engine.address} is the only voter: there is nobody to hand over to")
        elif not engine.transfer.begin(address):
            answer("later", f"no connection to {address or 'any other voter'}")
        else:
            self._handing_over.append((engine.term, address is not None, answer))

    # -- as time goes by ----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Make voters of the learners that are level, and tell those who asked a leader that is gone."""
        for asked, lost in ((self._asked, ("lost", "the leader was lost")), (self._asked_progress, (None,))):
            for number in [n for n, (peer, connection, _) in asked.items() if self._is_gone(peer, connection)]:
                asked.pop(number)[2](*lost)
        if self._engine.is_leader and self._engine.members.learners != self._engine.members.readers:
            self._promote()

    def _is_gone(self, peer: Peer, connection: int) -> bool:
        return peer is not self._engine.leading_peer or connection != peer.connections or not peer.connected

    def _promote(self) -> None:
        engine, members = self._engine, self._engine.members
        since = engine.clock() - engine.options.election_timeout
        for address in sorted(members.learners - members.readers):
            peer = engine.peers.get(address)
            if peer is None or not peer.connected or peer.heard_at <= since or peer.snapshot_sending is not None:
                continue
            voters = members.voters | {address}
            if peer.match_index + LEVEL >= engine.commit_index and peer.match_index and not self._missing(voters):
                if self._not_now() is None:
                    logger.info("%s: %s is level, and becomes a voter", engine.address, address)
                    self._append(replace(members, voters=voters, learners=members.learners - {address}))
                return

    def settle(self) -> None:
        """Answer what has been decided."""
        engine = self._engine
        while self._waiting:
            index, term, answer = self._waiting[0]
            if engine.commit_index >= index:
                verdict: Verdict = "done" if engine.log.term_at(index) in (term, None) else "later"
            elif engine.is_leader and engine.term == term:
                break
            else:
                verdict = "lost"
            del self._waiting[0]
            answer(verdict, "" if verdict == "done" else "the leader lost its office")
        if self._handing_over and not (engine.is_leader and engine.transfer.active):
            ended, self._handing_over = self._handing_over, []
            for term, to_whom_matters, answer in ended:
                if engine.is_leader and engine.term == term:
                    answer("later", "the one that was to take over did not do so in time")
                else:
                    answer(*(("later", "somebody else took over") if to_whom_matters else ("done", "")))

"""`Engine`: one Raft node, composed of its parts, and the only module that knows PySyncObj's private names.

Each rule of Raft stands in a module of its own. What they share is below them, and they know nothing of the engine:

    state                what a node knows (figure 2, "State"): data only
    outbox               sends messages: at once, when the disk has them, or as answers
    replicated_log       appends and truncates entries, and applies the configurations among them

    elections            elections and votes
    leader_death         how a follower knows that the process which led has ended
    install_snapshot     how a follower catches up that needs entries the leader has discarded
    replication          how the log reaches the followers, and when it is committed
    read_index           how a leader confirms that it still leads
    leadership_transfer  how leadership is handed over
    reconfiguration      how the members change
    divergence           how the members find out that the state of one of them differs
    superseded           how a node behaves when its cluster was recovered elsewhere

Rules kept here, for all of them:

1. One step is: timers, what the floors above want, sending, one commit, then the answers that waited for that
   commit, then what became committed is applied. Nothing that tells of a state leaves before that state is on disk.
   Where nothing but entries has come and gone since the last step, `replicate` alone is one, without the timers.
2. A message with a higher term makes this node a follower of that term first (figure 2, rules for all servers);
   who handles the message says so, because a vote request need not be believed (thesis 4.2.3).
3. What can't be written, or contradicts what Raft guarantees, ends the node. It is never worked around.

Of PySyncObj run its constructor, which makes the poller and calls for the transport, its `Node`, and its `Transport`
interface, by which connections and messages get here. Its own Raft state stays as the constructor makes it, and its
tick, message handler, journal, snapshots and commands never run: docs/design.md says why. This is the one module that
knows its private names.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.poller import Poller
from typing_extensions import override

from replidict.background import Background
from replidict.errors import StorageError, removed
from replidict.log_throttle import LogThrottle
from replidict.machine.changes import Changes
from replidict.machine.outcomes import Outcome
from replidict.machine.state_machine import StateMachine
from replidict.options import Options
from replidict.protocol import peer_messages as msg
from replidict.raft.append_entries import Follower
from replidict.raft.bounded_staleness import Freshness
from replidict.raft.configuration import Configurations, MemberSet
from replidict.raft.divergence import Divergence
from replidict.raft.elections import Elections
from replidict.raft.forwarding import Forwarding
from replidict.raft.install_snapshot import InstallSnapshot
from replidict.raft.leader_death import LeaderDeath
from replidict.raft.leadership_transfer import LeadershipTransfer
from replidict.raft.outbox import Network, Outbox
from replidict.raft.progress import Peer
from replidict.raft.read_index import ReadIndex
from replidict.raft.reconfiguration import Reconfiguration
from replidict.raft.replicated_log import ReplicatedLog
from replidict.raft.replication import Replication
from replidict.raft.role import LEADER, Role
from replidict.raft.state import RaftState
from replidict.raft.superseded import Superseded
from replidict.release import Release
from replidict.storage import records
from replidict.storage.store import Store

APPLY_AT_ONCE = 512
"""Entries applied in one step at most, so that a long backlog does not keep the node from its heartbeats."""

APPLY_BYTES = 4 * 1024 * 1024
"""And no more than so many bytes, or one entry that is larger."""

_PLAIN = (msg.CommitTo, msg.Propose)
"""Messages that leave nothing to do but to replicate; see also `_is_plain`."""

Received = TypeVar("Received")
MakeTransport = Callable[["Engine", Node, set[Node]], Network]
"""Gets the engine, this node, and an empty set; what it makes is a PySyncObj `Transport`, too."""


class Engine(SyncObj):
    """One Raft node: stepped from outside, by a thread or a simulator, and never from two threads at once."""

    def __init__(
        self,
        *,
        store: Store,
        machine: StateMachine,
        transport: MakeTransport,
        options: Options,
        clock: Callable[[], float],
        rng: random.Random,
        background: Background,
        snapshot_directory: Path,
    ) -> None:
        """Take over a loaded store and state machine."""
        self.state = state = RaftState(store, options, clock, rng)
        self.machine = machine
        self.store, self.log, self.peers = state.store, state.log, state.peers
        self.address, self.clock, self.rng = state.address, state.clock, state.rng
        self.on_outcome: Callable[[Outcome], None] = lambda outcome: None
        self.on_snapshot_installed: Callable[[], None] = lambda: None
        self.on_step: Callable[[], None] = lambda: None
        self.on_changes: Callable[[Changes], None] = lambda changes: None
        self.meet: Callable[[str, Release], str | None] = lambda address, release: None  # see `node.feature_level`
        self.stirred = True
        """Whether something has happened since the last step that may leave anything to do."""
        self.advanced = True
        """Whether something has happened since the last step that leaves something to `replicate`."""
        self.log_throttle = LogThrottle(state.address)
        super().__init__(Node(state.address), [], SyncObjConf(autoTick=False), transportClass=transport)
        self.transport = cast(Network, self._SyncObj__transport)  # SyncObj made it, of `transport`
        self.outbox = outbox = Outbox(state, self.transport)
        self.replicated_log = log = ReplicatedLog(state, self.transport)
        freshness = Freshness(state)
        self.elections = Elections(state, outbox, log, self._on_role_change)
        self.leader_death = LeaderDeath(state, self.elections, self.transport)
        self.snapshots = InstallSnapshot(
            state,
            outbox,
            self.elections,
            self.log_throttle,
            self._restart_from_snapshot,
            background,
            snapshot_directory,
        )
        self.divergence = Divergence(state, self.log_throttle, snapshot_directory, machine.digest)
        self.replication = Replication(state, outbox, self.elections, self.snapshots, self.divergence)
        self.follower = Follower(state, outbox, log, self.elections, freshness, self.divergence)
        self.read_index = ReadIndex(state, outbox, self.elections, self.replication, freshness)
        self.transfer = LeadershipTransfer(state, outbox, log, self.read_index)
        self.reconfiguration = Reconfiguration(state, outbox, log, self.replication, self.transfer, self.divergence)
        self.forwarding = Forwarding(state, outbox, self.elections, self.log_throttle, self.propose)
        self.superseded = Superseded(state, self.elections, self.log_throttle, snapshot_directory)
        self._handlers: dict[type, Callable[[Peer, Any], None]] = {}
        self._handle_messages()
        log.follow_configuration()

    def _handle_messages(self) -> None:
        self.on(msg.RequestVote, self.elections.on_request_vote)
        self.on(msg.VoteReply, self.elections.on_vote_reply)
        self.on(msg.TimeoutNow, self.elections.on_timeout_now)
        self.on(msg.AppendEntries, self.follower.on_append_entries)
        self.on(msg.AppendReply, self.replication.on_append_reply)
        self.on(msg.CommitTo, self.follower.on_commit_to)
        self.on(msg.SnapshotPiece, self.snapshots.on_snapshot_piece)
        self.on(msg.SnapshotReply, self.snapshots.on_snapshot_reply)
        self.on(msg.ConfirmLeader, self.read_index.on_confirm_leader)
        self.on(msg.LeaderConfirmed, self.read_index.on_leader_confirmed)
        self.on(msg.Propose, self.forwarding.on_propose)
        self.on(msg.ProposeRefused, self.forwarding.on_refused)
        self.on(msg.ReadIndexRequest, self.read_index.on_read_index_request)
        self.on(msg.ReadIndexReply, self.read_index.on_read_index_reply)
        self.on(msg.ChangeRequest, self.reconfiguration.on_change_request)
        self.on(msg.ChangeReply, self.reconfiguration.on_change_reply)
        self.on(msg.MembersRequest, self.reconfiguration.on_members_request)
        self.on(msg.MembersReply, self.reconfiguration.on_members_reply)
        self.on(msg.MembersAre, lambda peer, message: self.hear_of_members(message))

    def _on_role_change(self, before: Role, role: Role) -> None:
        if role is LEADER:
            self.replication.start_leading()
        elif before is LEADER:
            self.replication.stop_leading()
            self.snapshots.stop_sending()

    # -- the state, as the floors above see it ------------------------------------------------------------------------

    @property
    def options(self) -> Options:
        """The options that the node was opened with."""
        return self.state.options

    @property
    def term(self) -> int:
        """Figure 2, `currentTerm`."""
        return self.state.term

    @property
    def role(self) -> Role:
        """Follower, candidate or leader."""
        return self.state.role

    @property
    def is_leader(self) -> bool:
        """Whether this node is the leader of its term, as far as it knows."""
        return self.state.role is LEADER

    @property
    def leader(self) -> str | None:
        """Address of the leader of the current term, if known."""
        return self.state.leader

    @property
    def leading_peer(self) -> Peer | None:
        """The leader of the current term, if it is known and is another member."""
        return self.state.leading_peer

    @property
    def commit_index(self) -> int:
        """Figure 2, `commitIndex`."""
        return self.state.commit_index

    @property
    def last_applied(self) -> int:
        """Figure 2, `lastApplied`."""
        return self.state.last_applied

    @property
    def members(self) -> MemberSet:
        """The configuration in force."""
        return self.state.configurations.current

    # -- what drives it ---------------------------------------------------------------------------------------------

    @override
    def _onTick(self, timeToWait: float = 0.0) -> None:
        """Have `doTick` step this engine: wait up to `timeToWait` seconds for messages, then take one step."""
        self.poll(timeToWait)
        self.step()

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for messages and handle those that came."""
        self._poller.poll(timeout)

    @property
    def poller(self) -> Poller:
        """PySyncObj's poller, used by the transport and by the pipe that wakes this node."""
        return self._poller

    def step(self) -> None:
        """Rule 1. Raises `StorageError` when the node can't go on."""
        self.stirred = False
        self.outbox.retry_answers()
        self.transport.tick(self.clock())
        self.elections.tick()
        self.snapshots.tick()
        self.transfer.tick()
        self.reconfiguration.tick()
        self.on_step()
        self.read_index.tick()
        self.divergence.tick()
        self.replicate()
        self.reconfiguration.settle()
        self.log_throttle.tick(self.clock())

    def replicate(self) -> None:
        """The part of a step by which entries get into the logs, and out of them. Raises `StorageError`."""
        self.advanced = False
        self.replication.send()
        self.outbox.persist()
        self.replication.advance_commit_index()
        self.apply()
        self.replication.send_commit_index()

    @property
    def pending(self) -> bool:
        """Whether there is something to `replicate` now."""
        return self.advanced or self.state.last_applied < self.state.commit_index or self.store.pending

    def timers_due(self) -> float:
        """The clock time at which a whole step is due; it may be later than what this said after the last one."""
        return min(self.elections.next_deadline(), self.replication.next_heartbeat())

    def apply(self) -> None:
        """Figure 2, rules for all servers: apply what is committed, or the first part of it."""
        state, divergence = self.state, self.divergence
        last = min(state.commit_index, state.last_applied + APPLY_AT_ONCE)
        if divergence.wanted is not None and state.last_applied < divergence.wanted <= last:
            self._apply_to(divergence.wanted)
            if state.last_applied < divergence.wanted:
                return
            divergence.reached()
        if state.last_applied < last:
            self._apply_to(last)

    def _apply_to(self, last: int) -> None:
        """Apply the entries up to `last`, or as many of them as one step may."""
        state, machine = self.state, self.machine
        index = state.last_applied
        entries = state.log.entries_from(index + 1, APPLY_BYTES)[: last - index]
        for entry in entries:
            outcome = machine.apply(entry.index, entry.command)
            index = state.last_applied = entry.index
            if outcome is not None:
                self.on_outcome(outcome)
        members = state.configurations.applied(index)
        changes = machine.take_changes()
        self.store.record(entries[-1].term, changes, None if members is None else members.stored())
        self.read_index.note_time()
        self.on_changes(changes)
        if members is not None:
            self.stirred = True
            self._settle_membership(members)

    def _restart_from_snapshot(self) -> None:
        """The store holds a snapshot just installed: become what it says (figure 13, rules 6 to 8)."""
        state, store = self.state, self.store
        store.load_into(self.machine)
        index = store.applied.index
        state.last_applied = index
        state.commit_index = max(state.commit_index, index)
        state.configurations = Configurations(MemberSet.of(store.members.index, store.members))
        self.on_snapshot_installed()
        self._settle_membership(state.members)

    def propose(self, command: bytes) -> None:
        """Leader: take a command, now or when a transfer of leadership has failed."""
        if self.transfer.active:
            self.transfer.hold(command)
        else:
            self.replicated_log.append(command)

    # -- messages ---------------------------------------------------------------------------------------------------

    def on(self, kind: type[Received], handler: Callable[[Peer, Received], None]) -> None:
        """Have messages of a kind handled; each kind has one handler."""
        assert kind not in self._handlers
        self._handlers[kind] = handler

    @override
    def _SyncObj__onMessageReceived(self, node: Node, message: msg.Message) -> None:
        peer = self.peers.get(node.id)
        if peer is not None:
            if type(message) is msg.AppendReply and self._is_plain_reply(peer, message):
                state = self.state  # a majority may have acknowledged that before, and all have all that there is
                if message.match_index > state.commit_index or peer.next_index <= state.log.last_index:
                    self.advanced = True
            elif (type(message) is msg.AppendEntries and self._is_plain(peer, message)) or type(message) in _PLAIN:
                self.advanced = True
            else:
                self.stirred = True
            self._handlers[type(message)](peer, message)

    def _is_plain_reply(self, peer: Peer, message: msg.AppendReply) -> bool:
        """Whether this says nothing but how far the follower's log is, and nobody but `replicate` waits for that."""
        state = self.state
        return (
            message.success
            and message.term == state.term
            and message.digest is None
            and not (peer.probing or peer.snapshot_sending or self.read_index.waiting or self.transfer.active)
            and not state.configurations.current.promotable
        )

    def _is_plain(self, peer: Peer, message: msg.AppendEntries) -> bool:
        """Whether this brings nothing but more entries from the leader that this node follows."""
        state = self.state
        return (
            bool(message.entries)
            and message.term == state.term
            and peer.address == state.leader
            and message.digest is message.agreed is None
        )

    @override
    def _SyncObj__onNodeConnected(self, node: Node) -> None:
        peer = self.peers.get(node.id)
        if peer is not None:
            self.stirred = peer.connected = True
            peer.connections += 1
            peer.reconnected()
            self.snapshots.reconnected(peer)
            self.outbox.send(peer, self.members_are())

    @override
    def _SyncObj__onNodeDisconnected(self, node: Node) -> None:
        peer = self.peers.get(node.id)
        if peer is not None:
            peer.connected, self.stirred = False, True

    def peer_closed(self, address: str, may_hold_lease: bool) -> None:
        """The connection that was just lost was closed by its other end, which may read under a lease, or said not."""
        if (peer := self.peers.get(address)) is not None:
            self.stirred = True
            self.leader_death.on_closed(peer, may_hold_lease)

    def peer_refused(self, address: str) -> None:
        """Nobody listens at the address of a peer that has closed its connection."""
        if (peer := self.peers.get(address)) is not None:
            self.stirred = True
            self.leader_death.on_refused(peer)

    # -- members ----------------------------------------------------------------------------------------------------

    def members_are(self) -> msg.MembersAre:
        """The last configuration known to be committed, for nodes that may have missed it."""
        known = self.state.committed_members
        said = known.configuration()
        return msg.MembersAre(self.state.term, known.index, said.voters, said.learners, said.node_ids, said.readers)

    def hear_from_non_member(self, message: msg.MembersAre) -> None:
        """An authenticated node of this cluster that is not a member here says who the members are: all members that
        this node knew may have been replaced while it was away (4.1). A node that has a leader was not away, and does
        not believe it."""
        if not self.elections.leader_is_alive():
            self.hear_of_members(message)

    def hear_of_members(self, message: msg.MembersAre) -> None:
        """A member says which configuration is committed."""
        members = MemberSet.of(message.index, message)
        in_log = self.state.configurations.holds(members)
        if self.state.configurations.adopt(members, self.state.commit_index):
            if not in_log and self.state.role is not Role.FOLLOWER:
                self.elections.step_down(self.state.term)  # what it has counted so far, it counted by other members
            self.store.set_members(members.stored())
            self._settle_membership(members)

    def _settle_membership(self, committed: MemberSet) -> None:
        """A configuration turns out to be committed: pass it on, also to the members that it removes."""
        said = self.members_are()
        for peer in self.peers.values():
            self.outbox.send(peer, said)
        self.replicated_log.follow_configuration()
        if self.address not in committed.all:
            self.outbox.persist()
            raise removed(self.address)

    def admit(self, address: str, node_id: str) -> str | None:
        """Why the node with this identity may not be the one at this address; None if it may."""
        known = self.state.configurations.identity(address)
        if known is not None and known != node_id:
            return records.another_node(address, known, node_id)
        refused = None if known is not None else self.store.pin(address, node_id)
        if refused is None and (peer := self.peers.get(address)) is not None:
            peer.node_id = node_id
        return refused

    def hear_of_another(self, witness: str) -> None:
        """An authenticated node of this cluster knows another node at this address. If this node founded its cluster
        alone, and is still alone in it, then it has founded it a second time, on an empty disk, and stops. Otherwise
        the other members decide: one of them may be mistaken, because it was away while this node was properly
        replaced."""
        if self.members.index == 0 and self.members.voters == {self.address}:
            raise StorageError(
                f"{self.store.name}: {witness} belongs to the cluster that was founded at {self.address}, and knows it "
                "as another node: the disk of that one was lost or replaced, and this node would be a second cluster "
                "under the same name. It has stopped; what was written to it is in this directory alone. To come back, "
                f"remove {self.address} from the cluster, by way of {witness}, then start this node with an empty "
                "directory and join="
            )

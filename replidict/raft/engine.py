"""The seam to PySyncObj: the one place that knows its private names.

`Engine` is a `SyncObj` whose tick and message handler are ours. PySyncObj keeps the Raft state (term, role, leader,
commit and applied index, connected nodes), the poller, and the lifecycle of the transport; each rule of Raft stands
in a module of its own, which reaches that state through the properties here:

    elections     who may lead, and who votes for whom
    replication   how the log gets to followers, and when it is committed
    snapshots     how a follower catches up that is too far behind for the log
    read_index    how a leader knows that it still is one
    transfer      how a leader hands over
    membership    who belongs to the cluster
    changes       how that changes
    succession    what becomes of who is told that the cluster goes on elsewhere

Rules kept here, for all of them:

1. One step is: timers, what the floors above want, sending, one commit, then the answers that waited for that
   commit, then what became committed is applied. Nothing that tells of a state leaves before that state is on disk.
2. A message with a higher term makes this node a follower of that term first (figure 2, rules for all servers);
   who handles the message says so, because a vote request need not be believed (thesis 4.2.3).
3. What can't be written, or contradicts what Raft guarantees, ends the node. It is never worked around.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.poller import Poller
from typing_extensions import override

from replidict.background import Background
from replidict.errors import StorageError, removed
from replidict.log_throttle import Complaints
from replidict.log_writer import Logger
from replidict.machine import commands as cmd
from replidict.machine.state_machine import Outcome, StateMachine, unknown
from replidict.options import Options
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import AppendReply, MembersAre, Message, SnapshotReply
from replidict.raft.configuration import Members, Membership
from replidict.raft.elections import Elections
from replidict.raft.install_snapshot import Snapshots
from replidict.raft.progress import Peer
from replidict.raft.read_index import ReadIndex
from replidict.raft.reconfiguration import Changes
from replidict.raft.replication import Replication
from replidict.raft.role import Role
from replidict.raft.superseded import Succession
from replidict.raft.transfer import Transfer
from replidict.release import Release
from replidict.storage import records
from replidict.storage.store import Store

logger = Logger(__name__)

APPLY_AT_ONCE = 512
"""Entries applied in one step at most, so that a long backlog does not keep the node from its heartbeats."""

Received = TypeVar("Received")


class Engine(SyncObj):
    """One Raft node: stepped from outside, by a thread or a simulator, and never from two threads at once."""

    def __init__(
        self,
        *,
        store: Store,
        machine: StateMachine,
        transport: Callable[[SyncObj, Node, set[Node]], Any],
        options: Options,
        clock: Callable[[], float],
        rng: random.Random,
        background: Background,
        snapshot_directory: Path,
    ) -> None:
        """Take over a loaded store and state machine. `transport` makes a PySyncObj `Transport`."""
        self.store = store
        self.machine = machine
        self.options = options
        self.clock = clock
        self.rng = rng
        self.address = store.identity.address
        self.peers: dict[str, Peer] = {}
        self.on_outcome: Callable[[Outcome], None] = lambda outcome: None
        self.on_snapshot_installed: Callable[[], None] = lambda: None
        self.on_step: Callable[[], None] = lambda: None
        self.meet: Callable[[str, Release], str | None] = lambda address, release: None  # see `node.feature_level`
        self.complaints = Complaints(self.address)
        self._held: list[tuple[Peer, Message]] = []
        self._unsent: list[tuple[Peer, int, Message]] = []  # answers, and the connection each belongs to
        self._handlers: dict[type, Callable[[Peer, Any], None]] = {}
        self._membership = Membership(Members.of(store.members.index, store.members))
        super().__init__(Node(self.address), [], SyncObjConf(autoTick=False), transportClass=transport)
        self.transport = self._SyncObj__transport
        self._SyncObj__raftLog = self.log = store.log
        self._SyncObj__raftCurrentTerm = store.term
        self._SyncObj__votedForNodeId = store.voted_for
        self._SyncObj__raftCommitIndex = max(store.committed, store.applied.index)
        self._SyncObj__raftLastApplied = store.applied.index
        self._note_configurations(store.log.entries_from(store.applied.index + 1, 1 << 62))
        self.elections = Elections(self)
        self.replication = Replication(self)
        self.snapshots = Snapshots(self, background, snapshot_directory)
        self.read_index = ReadIndex(self)
        self.transfer = Transfer(self)
        self.changes = Changes(self)
        self.succession = Succession(self, snapshot_directory)
        self.on(MembersAre, lambda peer, message: self.hear_of_members(message))
        self._follow_membership()

    # -- PySyncObj's state, by its names in the paper ---------------------------------------------------------------

    @property
    def term(self) -> int:
        """Figure 2, `currentTerm`."""
        return self._SyncObj__raftCurrentTerm

    @property
    def voted_for(self) -> str | None:
        """Figure 2, `votedFor`."""
        return self._SyncObj__votedForNodeId

    @property
    def role(self) -> Role:
        """Follower, candidate or leader."""
        return Role(self._SyncObj__raftState)

    @property
    def is_leader(self) -> bool:
        """Whether this node is the leader of its term, as far as it knows."""
        return self._SyncObj__raftState == 2

    @property
    def leader(self) -> str | None:
        """Address of the leader of the current term, if known."""
        node = self._SyncObj__raftLeader
        return None if node is None else node.id

    @property
    def leading_peer(self) -> Peer | None:
        """The leader of the current term, if it is known and is another member."""
        return None if self._SyncObj__raftLeader is None else self.peers.get(self._SyncObj__raftLeader.id)

    @property
    def commit_index(self) -> int:
        """Figure 2, `commitIndex`."""
        return self._SyncObj__raftCommitIndex

    @commit_index.setter
    def commit_index(self, index: int) -> None:
        assert index >= self._SyncObj__raftCommitIndex, "the commit index never goes back"
        self._SyncObj__raftCommitIndex = index

    @property
    def last_applied(self) -> int:
        """Figure 2, `lastApplied`."""
        return self._SyncObj__raftLastApplied

    def become(self, role: Role, term: int, leader: str | None, voted_for: str | None = None) -> None:
        """Take a role in a term. A vote belongs to one term only; the term and the vote go out with the next commit."""
        before = (self.role, self.term, self.leader)
        if term != self.term or voted_for is not None:
            self._SyncObj__setCurrentTerm(term, voted_for)
        self._SyncObj__raftState = role.value
        self._SyncObj__raftLeader = None if leader is None else Node(leader)
        if (role, term, leader) != before:
            logger.debug("%s: %s of term %d, leader %s", self.address, role.name.lower(), term, leader)
        if before[0] is Role.LEADER and role is not Role.LEADER:
            self.replication.stop_leading()

    @override
    def _SyncObj__setCurrentTerm(self, term: int, voted_for: str | None) -> None:
        self._SyncObj__raftCurrentTerm = term
        self._SyncObj__votedForNodeId = voted_for
        self.store.set_vote(term, voted_for)

    # -- what drives it ---------------------------------------------------------------------------------------------

    @override
    def _onTick(self, timeToWait: float = 0.0) -> None:
        """PySyncObj's own entry, `doTick`: wait up to `timeToWait` seconds for messages, then take one step."""
        self.poll(timeToWait)
        self.step()

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for messages and handle those that came."""
        self._poller.poll(timeout)

    @property
    def poller(self) -> Poller:
        """PySyncObj's poller, on which the transport and whoever wakes this node are subscribed."""
        return self._poller

    def step(self) -> None:
        """Rule 1. Raises `StorageError` when the node can't go on."""
        unsent, self._unsent = self._unsent, []
        for answer in unsent:
            self.answer(*answer)
        self.transport.tick(self.clock())
        self.elections.tick()
        self.snapshots.tick()
        self.transfer.tick()
        self.changes.tick()
        self.on_step()
        self.read_index.tick()
        self.replication.send()
        self.persist()
        self.replication.advance_commit_index()
        self.apply()
        self.replication.send_commit_index()
        self.changes.settle()
        self.complaints.tick(self.clock())

    def idle_until(self) -> float:
        """The clock time at which the next step is due, if nothing happens before."""
        if self.last_applied < self.commit_index or self.store.pending:
            return float("-inf")
        transport_due: float = self.transport.next_deadline()
        return min(transport_due, self.elections.next_deadline(), self.replication.next_deadline())

    def persist(self) -> None:
        """Commit what is gathered, then send what waited for it."""
        self.store.commit(self.commit_index)
        if self._held:
            held, self._held = self._held, []
            for peer, message in held:
                if type(message) is AppendReply and message.term < self.term:
                    # A later leader has spoken since, and may have cut off what this would acknowledge.
                    message = AppendReply(self.term, False, 0, message.round)
                if type(message) is SnapshotReply:
                    self.answer(peer, peer.connections, message)
                else:
                    self.send(peer, message)  # if it is lost, the next one will do

    def apply(self) -> None:
        """Figure 2, rules for all servers: apply what is committed, or the first part of it."""
        count = min(self.commit_index - self.last_applied, APPLY_AT_ONCE)
        if count <= 0:
            return
        machine = self.machine
        index = self.last_applied
        while count > 0:
            entries = self.log.entries_from(index + 1, 1 << 20)[:count]
            count -= len(entries)
            for entry in entries:
                outcome = machine.apply(entry.index, entry.command)
                index = entry.index
                self._SyncObj__raftLastApplied = index
                if outcome is not None:
                    self.on_outcome(outcome)
        members = self._membership.applied(index)
        self.store.record(
            entries[-1].term,
            machine.take_changes(),
            None if members is None else members.stored(),
        )
        if members is not None:
            self._settle_membership(members)

    # -- messages ---------------------------------------------------------------------------------------------------

    def on(self, kind: type[Received], handler: Callable[[Peer, Received], None]) -> None:
        """Have messages of a kind handled; each kind has one handler."""
        assert kind not in self._handlers
        self._handlers[kind] = handler

    @override
    def _SyncObj__onMessageReceived(self, node: Node, message: Message) -> None:
        peer = self.peers.get(node.id)
        if peer is not None:
            self._handlers[type(message)](peer, message)

    def complain(self, peer: Peer, about: str, text: str) -> None:
        """Warn of what a peer says that it should not; once a minute, however often it says it."""
        self.complaints.log(f"{about} {peer.address}", self.clock(), text)

    def send(self, peer: Peer, message: Message) -> bool:
        """Send now. Only for what tells of nothing that is not on disk. False: it surely did not go out."""
        return bool(peer.connected and self.transport.send(peer.node, message))

    def answer(self, peer: Peer, connection: int, message: Message) -> None:
        """Answer by the connection that the question came by, or not at all: another process may be there now. While
        its queue is full, the answer waits: who asked waits for it, and would not ask again."""
        if peer.connections == connection and peer.connected and not self.send(peer, message):
            self._unsent.append((peer, connection, message))

    def hold(self, peer: Peer, message: Message) -> None:
        """Send after the next commit. Acknowledgements of the same leader's messages become one."""
        held = self._held
        if type(message) is AppendReply and message.success:
            for position, (other, earlier) in enumerate(held):
                if other is peer and type(earlier) is AppendReply and earlier.success and earlier.term == message.term:
                    del held[position]
                    if earlier.match_index > message.match_index:
                        message = msgspec.structs.replace(message, match_index=earlier.match_index)
                    break
        held.append((peer, message))

    @override
    def _SyncObj__onNodeConnected(self, node: Node) -> None:
        self._SyncObj__connectedNodes.add(node)
        peer = self.peers.get(node.id)
        if peer is not None:
            peer.connected = True
            peer.connections += 1
            peer.reconnected()
            self.snapshots.reconnected(peer)
            self.send(peer, self.members_are())

    @override
    def _SyncObj__onNodeDisconnected(self, node: Node) -> None:
        self._SyncObj__connectedNodes.discard(node)
        peer = self.peers.get(node.id)
        if peer is not None:
            peer.connected = False

    # -- members ----------------------------------------------------------------------------------------------------

    @property
    def committed_members(self) -> Members:
        """The last configuration known to be committed."""
        return self._membership.committed(self.commit_index)

    def members_are(self) -> MembersAre:
        """The last configuration known to be committed, for those who may have missed it."""
        known = self.committed_members
        said = known.configuration()
        return MembersAre(self.term, known.index, said.voters, said.learners, said.node_ids, said.readers)

    def hear_stranger(self, message: MembersAre) -> None:
        """Who is no member here has proved to be of this cluster, and says who is: all that this node knew may have
        been replaced while it was away (4.1). One that has a leader was not away, and believes nobody else."""
        if not self.elections.leader_is_alive():
            self.hear_of_members(message)

    def hear_of_members(self, message: MembersAre) -> None:
        """Somebody says which configuration is committed."""
        members = Members.of(message.index, message)
        in_log = self._membership.holds(members)
        if self._membership.adopt(members, self.commit_index):
            if not in_log and self.role is not Role.FOLLOWER:
                self.elections.step_down(self.term)  # what it has counted so far, it counted by other members
            self.store.set_members(members.stored())
            self._settle_membership(members)

    def _settle_membership(self, committed: Members) -> None:
        """A configuration turns out to be committed: pass it on, also to whom it lets go."""
        said = self.members_are()
        for peer in self.peers.values():
            self.send(peer, said)
        self._follow_membership()
        if self.address not in committed.all:
            self.persist()
            raise removed(self.address)

    def admit(self, address: str, node_id: str) -> str | None:
        """Why the node with this identity may not be the one at this address; None if it may."""
        known = self._membership.identity(address)
        if known is not None and known != node_id:
            return records.another_node(address, known, node_id)
        refused = None if known is not None else self.store.pin(address, node_id)
        if refused is None and (peer := self.peers.get(address)) is not None:
            peer.node_id = node_id
        return refused

    def hear_of_another(self, witness: str) -> None:
        """Somebody who has proved to be of this cluster knows another node at this address. Who has founded its cluster
        alone, and is still alone in it, has then founded it a second time, on an empty disk. Of anybody else it is the
        others that decide: one of them may be mistaken, because it was away while this node was replaced in order."""
        if self.members.index == 0 and self.members.voters == {self.address}:
            raise StorageError(
                f"{self.store.name}: {witness} belongs to the cluster that was founded at {self.address}, and knows it "
                "as another node: the disk of that one was lost or replaced, and this node would be a second cluster "
                "under the same name. It has stopped; what was written to it is in this directory alone. To come back, "
                f"remove {self.address} from the cluster, by way of {witness}, then start this node with an empty "
                "directory and join="
            )

    # -- the log ----------------------------------------------------------------------------------------------------

    @property
    def members(self) -> Members:
        """The configuration in force."""
        return self._membership.current

    def propose(self, command: bytes) -> None:
        """Leader: take a command, now or when a transfer of leadership has failed."""
        if self.transfer.active:
            self.transfer.hold(command)
        else:
            self.append(command)

    def append(self, command: bytes) -> None:
        """Leader: add an entry of the current term."""
        assert self.is_leader
        self.extend([Entry(self.log.last_index + 1, self.term, command)])

    def extend(self, entries: list[Entry]) -> None:
        """Add entries to the log; a configuration among them is in force at once."""
        self.log.append(entries)
        if self._note_configurations(entries):
            self._follow_membership()

    def cut(self, index: int) -> None:
        """Take entries off the log's end that conflict with the leader's (figure 2, AppendEntries rule 3)."""
        if index <= self.commit_index:
            raise StorageError(
                f"{self.store.name}: the leader's log differs from entry {index} on, which is committed here up to "
                f"{self.commit_index}. One of the two has lost or altered its data; this node stops. Compare the "
                "nodes' files, and rebuild the wrong one from an empty directory."
            )
        self.log.cut(index)
        if self._membership.cut(index):
            self._follow_membership()

    def _note_configurations(self, entries: list[Entry]) -> bool:
        found = False
        for entry in entries:
            if cmd.is_configuration(entry.command) and entry.index > self._membership.current.index:
                try:
                    configuration = cmd.decode(entry.command)
                except cmd.UnknownCommand as error:
                    raise unknown(entry.index, error) from error
                if isinstance(configuration, cmd.Configuration):
                    self._membership.appended(entry.index, configuration)
                    found = True
        return found

    def restart_from_snapshot(self) -> None:
        """The store holds a snapshot just installed: become what it says (figure 13, rules 6 to 8)."""
        self.store.load_into(self.machine)
        index = self.store.applied.index
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)
        self._membership = Membership(Members.of(self.store.members.index, self.store.members))
        self.on_snapshot_installed()
        self._settle_membership(self._membership.current)

    def _follow_membership(self) -> None:
        wanted = self._membership.heard - {self.address}
        for address, peer in sorted(self.peers.items()):
            another = peer.node_id is not None and self._membership.identity(address) not in (None, peer.node_id)
            if another or address not in wanted:
                del self.peers[address]
                peer.connected = False
                self._SyncObj__otherNodes.discard(peer.node)
                self.transport.dropNode(peer.node)
        for address in sorted(wanted - self.peers.keys()):
            peer = self.peers[address] = Peer(address)
            peer.reset(self.log.last_index + 1, self.clock())
            self._SyncObj__otherNodes.add(peer.node)
            self.transport.addNode(peer.node)

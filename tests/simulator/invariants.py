"""What must hold after every step, checked as things happen (Raft, figure 3, and what design.md promises).

Each check costs in proportion to what changed:

- election safety: one leader a term, one vote a term and voter, and a vote is on disk before it is sent; who leads has
  the votes of a majority of the voters in force, and of nobody else
- log matching: an index and a term stand for one command and one predecessor, on every disk
- leader completeness: who leads holds everything that was committed before
- state machine safety: an index is committed with one term for ever, when it is on a majority of the voters' disks
- membership: one change at a time, by one voter, of a committed configuration; every node goes by the last one in its
  log; a disk that was replaced is another member; only who was removed stops for that reason
- determinism: equal state, to the order of keys and the sessions, at equal applied index, replayed or loaded
- what an acknowledgement says is on the sender's disk
- terms, commit and applied index never go back, the term not even over a restart
- every effect happens once, and was there when it was acknowledged
- feature levels: nobody has an entry on disk that its release can't read, no entry is applied before its level was
  raised, and none is raised before every member knew it
- watchers are told every change once, in order, whole, or that something is lost
- keys go in time, locks have one holder, fences hold (see `check_coordination`)
- freshness and leases: what a node believes to know of the whole is true
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from replidict.machine.outcomes import Outcome
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import (
    AppendEntries,
    AppendReply,
    LeaderConfirmed,
    Message,
    RequestVote,
    SnapshotReply,
    VoteReply,
)
from replidict.storage import records
from replidict.testing.simulator.disk import Disk, Write
from replidict.testing.simulator.machine import Machine, Observer
from replidict.testing.simulator.violation import Violation
from tests.simulator.check_coordination import CoordinationChecks
from tests.simulator.check_elections import ElectionChecks
from tests.simulator.check_levels import LevelChecks
from tests.simulator.check_logs import LogChecks
from tests.simulator.check_members import MemberChecks
from tests.simulator.check_states import StateChecks
from tests.simulator.check_watches import WatchChecks

if TYPE_CHECKING:
    from tests.simulator.cluster import Cluster


class _View:
    """What was last seen of one incarnation of a node."""

    __slots__ = ("applied", "commit", "leads", "matches", "revision", "term")

    def __init__(self, term: int, commit: int, applied: int, revision: int) -> None:
        self.term, self.commit, self.applied, self.revision = term, commit, applied, revision
        self.leads = 0  # the last term it was seen leading
        self.matches: dict[str, int] = {}  # as a leader: how far each follower was known to be


class Checker(Observer):
    """Sees everything that happens in a cluster, and raises `Violation`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.members = MemberChecks()
        self.logs = LogChecks(cluster, self.members)
        self.elections = ElectionChecks(cluster, self.members, self.logs)
        self.levels = LevelChecks(cluster)
        self.watches = WatchChecks()
        self.states = StateChecks(cluster, self.logs, self.watches)
        self.coordination = CoordinationChecks(cluster)
        self._views: dict[str, _View] = {}
        self.snapshots_installed = 0

    @override
    def founded(self, identities: Mapping[str, str]) -> None:
        self.members.founded(dict(identities))

    @override
    def new_disk(self, disk: Disk) -> None:
        self.members.new_disk(disk)

    @override
    def left(self, machine: Machine) -> None:
        self.members.left(machine)

    @override
    def started(self, machine: Machine) -> None:
        """A node has loaded what its disk holds."""
        node = machine.node
        assert node is not None
        engine = node.engine
        vote = machine.disk.shadow.vote
        if (engine.term, engine.state.voted_for) != (vote.term, vote.voted_for):
            raise Violation(
                "terms", f"{machine.address} starts with {engine.term}, {engine.state.voted_for}; on disk: {vote}"
            )
        self._views[machine.address] = _View(
            engine.term, engine.commit_index, engine.last_applied, node.machine.revision
        )
        self.members.in_force(machine)
        self.levels.started(machine)
        self.states.state(machine, "loaded from disk")
        known = self.logs.commits.get(engine.commit_index)
        if engine.commit_index > engine.log.start.index and engine.log.term_at(engine.commit_index) != known:
            raise Violation(
                "state machine safety",
                f"{machine.address} starts with {engine.commit_index} as committed, of term "
                f"{engine.log.term_at(engine.commit_index)}; committed was {known}",
            )
        self._watch(machine)

    def _watch(self, machine: Machine) -> None:
        node = machine.node
        assert node is not None
        engine, log = node.engine, node.engine.log
        apply, append, installed = node.machine.apply, log.append, engine.on_snapshot_installed

        def applied(index: int, command: bytes) -> Outcome:
            self.knows_committed(machine)  # before the log is cut short
            self.levels.applied(machine, index, command)
            outcome = apply(index, command)
            self.states.applied(machine, index, command, outcome)
            return outcome

        def appended(entries: Sequence[Entry]) -> None:
            self.members.appended(machine, log, entries)
            if engine.is_leader:
                for entry in entries:
                    self.levels.proposed(machine, entry.command)
            append(entries)

        def on_snapshot_installed() -> None:
            self.snapshots_installed += 1
            self._cluster.trace.note(machine.address, "installed", engine.last_applied)
            self.levels.readable(machine)
            self.states.state(machine, "loaded from a snapshot")
            installed()

        node.machine.apply = applied  # type: ignore[method-assign]
        log.append = appended  # type: ignore[method-assign]
        engine.on_snapshot_installed = on_snapshot_installed

    @override
    def stepped(self, machine: Machine) -> None:
        """A node has made a step."""
        node = machine.node
        assert node is not None
        engine = node.engine
        view = self._views[machine.address]
        term, commit, applied, revision = engine.term, engine.commit_index, engine.last_applied, node.machine.revision
        if term < view.term or commit < view.commit or applied < view.applied or revision < view.revision:
            raise Violation(
                "monotony",
                f"{machine.address} went back: term {view.term} -> {term}, commit {view.commit} -> {commit}, "
                f"applied {view.applied} -> {applied}, revision {view.revision} -> {revision}",
            )
        if applied > commit:
            raise Violation("commit", f"{machine.address} applied {applied} but knows {commit} to be committed")
        self.members.in_force(machine)
        self.knows_committed(machine)
        if engine.is_leader and view.leads != term:
            view.leads = term
            view.matches.clear()
            self.elections.leads(machine, term)
        if engine.is_leader:
            self.logs.knows_its_followers(machine, view.matches)
        view.term, view.applied, view.revision = term, applied, revision
        fresh = engine.read_index.fresh_as_of
        if fresh != float("-inf"):
            self.states.fresh(machine, fresh, applied)

    @override
    def knows_committed(self, machine: Machine) -> None:
        """A node may take more as committed than before. Called within steps, too: others may hear of it at once, and
        the step may end the node."""
        assert machine.node is not None
        view, commit = self._views[machine.address], machine.node.engine.commit_index
        if commit > view.commit:
            self.logs.committed_on(machine, view.commit, commit)
            view.commit = commit

    @override
    def committed(self, machine: Machine, writes: list[Write]) -> None:
        """A transaction is about to be durable on a node's disk."""
        for write in writes:
            if isinstance(write, records.Vote):
                self.elections.vote_stored(machine, write)
        self.logs.written(machine, writes)
        self.levels.written(machine, writes)

    @override
    def sent(self, machine: Machine, receiver: str, message: Message) -> None:
        """A message leaves a node."""
        kind = type(message)
        if kind is AppendEntries:
            self.elections.leader(machine, message.term)
        elif kind is AppendReply:
            assert isinstance(message, AppendReply)
            if message.success:
                self.logs.acknowledges(machine, receiver, message)
            self.elections.term_stored(machine, message)
        elif kind is RequestVote:
            assert isinstance(message, RequestVote)
            if not message.pre:
                self.elections.vote_sent(machine, message.term, machine.address)
        elif kind is VoteReply:
            assert isinstance(message, VoteReply)
            if message.granted and not message.pre:
                self.elections.vote_sent(machine, message.asked, receiver)
            self.elections.term_stored(machine, message)
        elif kind is LeaderConfirmed:
            self.elections.term_stored(machine, message)
        elif kind is SnapshotReply:
            assert isinstance(message, SnapshotReply)
            if message.installed:
                self.logs.acknowledges_snapshot(machine, message)

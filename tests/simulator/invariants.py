"""What must hold after every step, checked as things happen (Raft, figure 3, and what design.md promises).

Each check costs in proportion to what changed:

- election safety: one leader a term, one vote a term and voter, and a vote is on disk before it is sent
- log matching: an index and a term stand for one command and one predecessor, on every disk
- leader completeness: who leads holds everything that was committed before
- state machine safety: an index is committed with one term for ever, when it is on a majority of disks
- determinism: equal state, to the order of keys and the sessions, at equal applied index, replayed or loaded
- what an acknowledgement says is on the sender's disk
- terms, commit and applied index never go back, the term not even over a restart
- every effect happens once, and was there when it was acknowledged
- freshness and leases: what a node believes to know of the whole is true
"""

from __future__ import annotations

import hashlib
import zlib
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import msgspec

from replidict import commands as cmd
from replidict.raft.messages import (
    AppendEntries,
    AppendReply,
    LeaderConfirmed,
    Message,
    RequestVote,
    SnapshotReply,
    VoteReply,
)
from replidict.state_machine import BatchApplied, Outcome, StateMachine
from replidict.storage import schema
from tests.simulator.disk import Row, Write

if TYPE_CHECKING:
    from tests.simulator.cluster import Cluster, Machine

_encode = msgspec.msgpack.Encoder().encode


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(invariant, what)  # as given, or it could not come back from another process
        self.invariant = invariant
        self.what = what

    def __str__(self) -> str:
        return f"{self.invariant}: {self.what}"


def state_digest(machine: StateMachine) -> bytes:
    """Stands for all of a state machine."""
    state = (
        machine.revision, machine._next_position, list(machine.items), list(machine.items.values()),
        list(machine.sessions.items()),
    )  # fmt: skip
    return hashlib.blake2b(_encode(state), digest_size=8).digest()


class Effect:
    """What a write with a marker in its value did, and where."""

    __slots__ = ("index", "result")

    def __init__(self, index: int, result: cmd.Result) -> None:
        self.index = index
        self.result = result


class _View:
    """What was last seen of one incarnation of a node."""

    __slots__ = ("applied", "commit", "leads", "matches", "revision", "term")

    def __init__(self, term: int, commit: int, applied: int, revision: int) -> None:
        self.term, self.commit, self.applied, self.revision = term, commit, applied, revision
        self.leads = 0  # the last term it was seen leading
        self.matches: dict[str, int] = {}  # as a leader: how far each follower was known to be


class Checker:
    """Sees everything that happens in a cluster, and raises `Violation`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}  # (index, term) -> (checksum, term before)
        self.commits: dict[int, int] = {}  # index -> term
        self._committed_in: dict[int, int] = {}  # index -> the term that it was committed in, which may be later
        self.highest_commit = 0
        self._commit_times: list[float] = []
        self._commit_indices: list[int] = []
        self._digests: dict[int, bytes] = {0: state_digest(StateMachine(_NoCodec()))}
        self._leaders: dict[int, str] = {}
        self._votes: dict[tuple[int, str], str] = {}
        self._views: dict[str, _View] = {}
        self.effects: dict[str, Effect] = {}
        self.first_applied = 0
        self.leaders_seen = 0
        self.snapshots_installed = 0

    # -- what happens -----------------------------------------------------------------------------------------------

    def started(self, machine: Machine) -> None:
        """A node has loaded what its disk holds."""
        node = machine.node
        assert node is not None
        engine = node.engine
        vote = machine.disk.shadow.vote
        if (engine.term, engine.voted_for) != (vote.term, vote.voted_for):
            raise Violation(
                "terms", f"{machine.address} starts with {engine.term}, {engine.voted_for}; on disk: {vote}"
            )
        self._views[machine.address] = _View(
            engine.term, engine.commit_index, engine.last_applied, node.machine.revision
        )
        self._state(machine, "loaded from disk")
        known = self.commits.get(engine.commit_index)
        if engine.commit_index > engine.log.start.index and engine.log.term_at(engine.commit_index) != known:
            raise Violation(
                "state machine safety",
                f"{machine.address} starts with {engine.commit_index} as committed, of term "
                f"{engine.log.term_at(engine.commit_index)}; committed was {known}",
            )
        original = node.machine.apply

        def apply(index: int, command: bytes) -> Outcome:
            outcome = original(index, command)
            self._applied(machine, index, command, outcome)
            return outcome

        node.machine.apply = apply  # type: ignore[method-assign]
        installed = engine.on_snapshot_installed

        def on_snapshot_installed() -> None:
            self.snapshots_installed += 1
            self._cluster.trace.note(machine.address, "installed", engine.last_applied)
            self._state(machine, "loaded from a snapshot")
            installed()

        engine.on_snapshot_installed = on_snapshot_installed

    def stopped(self, machine: Machine) -> None:
        """A node has stopped."""

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
        if commit > view.commit:
            self._committed_on(machine, view.commit, commit)
        if engine.is_leader and view.leads != term:
            view.leads = term
            view.matches.clear()
            self._leads(machine, term)
        if engine.is_leader:
            self._knows_its_followers(machine, view)
        view.term, view.commit, view.applied, view.revision = term, commit, applied, revision
        fresh = engine.read_index.fresh_as_of
        if fresh != float("-inf"):
            self._fresh(machine, fresh, applied)

    def committed(self, address: str, writes: list[Write]) -> None:
        """A transaction is about to be durable on a node's disk."""
        shadow = self._cluster.machines[address].disk.shadow
        start = shadow.start
        for write in writes:
            if isinstance(write, schema.LogStart):
                start = write
            elif isinstance(write, schema.Vote):
                self._vote_stored(address, write)
        if start.index < shadow.start.index:
            raise Violation(
                "log", f"{address}: the log begins at {start.index}, and began at {shadow.start.index} before"
            )
        written: dict[int, int] = {}
        for write in writes:
            if isinstance(write, int):
                if write > start.index and write in shadow.log and self.commits.get(write) == shadow.log[write][0]:
                    raise Violation("log", f"{address} deletes entry {write}, which is committed")
            elif isinstance(write, Row):
                index = write.number
                written[index] = write.term
                before = written.get(index - 1)
                if before is None:
                    before = shadow.log[index - 1][0] if index - 1 in shadow.log else start.term
                self._matches(address, index, write.term, zlib.crc32(write.command), before)

    def sent(self, machine: Machine, receiver: str, message: Message) -> None:
        """A message leaves a node."""
        shadow = machine.disk.shadow
        kind = type(message)
        if kind is AppendEntries:
            self._leader(message.term, machine.address)
        elif kind is AppendReply:
            assert isinstance(message, AppendReply)
            if message.success:
                if message.match_index > shadow.last_index():
                    raise Violation(
                        "durability",
                        f"{machine.address} acknowledges {message.match_index}; on disk up to {shadow.last_index()}",
                    )
                self._acknowledges(machine, receiver, message.match_index, message.term)
            self._term_stored(machine, message)
        elif kind is RequestVote:
            assert isinstance(message, RequestVote)
            if not message.pre:
                self._vote_sent(machine, message.term, machine.address)
        elif kind is VoteReply:
            assert isinstance(message, VoteReply)
            if message.granted and not message.pre:
                self._vote_sent(machine, message.asked, receiver)
            self._term_stored(machine, message)
        elif kind is LeaderConfirmed:
            self._term_stored(machine, message)
        elif kind is SnapshotReply:
            assert isinstance(message, SnapshotReply)
            if message.installed and message.last_index > shadow.last_index():
                raise Violation(
                    "durability",
                    f"{machine.address} acknowledges a snapshot of {message.last_index}; on disk up to "
                    f"{shadow.last_index()}",
                )

    def _acknowledges(self, machine: Machine, leader: str, index: int, term: int) -> None:
        """What is acknowledged must be the leader's own entries, which the leader of that term has in memory."""
        node = self._cluster.machines[leader].node
        if node is None or node.engine.term != term or not node.engine.is_leader:
            return
        expected = node.engine.log.term_at(index)
        if expected is not None and not machine.disk.shadow.holds(index, expected):
            raise Violation(
                "log matching",
                f"{machine.address} acknowledges entry {index} to {leader}, whose entry has term {expected}; on its "
                f"disk: {machine.disk.shadow.log.get(index)}",
            )

    def acknowledged(self, machine: Machine, marker: str, result: Any) -> None:
        """A client got the result of a write whose value is marked."""
        effect = self.effects.get(marker)
        if effect is None:
            raise Violation("exactly once", f"{machine.address}: {marker} was acknowledged and never applied")
        assert machine.node is not None
        if machine.node.machine.applied_index < effect.index:
            raise Violation("read your writes", f"{machine.address} has not applied {marker}, which it acknowledges")
        if effect.result != result:
            raise Violation("exactly once", f"{marker} gave {effect.result!r}, but its caller got {result!r}")

    # -- elections --------------------------------------------------------------------------------------------------

    def _leader(self, term: int, address: str) -> None:
        known = self._leaders.setdefault(term, address)
        if known != address:
            raise Violation("election safety", f"{known} and {address} both lead term {term}")

    def _leads(self, machine: Machine, term: int) -> None:
        self._leader(term, machine.address)
        self.leaders_seen += 1
        self._cluster.trace.note(machine.address, "leads", term)
        assert machine.node is not None
        log = machine.node.engine.log
        # Everything committed in earlier terms: by log matching the last of these entries stands for all. An entry of
        # an earlier term may be committed in a later one, of which a leader that was paused need not know.
        index = self.highest_commit
        while index and self._committed_in[index] >= term:
            index -= 1
        if index and index > log.start.index and log.term_at(index) != self.commits[index]:
            raise Violation(
                "leader completeness",
                f"{machine.address} leads term {term} without the committed entry {index} of term "
                f"{self.commits[index]}: its log ends at {log.last_index}, term {log.last_term}",
            )
        for other in self._cluster.machines.values():
            if other is machine or other.node is None or not other.node.engine.is_leader:
                continue
            if other.node.engine.term < term and other.clock() < other.node.engine.read_index.lease_until:
                left = other.node.engine.read_index.lease_until - other.clock()
                raise Violation(
                    "lease",
                    f"{machine.address} leads term {term} while {other.address} holds a lease of term "
                    f"{other.node.engine.term} for {left:.3f} s",
                )

    def _knows_its_followers(self, machine: Machine, view: _View) -> None:
        """What a leader counts as stored elsewhere is there, and is what it has itself."""
        assert machine.node is not None
        engine = machine.node.engine
        for address, peer in engine.peers.items():
            index = peer.match_index
            if index != view.matches.get(address, 0):
                view.matches[address] = index
                term = engine.log.term_at(index)
                other = self._cluster.machines[address]
                if term is not None and not other.disk.shadow.holds(index, term):
                    raise Violation(
                        "match index",
                        f"{machine.address} leads term {engine.term} and counts entry {index} of term {term} as stored "
                        f"on {address}, which has {other.disk.shadow.log.get(index)}",
                    )

    def _vote_stored(self, address: str, vote: schema.Vote) -> None:
        known = self._cluster.machines[address].disk.shadow.vote
        if vote.term < known.term:
            raise Violation("terms", f"{address}: the term on disk goes back from {known} to {vote}")
        if vote.term == known.term and known.voted_for is not None and vote.voted_for != known.voted_for:
            raise Violation("one vote", f"{address}: the vote on disk changes from {known} to {vote}")

    def _vote_sent(self, machine: Machine, term: int, candidate: str) -> None:
        stored = machine.disk.shadow.vote
        # A later term on disk does as well: this node will never again vote in the earlier one.
        if stored.term < term or (stored.term == term and stored.voted_for != candidate):
            raise Violation(
                "durability", f"{machine.address} votes for {candidate} in term {term}; on its disk: {stored}"
            )
        known = self._votes.setdefault((term, machine.address), candidate)
        if known != candidate:
            raise Violation("one vote", f"{machine.address} votes for {known} and {candidate} in term {term}")

    def _term_stored(self, machine: Machine, message: Message) -> None:
        stored = machine.disk.shadow.vote
        if stored.term < message.term:
            raise Violation("durability", f"{machine.address} tells of term {message.term}; on its disk: {stored}")

    # -- the log ----------------------------------------------------------------------------------------------------

    def _matches(self, address: str, index: int, term: int, crc: int, before: int) -> None:
        known = self._entries.setdefault((index, term), (crc, before))
        if known != (crc, before):
            raise Violation(
                "log matching",
                f"entry {index} of term {term} on {address} has checksum {crc} and follows term {before}; elsewhere "
                f"it is {known[0]} and follows {known[1]}",
            )

    def _committed_on(self, machine: Machine, old: int, new: int) -> None:
        assert machine.node is not None
        log = machine.node.engine.log
        for index in range(max(old, log.start.index - 1) + 1, new + 1):
            term = log.term_at(index)
            if term is None:
                raise Violation("commit", f"{machine.address} takes {index} as committed, and has no such entry")
            if index > log.start.index or term:
                self._commits(machine, index, term)
        self.highest_commit = max(self.highest_commit, new)
        if not self._commit_indices or new > self._commit_indices[-1]:
            self._commit_times.append(machine.time)
            self._commit_indices.append(new)

    def _commits(self, machine: Machine, index: int, term: int) -> None:
        assert machine.node is not None
        known = self.commits.get(index)
        if known == term:
            return
        if known is not None:
            raise Violation(
                "state machine safety",
                f"{machine.address} takes entry {index} of term {term} as committed, which was committed with {known}",
            )
        self.commits[index] = term
        self._committed_in[index] = machine.node.engine.term
        machines = self._cluster.machines.values()
        holders = [other.address for other in machines if other.disk.shadow.holds(index, term)]
        if len(holders) * 2 <= len(machines):
            raise Violation(
                "commit",
                f"{machine.address} takes entry {index} of term {term} as committed, which only {holders} have on disk",
            )

    # -- the state --------------------------------------------------------------------------------------------------

    def _applied(self, machine: Machine, index: int, command: bytes, outcome: Outcome) -> None:
        if index > self.first_applied:
            if index != self.first_applied + 1:
                raise Violation("apply", f"{machine.address} applies {index}; nobody applied {self.first_applied + 1}")
            self.first_applied = index
            self._take_effects(index, command, outcome)
        self._state(machine, "applied")

    def _state(self, machine: Machine, how: str) -> None:
        assert machine.node is not None
        state = machine.node.machine
        index = state.applied_index
        digest = state_digest(state)
        known = self._digests.setdefault(index, digest)
        if known != digest:
            raise Violation(
                "determinism",
                f"the state of {machine.address} at {index} ({how}) is not the one that others have: "
                f"revision {state.revision}, {len(state.items)} items, sessions {list(state.sessions.items())}",
            )

    def _take_effects(self, index: int, command: bytes, outcome: Outcome) -> None:
        if not isinstance(outcome, BatchApplied) or not isinstance(outcome.results, list):
            return
        batch = cmd.decode(command)
        assert isinstance(batch, cmd.Batch)
        for operation, result in zip(batch.operations, outcome.results, strict=False):
            marker = marker_of(operation)
            if marker is None:
                continue
            known = self.effects.get(marker)
            if known is None:
                self.effects[marker] = Effect(index, result)
            elif known.result != result or not self._is_repetition(batch, index):
                raise Violation("exactly once", f"{marker} was applied by entry {known.index} and again by {index}")

    def _is_repetition(self, batch: cmd.Batch, index: int) -> bool:
        """Whether the state machine says that this entry changed nothing: its session was last used before."""
        for machine in self._cluster.machines.values():
            if machine.node is not None and machine.node.machine.applied_index == index:
                session = machine.node.machine.sessions.get(batch.session)
                return session is not None and session.used < index
        return False

    # -- knowledge --------------------------------------------------------------------------------------------------

    def _fresh(self, machine: Machine, fresh_as_of: float, applied: int) -> None:
        since = self._cluster.loop.now if fresh_as_of == float("inf") else machine.true_time(fresh_as_of)
        position = bisect_right(self._commit_times, since - 1e-6)
        index = self._commit_indices[position - 1] if position else 0
        if index > applied:
            assert machine.node is not None
            raise Violation(
                "freshness",
                f"{machine.address}, {machine.node.engine.role.name.lower()}, believes to know everything up to "
                f"{since:.4f}, when {index} was committed; it has applied {applied}",
            )


class _NoCodec:
    """For a state machine that never applies anything."""

    def encode(self, value: Any, /) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes, /) -> Any:
        raise NotImplementedError


def marker_of(operation: cmd.Operation) -> str | None:
    """What tells a write from all others: the value it brings."""
    if isinstance(operation, cmd.Update):
        value = operation.items[0][1]
    elif isinstance(operation, cmd.Put | cmd.Add | cmd.SetDefault | cmd.CompareAndSet | cmd.Replace):
        value = operation.value
    else:
        return None
    text = msgspec.msgpack.decode(value, type=str)
    return text.split("|")[0]

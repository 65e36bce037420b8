"""What keeps the engine safe, taken out one at a time: the simulator must notice.

Each guard is a generator that yields (object, attribute, replacement) for what the product would be without it; its
docstring says what it prevents. `without` puts the replacements in force for a while. `row` names the defect of
PySyncObj (design.md, section 6) or the rule that the guard stands for, and `within` the seeds that finding it may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import msgspec

from replidict import commands as cmd
from replidict import proposals, reads
from replidict.errors import StorageError
from replidict.options import Options
from replidict.raft import elections, engine, peer, read_index, replication, snapshots, transfer
from replidict.raft.messages import AppendEntries, AppendReply, ConfirmLeader, SnapshotPiece, VoteReply
from replidict.raft.role import Role
from replidict.state_machine import BatchApplied, Outcome, Refusal, Session, StateMachine
from replidict.storage import log, schema, store
from replidict.storage.snapshot import Snapshot
from tests.simulator import scenarios
from tests.simulator.scenarios import Scenario

Replacements = Iterator[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Guard:
    """One guard, and how to take it out."""

    name: str
    row: str
    prevents: str
    within: int
    remove: Callable[[], Replacements]
    scenario: Scenario | None = None
    nodes: int = 3  # in the scenario


GUARDS: dict[str, Guard] = {}
STORY_OPTIONS = Options(lease_reads=True)


def guard(
    row: str, within: int = 0, scenario: Scenario | None = None, nodes: int = 3
) -> Callable[[Callable[[], Replacements]], Callable[[], Replacements]]:
    """Register a guard under the name of the function; with a scenario, that is what finds it."""

    def register(remove: Callable[[], Replacements]) -> Callable[[], Replacements]:
        name = remove.__name__.replace("_", "-")
        assert remove.__doc__ is not None
        GUARDS[name] = Guard(name, row, " ".join(remove.__doc__.split()), within, remove, scenario, nodes)
        return remove

    return register


@contextmanager
def without(name: str | None) -> Iterator[None]:
    """Take a guard out; None: all stay."""
    with ExitStack() as stack:
        if name is not None:
            for owner, attribute, replacement in GUARDS[name].remove():
                stack.enter_context(mock.patch.object(owner, attribute, replacement))
        yield


# -- the log ----------------------------------------------------------------------------------------------------------


@guard("E1", 25)
def delete_only_from_a_conflict() -> Replacements:
    """A message that comes late deletes entries that match, and that may be committed."""

    def match(self: replication.Replication, message: AppendEntries) -> int | None:
        held = self._engine.log
        if message.prev_index >= held.start.index and held.term_at(message.prev_index) != message.prev_term:
            return None
        entries = [entry for entry in message.entries if entry.index > held.start.index]
        if entries:
            if entries[0].index <= held.last_index:
                held.cut(entries[0].index)
            self._engine.extend(entries)
        return message.prev_index + len(message.entries)

    yield replication.Replication, "_match", match


@guard("E1", scenario=scenarios.no_entry_is_deleted_or_sent_again)
def never_lower_next_index() -> Replacements:
    """The leader sends again what is under way (and, with PySyncObj, the follower deletes it first)."""

    def acknowledged(self: peer.Peer, match_index: int) -> None:
        original(self, match_index)
        self.next_index = match_index + 1

    original = peer.Peer.acknowledged
    yield peer.Peer, "acknowledged", acknowledged


@guard("fig. 2, rule 2", 25)
def refuse_what_does_not_follow() -> Replacements:
    """Entries are taken after a predecessor that is not the leader's: logs fork."""

    def match(self: replication.Replication, message: AppendEntries) -> int | None:
        held = self._engine.log
        if message.prev_index > held.last_index:
            return None
        for position, entry in enumerate(message.entries):
            if entry.index <= held.start.index:
                continue
            term = held.term_at(entry.index)
            if term != entry.term:
                if term is not None:
                    self._engine.cut(entry.index)
                self._engine.extend(message.entries[position:])
                break
        return message.prev_index + len(message.entries)

    yield replication.Replication, "_match", match


@guard("E1", 25)
def acknowledge_what_was_verified() -> Replacements:
    """A follower acknowledges the end of its log, of which the message said nothing."""

    def match(self: replication.Replication, message: AppendEntries) -> int | None:
        found = original(self, message)
        return None if found is None else self._engine.log.last_index

    original = replication.Replication._match
    yield replication.Replication, "_match", match


@guard("E2", scenario=scenarios.a_late_acknowledgement, nodes=5)
def terms_on_acknowledgements() -> Replacements:
    """A late acknowledgement of an earlier term counts for a leader that was elected again."""

    def on_reply(self: replication.Replication, sender: peer.Peer, message: AppendReply) -> None:
        if message.term < self._engine.term:
            message = msgspec.structs.replace(message, term=self._engine.term)
        original(self, sender, message)

    original = replication.Replication._on_reply
    yield replication.Replication, "_on_reply", on_reply
    yield from _handled(AppendReply, on_reply, "replication")


def _handled(kind: type, handler: Callable[..., None], part: str) -> Replacements:
    """Handlers are bound when the engine is made: have another one bound."""

    def on(self: engine.Engine, registered: type, method: Callable[..., None]) -> None:
        if registered is kind:
            owner = method.__self__  # type: ignore[attr-defined]
            original(self, registered, lambda sender, message: handler(owner, sender, message))
        else:
            original(self, registered, method)

    original = engine.Engine.on
    yield engine.Engine, "on", on


@guard("E3", 25)
def acknowledge_after_the_disk() -> Replacements:
    """An append is acknowledged before it is on disk."""

    def hold(self: engine.Engine, receiver: peer.Peer, message: Any) -> None:
        if isinstance(message, AppendReply):
            self.send(receiver, message)
        else:
            original(self, receiver, message)

    original = engine.Engine.hold
    yield engine.Engine, "hold", hold


@guard("E3", 25)
def vote_after_the_disk() -> Replacements:
    """A vote is given before it is on disk: after a crash the node votes again."""

    def hold(self: engine.Engine, receiver: peer.Peer, message: Any) -> None:
        if isinstance(message, VoteReply):
            self.send(receiver, message)
        else:
            original(self, receiver, message)

    original = engine.Engine.hold
    yield engine.Engine, "hold", hold


@guard("E3", 25)
def own_vote_on_disk_first() -> Replacements:
    """A candidate asks for votes before its own is on disk."""

    def stand(self: elections.Elections, *, transfer: bool) -> None:
        e = self._engine
        e.become(Role.CANDIDATE, e.term + 1, None, voted_for=e.address)
        self._ask(pre=False, transfer=transfer)
        self._count()

    yield elections.Elections, "_stand", stand


@guard("E3", 25)
def keep_the_vote() -> Replacements:
    """Term and vote live in memory only: after a restart the node votes again."""

    def set_vote(self: store.Store, term: int, voted_for: str | None) -> None:
        pass

    yield store.Store, "set_vote", set_vote


@guard("E3", scenario=scenarios.a_leader_counts_what_it_has_stored)
def leader_counts_its_disk() -> Replacements:
    """The leader counts itself for entries that it has not written yet."""

    def append(self: log.Log, entries: list[Any]) -> None:
        original(self, entries)
        self.durable_index = self.last_index

    original = log.Log.append
    yield log.Log, "append", append


@guard("promise 8", 25)
def stop_at_a_failed_commit() -> Replacements:
    """A commit that failed is taken for done."""

    def commit(self: store.Store, *arguments: int) -> None:
        try:
            original(self, *arguments)
        except StorageError:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._failed = None
            self.log.durable_index = self.log.last_index
            self.log.appended.clear()
            self.log.cut_from = None
            self._dirty = False

    original = store.Store.commit
    yield store.Store, "commit", commit


@guard("E4", 25)
def state_and_index_in_one_transaction() -> Replacements:
    """A crash parts the state table from its applied index."""

    def flush(self: store.Store) -> None:
        original(self)
        rows = self.applied
        self._db.execute("DELETE FROM fact WHERE name = 'applied'")
        before = getattr(self, "_applied_before", schema.Applied())
        self._put_fact("applied", before)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")
        self._put_fact("applied", rows)
        self._applied_before = rows  # type: ignore[attr-defined]

    def init(self: store.Store, *arguments: Any, **options: Any) -> None:
        original_init(self, *arguments, **options)
        self._applied_before = self.applied  # type: ignore[attr-defined]

    original, original_init = store.Store._flush, store.Store.__init__
    yield store.Store, "_flush", flush
    yield store.Store, "__init__", init


@guard("E4", 25)
def compact_only_what_is_covered() -> Replacements:
    """The log is cut short beyond what the state table covers: a restart has lost entries."""

    def compact(self: store.Store, most: int) -> None:
        held = self.log
        last = min(held.durable_index, held.last_index - self.log_retain)
        if last > held.start.index:
            term = held.term_at(last)
            assert term is not None
            self._db.execute("DELETE FROM log WHERE idx <= ?", (last,))
            held.compact(last, term)
            self._put_fact("log_start", held.start)

    yield store.Store, "_compact", compact


# -- what is committed ------------------------------------------------------------------------------------------------


@guard("5.4.2", scenario=scenarios.figure_8)
def commit_by_counting_own_term_only() -> Replacements:
    """An entry of an earlier term is taken as committed because a majority holds it (figure 8)."""

    def advance(self: replication.Replication) -> None:
        e = self._engine
        if not e.is_leader:
            return
        stored = sorted(
            (e.log.durable_index if a == e.address else e.peers[a].match_index for a in e.members.voters), reverse=True
        )
        e.commit_index = max(e.commit_index, stored[len(stored) // 2])

    yield replication.Replication, "advance_commit_index", advance


@guard("fig. 2, rule 5", 25)
def commit_only_what_was_verified() -> Replacements:
    """A follower takes entries as committed that the leader never said it shares."""

    def commit_to(self: replication.Replication, commit_index: int) -> None:
        e = self._engine
        e.commit_index = max(e.commit_index, min(commit_index, e.log.last_index))

    yield replication.Replication, "_commit_to", commit_to


# -- elections --------------------------------------------------------------------------------------------------------


@guard("5.4.1", 25)
def vote_for_complete_logs_only() -> Replacements:
    """A node leads that lacks committed entries."""

    def may_vote(self: elections.Elections, candidate: peer.Peer, message: Any, asked: int) -> bool:
        e = self._engine
        return asked > e.term if message.pre else asked == e.term and e.voted_for in (None, candidate.address)

    yield elections.Elections, "_may_vote", may_vote


@guard("5.2", 25)
def one_vote_a_term() -> Replacements:
    """A node votes twice in a term: two lead it."""

    def may_vote(self: elections.Elections, candidate: peer.Peer, message: Any, asked: int) -> bool:
        held = self._engine.log
        if (message.last_term, message.last_index) < (held.last_term, held.last_index):
            return False
        return asked > self._engine.term if message.pre else asked == self._engine.term

    yield elections.Elections, "_may_vote", may_vote


@guard("E12", 25)
def votes_of_this_election_only() -> Replacements:
    """A vote for another term, or a mere promise to vote, counts as a vote."""

    def on_reply(self: elections.Elections, sender: peer.Peer, message: VoteReply) -> None:
        self.see_term(message.term)
        if message.granted and self._engine.role is not Role.LEADER:
            self._votes.add(sender.address)
            self._count()

    yield from _handled(VoteReply, on_reply, "elections")


@guard("E12", scenario=scenarios.a_voter_counts_once, nodes=5)
def count_voters() -> Replacements:
    """A vote that is heard twice counts twice."""

    def on_reply(self: elections.Elections, sender: peer.Peer, message: VoteReply) -> None:
        e = self._engine
        if message.granted and e.role is Role.CANDIDATE and message.asked == e.term and not message.pre:
            heard = getattr(self, "_heard", 1) + 1
            self._heard = heard  # type: ignore[attr-defined]
            if heard * 2 > len(e.members.voters):
                self._lead()

    yield from _handled(VoteReply, on_reply, "elections")


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
        if not self._engine.is_leader:
            original(self)

    original = elections.Elections.tick
    yield elections.Elections, "tick", tick


@guard("E12, thesis 6.4.1", scenario=scenarios.a_voter_is_true_to_its_leader)
def silence_towards_candidates() -> Replacements:
    """Voters elect another leader while the present one holds a lease."""

    def leader_is_alive(self: elections.Elections) -> bool:
        return False

    yield elections.Elections, "_leader_is_alive", leader_is_alive


@guard("thesis 6.4.1", scenario=scenarios.a_voter_is_true_after_a_restart)
def silence_after_a_restart() -> Replacements:
    """A node forgets, by restarting, that it promised a leader its silence."""

    def init(self: elections.Elections, e: engine.Engine) -> None:
        original(self, e)
        self._heard_leader_at = float("-inf")

    original = elections.Elections.__init__
    yield elections.Elections, "__init__", init


@guard("fig. 2, all servers", 25)
def follow_higher_terms() -> Replacements:
    """A node does not take over a higher term: it can't vote, and a deposed leader goes on."""

    def see_term(self: elections.Elections, term: int) -> None:
        pass

    yield elections.Elections, "see_term", see_term


# -- snapshots --------------------------------------------------------------------------------------------------------


@guard("E5", 25)
def acknowledge_a_snapshot_when_installed() -> Replacements:
    """A snapshot is acknowledged when it has arrived, whether or not it can be installed."""

    def on_piece(self: snapshots.Snapshots, sender: peer.Peer, message: SnapshotPiece) -> None:
        original(self, sender, message)
        incoming = self._incoming
        if incoming is not None and incoming.checking is not None:
            self._answer(sender, message, installed=True)

    original = snapshots.Snapshots._on_piece
    yield from _handled(SnapshotPiece, on_piece, "snapshots")


@guard("E5", 100)
def check_a_snapshot() -> Replacements:
    """A snapshot that was damaged on its way is installed."""

    def install(self: snapshots.Snapshots, incoming: Any) -> None:
        message = incoming.message
        said = message.last_index, message.last_term, 0, message.sha256, 0, 0, None
        incoming.checking = _Done(Snapshot(incoming.path, *said))
        original(self, incoming)

    original = snapshots.Snapshots._install
    yield snapshots.Snapshots, "_install", install


class _Done:
    """A future whose result is known."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


@guard("E6", 100)
def refuse_old_snapshots() -> Replacements:
    """A snapshot that is older than the state takes a follower back."""

    def is_no_news(self: snapshots.Snapshots, index: int, term: int) -> bool:
        return False

    yield snapshots.Snapshots, "_is_no_news", is_no_news


@guard("fig. 13, rule 6", scenario=scenarios.a_snapshot_of_what_is_known)
def keep_the_log_after_a_snapshot() -> Replacements:
    """A snapshot of what the log already holds throws away the entries after it, which may be committed."""

    def is_no_news(self: snapshots.Snapshots, index: int, term: int) -> bool:
        return index <= self._engine.last_applied

    yield snapshots.Snapshots, "_is_no_news", is_no_news


# -- the state machine and its clients --------------------------------------------------------------------------------


@guard("6.3", 25)
def apply_a_batch_once() -> Replacements:
    """A batch that was sent twice is applied twice."""

    def apply_batch(self: StateMachine, index: int, batch: cmd.Batch) -> list[cmd.Result] | Refusal:
        session = self.sessions.get(batch.session)
        if session is None:
            return Refusal.NO_SESSION
        results = [self._perform(operation) for operation in batch.operations]
        self._keep_session(batch.session, Session(batch.sequence, index, ((batch.sequence, results),)))
        return results

    yield StateMachine, "_apply_batch", apply_batch


@guard("6.3", scenario=scenarios.a_batch_that_overtakes)
def refuse_a_gap() -> Replacements:
    """A batch overtakes an earlier one that was lost, which then counts as applied."""

    def apply_batch(self: StateMachine, index: int, batch: cmd.Batch) -> list[cmd.Result] | Refusal:
        session = self.sessions.get(batch.session)
        if session is not None and batch.sequence > session.sequence + 1:
            replies = session.replies
            self._keep_session(batch.session, Session(batch.sequence - 1, session.used, replies))
        return original(self, index, batch)

    original = StateMachine._apply_batch
    yield StateMachine, "_apply_batch", apply_batch


@guard("E7", 25)
def operations_never_raise() -> Replacements:
    """One operation that raises ends every node, again and again."""

    def perform(self: StateMachine, operation: cmd.Operation) -> cmd.Result:
        return module._PERFORM[type(operation)](self, operation)

    from replidict import state_machine as module

    yield StateMachine, "_perform", perform


@guard("promise 5", 25)
def nothing_but_the_log_decides() -> Replacements:
    """An apply that depends on something of this node's (here: whether it has restarted) makes nodes differ."""

    def store_item(self: StateMachine, key: Any, encoded: bytes, value: bytes, revision: int) -> None:
        if not self.items and self.revision > 20:
            self._next_position = 1
        original(self, key, encoded, value, revision)

    def load(self: StateMachine, *arguments: Any, **options: Any) -> None:
        original_load(self, *arguments, **options)
        self.revision += self.applied_index > 0

    original, original_load = StateMachine._store, StateMachine.load
    yield StateMachine, "_store", store_item
    yield StateMachine, "load", load


@guard("E10", 25)
def send_again_what_may_be_lost() -> Replacements:
    """A command that was lost with its connection, or answered in a snapshot, is never asked about again."""

    def on_snapshot_installed(self: proposals.Proposals) -> None:
        self._snapshots += 1

    def route(self: proposals.Proposals) -> object:
        found = original(self)
        return found if found is None or isinstance(found, int) else "a follower"

    original = proposals.Proposals._route
    yield proposals, "RETRY_AFTER", float("inf")
    yield proposals.Proposals, "_route", route
    yield proposals.Proposals, "on_snapshot_installed", on_snapshot_installed


@guard("E11", 25)
def refuse_only_what_was_not_sent() -> Replacements:
    """A write that was sent is called not committed, and commits."""

    def give_up(self: proposals.Proposals, write: proposals.Write) -> bool:
        original(self, write)
        return True

    original = proposals.Proposals.give_up
    yield proposals.Proposals, "give_up", give_up


@guard("promise 2", 25)
def answer_when_applied_here() -> Replacements:
    """A result is told under the wrong name: answers of another session count as this node's."""

    def on_outcome(self: proposals.Proposals, outcome: Outcome) -> None:
        if isinstance(outcome, BatchApplied) and self._session is not None:
            outcome = outcome._replace(session=self._session)
        original(self, outcome)

    original = proposals.Proposals.on_outcome
    yield proposals.Proposals, "on_outcome", on_outcome


# -- reads ------------------------------------------------------------------------------------------------------------


@guard("thesis 6.4, step 3", scenario=scenarios.a_deposed_leader_serves_no_read)
def a_round_for_each_read() -> Replacements:
    """A deposed leader that does not know it yet answers a linearizable read."""

    def begin_round(self: read_index.ReadIndex, answers: list[read_index.Answer]) -> None:
        e = self._engine
        known = e.is_leader and e.log.term_at(e.commit_index) == e.term
        for answer in answers:
            answer(e.commit_index if known else None)

    yield read_index.ReadIndex, "_begin_round", begin_round


@guard("thesis 6.4, step 1", 40)
def read_after_an_entry_of_the_own_term() -> Replacements:
    """A new leader, which does not know yet what is committed, answers a linearizable read."""

    def begin_round(self: read_index.ReadIndex, answers: list[read_index.Answer]) -> None:
        e = self._engine
        if not e.is_leader or e.log.term_at(e.commit_index) == e.term:
            original(self, answers)
            return
        if e.term != self._term:
            self._term = e.term
            self._began.clear()
            self._acked.clear()
        self._round += 1
        self._began[self._round] = e.clock()
        self._waiting += [(self._round, e.commit_index, answer) for answer in answers]
        for other in e.peers.values():
            e.send(other, ConfirmLeader(e.term, self._round))

    original = read_index.ReadIndex._begin_round
    yield read_index.ReadIndex, "_begin_round", begin_round


@guard("thesis 6.4, step 4", 25)
def wait_for_the_read_index() -> Replacements:
    """A read is served before this node has applied what it must see."""

    def release(self: reads.Reads) -> None:
        while self._waiting:
            for read in self._waiting.pop(0)[2]:
                read.done()

    yield reads.Reads, "release", release


@guard("thesis 6.4.1", 200)
def a_lease_shorter_than_the_silence() -> Replacements:
    """A lease outlives the time for which voters keep silent."""
    yield read_index, "CLOCK_DRIFT", -1.0


@guard("thesis 6.4.1", scenario=scenarios.a_lease_ends_with_a_transfer)
def no_lease_after_a_transfer() -> Replacements:
    """A leader that asked another one to stand still reads under its lease."""

    def tick(self: transfer.Transfer) -> None:
        until = self._engine.read_index.lease_until
        original(self)
        self.lease_ended_in = 0
        self._engine.read_index.lease_until = until

    original = transfer.Transfer.tick
    yield transfer.Transfer, "tick", tick


@guard("section 7", 25)
def fresh_by_own_term_only() -> Replacements:
    """A new leader tells followers that they are up to date, before it knows what is committed (found: S1)."""

    def send(self: replication.Replication, receiver: peer.Peer, *arguments: Any) -> bool:
        term = self._engine.term

        def term_at(held: log.Log, index: int) -> int:
            return term

        with mock.patch.object(log.Log, "term_at", term_at):
            return original(self, receiver, *arguments)

    original = replication.Replication._send
    yield replication.Replication, "_send", send


@guard("section 7", 25)
def fresh_when_applied() -> Replacements:
    """A node believes itself fresh though it has not applied yet what it knows to be committed (found: S2)."""

    def note_time(self: read_index.ReadIndex) -> None:
        e = self._engine
        applied = e._SyncObj__raftLastApplied
        e._SyncObj__raftLastApplied = 1 << 60
        try:
            original(self)
        finally:
            e._SyncObj__raftLastApplied = applied

    original = read_index.ReadIndex._note_time
    yield read_index.ReadIndex, "_note_time", note_time

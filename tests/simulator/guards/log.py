"""Guards of the log, of the disk and of snapshots."""

from __future__ import annotations

from typing import Any

import msgspec

from replidict.errors import StorageError
from replidict.protocol.peer_messages import AppendEntries, AppendReply, SnapshotPiece, VoteReply
from replidict.raft import append_entries, elections, install_snapshot, outbox, progress, replication
from replidict.raft.role import Role
from replidict.storage import log, records, store
from replidict.storage.snapshot import Snapshot
from tests.simulator import scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("E1", 25)
def delete_only_from_a_conflict() -> Replacements:
    """A message that comes late deletes entries that match, and that may be committed."""

    def match(self: append_entries.Follower, message: AppendEntries) -> int | None:
        held = self._state.log
        if message.prev_index >= held.start.index and held.term_at(message.prev_index) != message.prev_term:
            return None
        entries = [entry for entry in message.entries if entry.index > held.start.index]
        if entries:
            if entries[0].index <= held.last_index:
                held.cut(entries[0].index)
            self._log.extend(entries)
        return message.prev_index + len(message.entries)

    yield append_entries.Follower, "_match", match


@guard("E1", scenario=scenarios.no_entry_is_deleted_or_sent_again)
def never_lower_next_index() -> Replacements:
    """The leader sends again what is under way (and, with PySyncObj, the follower deletes it first)."""

    def acknowledged(self: progress.Peer, match_index: int) -> None:
        original(self, match_index)
        self.next_index = match_index + 1

    original = progress.Peer.acknowledged
    yield progress.Peer, "acknowledged", acknowledged


@guard("fig. 2, rule 2", 25)
def refuse_what_does_not_follow() -> Replacements:
    """Entries are taken after a predecessor that is not the leader's: logs fork."""

    def match(self: append_entries.Follower, message: AppendEntries) -> int | None:
        held = self._state.log
        if message.prev_index > held.last_index:
            return None
        for position, entry in enumerate(message.entries):
            if entry.index <= held.start.index:
                continue
            term = held.term_at(entry.index)
            if term != entry.term:
                if term is not None:
                    self._log.cut(entry.index)
                self._log.extend(message.entries[position:])
                break
        return message.prev_index + len(message.entries)

    yield append_entries.Follower, "_match", match


@guard("E1", 150)
def acknowledge_what_was_verified() -> Replacements:
    """A follower acknowledges the end of its log, of which the message said nothing."""

    def match(self: append_entries.Follower, message: AppendEntries) -> int | None:
        found = original(self, message)
        return None if found is None else self._state.log.last_index

    original = append_entries.Follower._match
    yield append_entries.Follower, "_match", match


@guard("E2", scenario=scenarios.a_late_acknowledgement, nodes=5)
def terms_on_acknowledgements() -> Replacements:
    """A late acknowledgement of an earlier term counts for a leader that was elected again."""

    def on_append_reply(self: replication.Replication, sender: progress.Peer, message: AppendReply) -> None:
        if message.term < self._state.term:
            message = msgspec.structs.replace(message, term=self._state.term)
        original(self, sender, message)

    original = replication.Replication.on_append_reply
    yield replication.Replication, "on_append_reply", on_append_reply


def sent_at_once(kind: type[Any]) -> Replacements:
    """Messages of this kind do not wait for the disk."""

    def hold(self: outbox.Outbox, receiver: progress.Peer, message: Any) -> None:
        if isinstance(message, kind):
            self.send(receiver, message)
        else:
            original(self, receiver, message)

    original = outbox.Outbox.hold
    yield outbox.Outbox, "hold", hold


@guard("E3", 25)
def acknowledge_after_the_disk() -> Replacements:
    """An append is acknowledged before it is on disk."""
    return sent_at_once(AppendReply)


@guard("E3", 25)
def vote_after_the_disk() -> Replacements:
    """A vote is given before it is on disk: after a crash the node votes again."""
    return sent_at_once(VoteReply)


@guard("E3", 25)
def own_vote_on_disk_first() -> Replacements:
    """A candidate asks for votes before its own is on disk."""

    def stand(self: elections.Elections, *, transfer: bool) -> None:
        state = self._state
        self._become(Role.CANDIDATE, state.term + 1, None, voted_for=state.address)
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

    def move_on(self: store.Store, applied: records.Applied) -> None:
        original(self, applied)
        rows = self.applied
        self._db.execute("DELETE FROM fact WHERE name = 'applied'")
        before = getattr(self, "_applied_before", records.Applied())
        self._put_fact("applied", before)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")
        self._put_fact("applied", rows)
        self._applied_before = rows  # type: ignore[attr-defined]

    def init(self: store.Store, *arguments: Any, **options: Any) -> None:
        original_init(self, *arguments, **options)
        self._applied_before = self.applied  # type: ignore[attr-defined]

    original, original_init = store.Store._move_on, store.Store.__init__
    yield store.Store, "_move_on", move_on
    yield store.Store, "__init__", init


@guard("E4", 25)
def compact_only_what_is_covered() -> Replacements:
    """The log is cut short beyond what the state table covers: a restart has lost entries."""

    def compact(self: store.Store) -> None:
        held = self.log
        last = min(held.durable_index, held.last_index - self.log_retain)
        if last > held.start.index:
            term = held.term_at(last)
            assert term is not None
            self._db.execute("DELETE FROM log WHERE idx <= ?", (last,))
            held.compact(last, term)
            self._put_fact("log_start", held.start)

    yield store.Store, "_compact", compact


@guard("5.4.2", scenario=scenarios.figure_8)
def commit_by_counting_own_term_only() -> Replacements:
    """An entry of an earlier term is taken as committed because a majority holds it (figure 8)."""

    def advance(self: replication.Replication) -> None:
        state = self._state
        if state.is_leader:
            stored = sorted(
                state.log.durable_index if address == state.address else state.peers[address].match_index
                for address in state.members.voters
            )
            state.commit_index = max(state.commit_index, stored[(len(stored) - 1) // 2])

    yield replication.Replication, "advance_commit_index", advance


@guard("fig. 2, rule 5", 150)
def commit_only_what_was_verified() -> Replacements:
    """A follower takes entries as committed that the leader never said it shares."""

    def commit_to(self: append_entries.Follower, commit_index: int) -> None:
        state = self._state
        state.commit_index = max(state.commit_index, min(commit_index, state.log.last_index))

    yield append_entries.Follower, "_commit_to", commit_to


@guard("E5", 25)
def acknowledge_a_snapshot_when_installed() -> Replacements:
    """A snapshot is acknowledged when it has arrived, whether or not it can be installed."""

    def on_snapshot_piece(
        self: install_snapshot.InstallSnapshot, sender: progress.Peer, message: SnapshotPiece
    ) -> None:
        original(self, sender, message)
        incoming = self._incoming
        if incoming is not None and incoming.checking is not None:
            self._answer(sender, message, installed=True)

    original = install_snapshot.InstallSnapshot.on_snapshot_piece
    yield install_snapshot.InstallSnapshot, "on_snapshot_piece", on_snapshot_piece


@guard("fig. 13", scenario=scenarios.a_snapshot_that_does_not_fit_at_first)
def go_on_when_there_is_room() -> Replacements:
    """A snapshot whose first piece meets a full queue is never sent, and the log is kept for it for ever."""
    yield install_snapshot.InstallSnapshot, "heard", lambda self, sender: None


@guard("E5", 100)
def check_a_snapshot() -> Replacements:
    """A snapshot that was damaged on its way is installed."""

    def install(self: install_snapshot.InstallSnapshot, incoming: Any) -> None:
        message = incoming.message
        said = message.last_index, message.last_term, 0, message.sha256, 0, 0, 1, None
        incoming.checking = _Done(Snapshot(incoming.path, *said))
        original(self, incoming)

    original = install_snapshot.InstallSnapshot._install
    yield install_snapshot.InstallSnapshot, "_install", install


class _Done:
    """A future whose result is known."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


@guard("E6", 100)
def refuse_old_snapshots() -> Replacements:
    """A snapshot that is older than the state takes a follower back."""

    def is_no_news(self: install_snapshot.InstallSnapshot, index: int, term: int) -> bool:
        return False

    yield install_snapshot.InstallSnapshot, "_is_no_news", is_no_news


@guard("fig. 13, rule 6", scenario=scenarios.a_snapshot_of_what_is_known)
def keep_the_log_after_a_snapshot() -> Replacements:
    """A snapshot of what the log already holds throws away the entries after it, which may be committed."""

    def is_no_news(self: install_snapshot.InstallSnapshot, index: int, term: int) -> bool:
        return index <= self._state.last_applied

    yield install_snapshot.InstallSnapshot, "_is_no_news", is_no_news

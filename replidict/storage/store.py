"""A node's durable state: what is written in one transaction, and in which order.

Rules kept here:

1. `commit` writes everything gathered since the last one in a single transaction, and returns once it is on disk.
   What is in memory only is never acknowledged, voted for or counted.
2. The state table trails the log. It moves from one applied index to a later one in one transaction with that index,
   so no crash can part them, and only what the table covers is ever deleted from the log.
3. Whatever fails to be written, and whatever is read that is not as it was written, is a `StorageError`; after one,
   the store does nothing more. A failed write is never tried again: the page cache may lie about it afterwards.
4. Whatever is raised while something is written, be it no error of SQLite's at all, counts as a failure to write:
   SQLite may have rolled back, or not, and what was to be written with it must not be written without it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from replidict.errors import StorageError
from replidict.logging_thread import Logger
from replidict.machine.changes import Changes
from replidict.machine.state_machine import StateMachine
from replidict.protocol.log_entry import Entry
from replidict.storage import large_values, records
from replidict.storage.bulk_insert import put
from replidict.storage.file_format import SHARED, FileFormat, has_kept
from replidict.storage.file_format import read as read_format
from replidict.storage.high_water_mark import HighWaterMark
from replidict.storage.large_values import LargeValues
from replidict.storage.loading import Wrong, load
from replidict.storage.log import Log
from replidict.storage.state_table import StateTable
from replidict.storage.whole_rows import log_rows

logger = Logger(__name__)

COMPACT_STEP = 5_000
"""Log entries are deleted in steps of at most this many: the write beside it waits."""

LOG_RETAIN_BYTES = 64 * 1024 * 1024
"""However few the retained log entries are, they take no more space than about this."""

FACTS = {"identity", "vote", "applied", "log_start", "members", "pins"}
RECOVERED = "recovered"
"""One more, which most files do not have: see `recovery`."""

_pack = msgspec.msgpack.encode


class Store:
    """All that a node keeps, over one SQLite connection. Used by the node's thread alone."""

    def __init__(
        self, connection: sqlite3.Connection, uri: str, *, log_retain: int, mark: HighWaterMark | None = None
    ) -> None:
        """Take over a checked connection to `uri`, in autocommit mode, and the mark beside it.

        Raises `StorageError` if what it holds does not fit together.
        """
        self.uri = uri
        self.name = uri.removeprefix("file://")
        self.log_retain = log_retain
        self.keep_log_after: int | None = None  # entries above this one are still wanted, however old
        self._db = connection
        self._mark = mark
        self._failed: StorageError | None = None
        self._interrupted = StorageError(f"{self.name}: a write was interrupted. This node has stopped")
        self._dirty = False
        self.commits = 0
        with self.errors("read"):
            self.format = FileFormat(connection)
            facts = self._read_facts()
            self.identity = msgspec.msgpack.decode(facts["identity"], type=records.Identity)
            self._vote = msgspec.msgpack.decode(facts["vote"], type=records.Vote)
            self.applied = msgspec.msgpack.decode(facts["applied"], type=records.Applied)
            self._members = msgspec.msgpack.decode(facts["members"], type=records.Members)
            self._pins = msgspec.msgpack.decode(facts["pins"], type=records.Pins).node_ids
            start = msgspec.msgpack.decode(facts["log_start"], type=records.LogStart)
            self.recovered = msgspec.msgpack.decode(facts.get(RECOVERED, b"\xc0"), type=records.Recovered | None)
            self.committed = 0
            self.log = self._load_log(start)
            self.large = LargeValues(connection, self.format, self.log, self.applied.index)
            self.table = StateTable(connection, self.format, self.large)
        if self._vote.term < self.log.last_term:
            raise self.broken(f"its term {self._vote.term} is below the last log entry's {self.log.last_term}")

        if self.committed > self.log.last_index:
            raise self.broken(f"entry {self.committed} was committed, but the log ends at {self.log.last_index}")
        vote = self._vote
        if mark is not None and (lost := mark.verify(vote.term, vote.voted_for, vote.cuts, self.log.last_index)):
            raise self.broken(lost)

    # -- reading --------------------------------------------------------------------------------------------------

    def _read_facts(self) -> dict[str, bytes]:
        facts = {}
        # By a scan of the table, all of it: a fact that an index can't find must not read as "there is none".
        for name, data, crc in self._db.execute("SELECT name, data, crc FROM fact NOT INDEXED"):
            if crc != records.fact_crc(name, data):
                raise self.broken(f"the checksum of {name!r} is wrong")
            facts[name] = data
        expected = FACTS | {"kept"} if self.format.keeps else FACTS
        if facts.keys() - {RECOVERED} != expected:
            raise self.broken(f"it holds the facts {sorted(facts)} instead of {sorted(expected)}")
        return facts

    def _load_log(self, start: records.LogStart) -> Log:
        sizes: list[int] = []
        tail: list[Entry] = []
        expected = start.index + 1
        last_term = start.term
        for index, term, command, committed, crc in log_rows(self._db, self.format.number):
            if index != expected:
                raise self.broken(f"log entry {expected} is missing (the next one is {index})")
            if crc != records.log_crc(index, term, command, committed):
                raise self.broken(f"the checksum of log entry {index} is wrong")
            if term < last_term:
                raise self.broken(f"log entry {index} has term {term}, below its predecessor's {last_term}")
            last_term = term
            expected += 1
            self.committed = max(self.committed, committed)
            sizes.append(len(command))
            if index > self.applied.index:
                tail.append(Entry(index, term, command))
        if not start.index <= self.applied.index < expected:
            raise self.broken(
                f"the state is at index {self.applied.index}, but the log holds {start.index + 1} to {expected - 1}"
            )
        return Log(start, sizes, tail, self._read_log)

    def _read_log(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        found: list[Entry] = []
        size = 0
        with self.errors("read"):
            rows = log_rows(self._db, self.format.number, first, last)
            for index, term, command, committed, crc in rows:
                if crc != records.log_crc(index, term, command, committed):
                    raise self.broken(f"the checksum of log entry {index} is wrong")
                size += len(command)
                if found and size > max_bytes:
                    break
                found.append(Entry(index, term, command))
            rows.close()
        if not found:
            raise self.broken(f"log entry {first} is missing")
        return found

    def load_into(self, machine: StateMachine) -> None:
        """Give the state machine what the tables hold. Raises `StorageError`."""
        with self.errors("read"):
            kept = self._read_facts().get("kept")
            rows = None if kept is None else msgspec.msgpack.decode(kept, type=records.Kept).rows
            try:
                load(self._db, machine, self.applied, rows)
            except Wrong as wrong:
                raise self.broken(str(wrong)) from wrong

    # -- what is to be written --------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """Figure 2, `currentTerm`."""
        return self._vote.term

    @property
    def voted_for(self) -> str | None:
        """Figure 2, `votedFor`: the address this node voted for in the current term."""
        return self._vote.voted_for

    @property
    def members(self) -> records.Members:
        """The last configuration known to be committed."""
        return self._members

    def set_vote(self, term: int, voted_for: str | None) -> None:
        """Note the term and the vote; written by the next commit."""
        if (term, voted_for) != (self._vote.term, self._vote.voted_for):
            assert term >= self._vote.term, "the term never goes back"
            self._vote = records.Vote(term, voted_for, self._vote.cuts)
            self._dirty = True

    def record(self, term: int, changes: Changes, members: records.Members | None = None) -> None:
        """Note what applied entries changed, and the configuration if one of them was one."""
        self.table.gather(term, changes)
        if members is not None and members.index > self._members.index:
            self.set_members(members)

    def set_members(self, members: records.Members) -> None:
        """Note a committed configuration; written by the next commit."""
        self._members = members
        # Whoever comes back under the address of a node that was removed is a new node.
        listed = {*members.voters, *members.learners}
        self._pins = {address: node_id for address, node_id in self._pins.items() if address in listed}
        self._dirty = True

    @property
    def pins(self) -> Mapping[str, str]:
        """The identities of the members met so far, by address."""
        return self._pins

    def pin(self, address: str, node_id: str) -> str | None:
        """Remember which node is at an address, durably. Returns the error text if it was another node."""
        known = self._pins.get(address)
        if known == node_id:
            return None
        if known is not None:
            return records.another_node(address, known, node_id)
        self._pins[address] = node_id
        with self.errors("write"), self._transaction():
            self._put_fact("pins", records.Pins(self._pins))
        return None

    # -- writing --------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether something waits for `commit` that others must not be told of before."""
        return self._dirty or bool(self.log.appended) or self.log.cut_from is not None

    @property
    def term_pending(self) -> bool:
        """Whether the term or the vote is among what waits."""
        return self._dirty

    def commit(self, commit_index: int = 0) -> None:
        """Write everything gathered, in one transaction, and return once it is on disk. Raises `StorageError`.

        `commit_index` is kept with the entries: up to there a restart applies without asking.
        """
        if not (self.log.appended or self.table.due or self.pending):
            return
        if self._failed is not None:
            raise self._failed
        try:
            if self.log.cut_from is not None:
                self._count_cut()
            db = self._db
            db.execute("BEGIN IMMEDIATE")
            self._write(commit_index)
            db.execute("COMMIT")
            self.commits += 1
            self.table.written()
            self.log.written()
            self._dirty = False
            self._note()
            self.log.release_memory(self.applied.index)
        except BaseException as error:
            self._fail("write", error)
            raise

    def _count_cut(self) -> None:
        self._vote = msgspec.structs.replace(self._vote, cuts=self._vote.cuts + 1)
        self._dirty = True

    def _note(self) -> None:
        if self._mark is not None:
            self._mark.note(self._vote.term, self._vote.voted_for, self._vote.cuts, self.log.durable_index)

    def flush(self) -> None:
        """Bring the state table up to date with all that is applied. Raises `StorageError`."""
        self.commit()  # the members first: a restart looks for those that it does not know above the applied index only
        while self.table.behind:
            self._follow()

    def _follow(self) -> None:
        with self.errors("write"):
            with self._transaction():
                self._move_on(self.table.follow())
            self.table.written()

    def _write(self, commit_index: int) -> None:
        db, log = self._db, self.log
        if log.cut_from is not None:
            db.execute("DELETE FROM log WHERE idx >= ?", (log.cut_from,))
            if self.format.has_large:
                self.large.cut_off(log.cut_from)
        if log.appended:
            crc = records.log_crc
            known = commit_index
            rows = [(e.index, e.term, e.command, known, crc(e.index, e.term, e.command, known)) for e in log.appended]
            if log.longest > large_values.LARGE_BYTES:
                rows = self.large.cut(rows)
            put(db, *records.PUT_LOG, rows)
            if self.format.number < SHARED:
                self.format.follow(log.appended)
        if self._dirty:
            self._put_fact("vote", self._vote)
            self._put_fact("members", self._members)
            self._put_fact("pins", records.Pins(self._pins))
        if (moved := self.table.step()) is not None:
            self._move_on(moved)
            self._compact()

    def _move_on(self, applied: records.Applied) -> None:
        self.applied = applied
        self._put_fact("applied", applied)

    def _compact(self) -> None:
        """Delete log entries that the state table covers and followers are unlikely to want."""
        log = self.log
        excess = log.excess(self.log_retain, LOG_RETAIN_BYTES, COMPACT_STEP)
        last = min(self.applied.index, log.start.index + excess, log.durable_index)
        if self.keep_log_after is not None:
            last = min(last, self.keep_log_after)
        if last > log.start.index:
            term = log.term_at(last)
            assert term is not None
            self._db.execute("DELETE FROM log WHERE idx <= ?", (last,))
            if self.format.has_large:
                self.large.compact(last)
            log.compact(last, term)
            self._put_fact("log_start", log.start)

    def _put_fact(self, name: str, fact: object) -> None:
        data = _pack(fact)
        self._db.execute(records.PUT_FACT, (name, data, records.fact_crc(name, data)))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Begin and commit. Only within `errors`: what is raised in between is for that to see."""
        self._db.execute("BEGIN IMMEDIATE")
        yield
        self._db.execute("COMMIT")
        self.commits += 1

    @contextmanager
    def errors(self, verb: str) -> Iterator[None]:
        """Whatever is raised in it is the last thing that this store does."""
        if self._failed is not None:
            raise self._failed
        try:
            yield
        except BaseException as error:
            self._fail(verb, error)
            raise

    def _fail(self, verb: str, error: BaseException) -> None:
        """This was raised, so nothing is written any more. Raises what that means, unless it is no `Exception`."""
        if self._failed is None:
            self._failed = self._interrupted  # at once, and without a need for memory
            self._failed = self._failure(verb, error)
        if isinstance(error, Exception):
            raise self._failed from error

    def _failure(self, verb: str, error: BaseException) -> StorageError:
        if isinstance(error, records.FAILURES) and records.is_damage(error):
            return self.broken(f"could not {verb}: {error}")
        cure = records.MEMORY_CURE if isinstance(error, MemoryError) else records.DISK_CURE
        return StorageError(
            f"{self.name}: could not {verb}: {records.in_words(error)}. This node has stopped and acknowledges nothing "
            f"more. {cure}"
        )

    def broken(self, what: str) -> StorageError:
        """What is raised when a row is not as it was written; nothing is written any more."""
        self._failed = StorageError(
            f"{self.name}: {what}. The file is damaged, and this node will not use it: {records.CURE}"
        )
        return self._failed

    # -- snapshots --------------------------------------------------------------------------------------------------

    def install(self, snapshot_uri: str) -> None:
        """Become a checked snapshot, in one transaction (figure 13); it is durable when this returns."""
        with self.errors("install a snapshot"):
            self._db.execute("ATTACH ? AS snapshot", (snapshot_uri,))
            self._count_cut()
            with self._transaction():
                self._copy_snapshot()
            self._db.execute("DETACH snapshot")
            applied = msgspec.msgpack.decode(self._read_facts()["applied"], type=records.Applied)
            self.applied = applied
            self.table.clear()
            self.large.clear()
            self._dirty = False
            self.log.reset(applied.index, applied.term)
            self._note()

    def _copy_snapshot(self) -> None:
        db = self._db
        theirs = read_format(db, "snapshot")
        self.format.go_on_to(theirs)
        for table in ("log", "state", "session", *self.format.added):
            db.execute(f"DELETE FROM {table}")
        for table in ("state", "session", *(["kept"] if has_kept(theirs) else [])):
            # A plain INSERT would keep all that it overwrites, to undo itself alone. If this fails, nothing is to stay.
            db.execute(f"INSERT OR ROLLBACK INTO {table} SELECT * FROM snapshot.{table}")
        applied = db.execute("SELECT data FROM snapshot.fact WHERE name = 'applied'").fetchone()[0]
        if self.format.keeps:
            self._put_fact("kept", records.Kept())  # for a snapshot that has none
        names = "'applied', 'members', 'kept'"
        db.execute(f"INSERT OR REPLACE INTO fact SELECT * FROM snapshot.fact WHERE name IN ({names})")
        data = db.execute("SELECT data FROM fact WHERE name = 'members'").fetchone()[0]
        members = msgspec.msgpack.decode(data, type=records.Members)
        if members.index < self._members.index:
            self._put_fact("members", self._members)  # this node knows of a later one already
        else:
            self.set_members(members)
        self._put_fact("pins", records.Pins(self._pins))
        at = msgspec.msgpack.decode(applied, type=records.Applied)
        self._put_fact("log_start", records.LogStart(at.index, at.term))
        self._put_fact("vote", self._vote)

    def fail(self, failure: StorageError) -> None:
        """Write nothing more: the node ends in the midst of something, and what waits here may be half of it."""
        if self._failed is None:
            self._failed = failure

    def close(self) -> None:
        """Bring the state table up to date, unless something has failed, and let go of the file.

        What counts is on disk already, so that failures are only logged.
        """
        try:
            if self._failed is None:
                self.commit()
                self.flush()
        except StorageError as error:
            logger.warning("%s", error)
        finally:
            self._db.close()
            if self._mark is not None:
                self._mark.close()

    def abandon(self) -> None:
        """This is a forked child: let go of what may be closed here. SQLite's connection may not even be that."""
        if self._mark is not None:
            self._mark.close()

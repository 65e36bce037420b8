"""One node's disk: what is written together, what a restart finds, and what is never deleted."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, encode_key
from replidict.machine.state_machine import StateMachine
from replidict.protocol.log_entry import Entry
from replidict.storage import log as log_module
from replidict.storage import records, snapshot
from replidict.storage import store as store_module
from replidict.storage.directory import FILE_NAME
from replidict.storage.state_table import GATHER_BYTES, GATHER_ENTRIES, STEP_BYTES
from replidict.storage.store import COMPACT_STEP
from replidict.storage.wal import frames_before_checkpoint, longest
from tests.storage_support import Failing, Rig, put, rig


def failing(wrapped: list[Failing]) -> Callable[[sqlite3.Connection], Failing]:
    """Wrap a rig's connection, and hand the wrapper out."""

    def wrap(connection: sqlite3.Connection) -> Failing:
        wrapped.append(Failing(connection))
        return wrapped[-1]

    return wrap


# -- commits --------------------------------------------------------------------------------------------------------


def test_one_transaction_covers_everything_gathered(tmp_path: Path) -> None:
    """Appends that arrive together, and a vote with them, share one commit (group commit)."""
    seen: list[Failing] = []
    with rig(tmp_path, wrap=failing(seen)) as one:
        entries = [entry for number in range(500) for entry in one.append(put(f"k{number}", number))]
        one.store.set_vote(7, "another")
        seen[0].statements.clear()
        before = one.store.commits
        one.store.commit()
        assert one.store.commits == before + 1
        assert [each for each in seen[0].statements if each in ("BEGIN IMMEDIATE", "COMMIT")] == [
            "BEGIN IMMEDIATE", "COMMIT"
        ]  # fmt: skip
        assert seen[0].statements[0] == "BEGIN IMMEDIATE" and seen[0].statements[-1] == "COMMIT"
        assert one.log.durable_index == entries[-1].index
        one.store.commit()
        assert one.store.commits == before + 1, "nothing to write: no commit"


def test_every_commit_is_synced(tmp_path: Path) -> None:
    """The write-ahead log is synced at every commit: that was asked for, and is in force."""
    with rig(tmp_path) as one:
        assert one.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert one.connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_nothing_is_written_beside_what_is_needed(tmp_path: Path) -> None:
    """Deleted pages are not filled with zeros, and no statement keeps its way back in a temporary file: with large
    values that is two bytes more for each one stored, and a disk that nobody thinks of."""
    with rig(tmp_path) as one:
        assert one.connection.execute("PRAGMA secure_delete").fetchone() == (0,)
        assert one.connection.execute("PRAGMA temp_store").fetchone() == (2,), "memory"


def test_the_write_ahead_log_is_longer_for_a_large_dict(tmp_path: Path) -> None:
    """Keys drawn at random from a large dict would have its log copied all the time: it gets longer with the table,
    within bounds, at once, and is made so at a start."""
    assert [frames_before_checkpoint(rows) for rows in (0, 31_999, 64_000, 10**9)] == [1000, 1000, 2000, 6000]
    pairs = [(encode_key(f"k{number}"), b"\x01") for number in range(48_000)]
    with rig(tmp_path) as one:
        assert one.connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,)
        one.perform(cmd.Update(pairs))
        one.put("k1", 1)
        assert one.connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1500,)
    with rig(tmp_path) as again:
        assert again.connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1500,)
        assert len(again.wal()) > 1500 * 4096
        again.perform(cmd.Clear())
        for number in range(GATHER_ENTRIES):
            again.put("k1", number)
        assert again.connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,), "few keys, after many"
    with rig(tmp_path) as again:
        assert again.connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,)


def test_a_large_transaction_leaves_no_long_write_ahead_log(tmp_path: Path) -> None:
    """What one large transaction, as that of a snapshot, took of the disk beside the file is given back soon after."""
    limit = longest(4096)
    with rig(tmp_path) as one:
        one.perform(cmd.Update([(encode_key(number), bytes(1024 * 1024)) for number in range(40)]))
        sizes = [len(one.wal())]
        for number in range(2 * GATHER_ENTRIES):
            one.put("small", number)
            sizes.append(Path(f"{one.file}-wal").stat().st_size)
        assert max(sizes) > limit
        assert sizes[-1] <= limit


def test_a_vote_survives_and_belongs_to_its_term(tmp_path: Path) -> None:
    """Term and vote are on disk when `commit` returns (figure 2, persistent state)."""
    one = Rig(tmp_path)
    one.store.set_vote(3, "candidate")
    one.store.commit()
    one.crash()
    with rig(tmp_path) as again:
        assert (again.store.term, again.store.voted_for) == (3, "candidate")
        with pytest.raises(AssertionError, match="never goes back"):
            again.store.set_vote(2, None)


def test_a_tail_is_replaced_in_one_transaction(tmp_path: Path) -> None:
    """Cutting the log and appending to it are one transaction: a crash leaves the old tail or the new."""
    seen: list[Failing] = []
    one = Rig(tmp_path, wrap=failing(seen))
    for number in range(5):
        one.append(put("k", number))
    one.store.commit()
    last = one.log.last_index
    one.log.cut(last - 1)
    one.log.append([Entry(last - 1, 2, cmd.NO_OP)])
    one.store.set_vote(2, None)
    seen[0].statements.clear()
    one.store.commit()
    inside = seen[0].statements
    assert inside.count("BEGIN IMMEDIATE") == inside.count("COMMIT") == 1
    assert inside.index("DELETE FROM log WHERE idx >= ?") < inside.index("INSERT INTO log")
    assert one.log.deleted_entries == 2
    one.crash()
    with rig(tmp_path) as again:
        assert (again.log.last_index, again.log.last_term) == (last - 1, 2)


def test_what_was_not_committed_is_gone_as_a_whole(tmp_path: Path) -> None:
    """Cut and append without a commit: a crash leaves the log as it was (promise 4)."""
    one = Rig(tmp_path)
    for number in range(5):
        one.perform(put("k", number))
    before = one.everything()
    one.log.cut(one.log.last_index)
    one.append(put("k", "new"), term=2)
    one.crash()
    with rig(tmp_path) as again:
        assert again.everything() == before


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO log", "INSERT OR REPLACE INTO fact", "COMMIT"])
def test_a_failed_commit_is_the_end(tmp_path: Path, statement: str) -> None:
    """A commit that fails is never tried again, nothing of it counts, and what was acknowledged stays (promise 8)."""
    seen: list[Failing] = []
    one = Rig(tmp_path, wrap=failing(seen))
    one.put("k", "acknowledged")
    durable = one.log.durable_index
    one.append(put("k", "lost"), term=2)
    seen[0].fails = statement
    with pytest.raises(StorageError, match=r"replidict\.db: could not write: disk I/O error.*has stopped"):
        one.store.commit()
    assert one.log.durable_index == durable
    seen[0].fails = None
    with pytest.raises(StorageError, match="disk I/O error"):
        one.store.commit()
    with pytest.raises(StorageError, match="disk I/O error"):
        one.store.pin("peer", "id")
    with pytest.raises(StorageError, match="disk I/O error"):
        one.store.install("file:x")
    one.close()
    with rig(tmp_path) as again:
        assert again.content() == {"k": "acknowledged"}


def test_who_a_peer_is_stays_known(tmp_path: Path) -> None:
    """The identity first seen at an address is on disk before the peer is accepted."""
    one = Rig(tmp_path)
    assert one.store.pin("peer:1", "first") is None
    one.crash()
    with rig(tmp_path) as again:
        assert again.store.pin("peer:1", "first") is None
        refusal = again.store.pin("peer:1", "second")
        assert refusal is not None and "peer:1 was first and is now second" in refusal


@pytest.mark.filterwarnings("error")
def test_the_state_never_gets_ahead_of_the_members(tmp_path: Path) -> None:
    """Bringing the state table up to date, as a backup does, first writes a configuration among what it covers: after a
    crash nobody would look for it below the applied index (thesis 4.1)."""
    one = Rig(tmp_path, founders=["local", "other"])
    one.put("k", 1)
    index = one.log.last_index + 1
    entry = Entry(index, 1, cmd.encode(cmd.Configuration(["local"], [])))
    one.log.append([entry])
    one.store.commit()
    one.machine.apply(index, entry.command)
    one.store.record(1, one.machine.take_changes(), records.Members(index, ["local"], []))
    one.store.flush()
    one.crash()
    with rig(tmp_path) as again:
        assert again.store.applied.index == again.store.members.index == index


def test_a_snapshot_forgets_who_was_removed(tmp_path: Path) -> None:
    """A node that hears by a snapshot that a member is gone forgets its identity, too: another disk may come under that
    address (thesis 4.1)."""
    with rig(tmp_path / "source") as source:
        source.put("k", 1)
        made = snapshot.create(source.store.uri, tmp_path / "snapshot")
    one = Rig(tmp_path / "n", founders=["local", "other"])
    assert one.store.pin("other", "a disk") is None
    one.store.install(f"{made.path.as_uri()}?mode=ro")
    assert dict(one.store.pins) == {}
    one.crash()
    with rig(tmp_path / "n") as again:
        assert again.store.members.voters == ["local"]
        assert again.store.pin("other", "another disk") is None


@pytest.mark.parametrize("column", ["idx", "term", "committed"])
def test_every_bit_of_a_row_counts(column: str) -> None:
    """The checksums see any bit that flips in a row's numbers."""
    row = {"idx": 70_001, "term": 3, "committed": 70_000}

    def crc(numbers: dict[str, int]) -> int:
        return records.log_crc(numbers["idx"], numbers["term"], b"command", numbers["committed"])

    assert len({crc(row), *(crc({**row, column: row[column] ^ 1 << bit}) for bit in range(62))}) == 63
    place = (70_001, b"key", b"value", 3)
    flipped = {records.state_crc(place[0] ^ 1 << bit, *place[1:]) for bit in range(62)}
    assert records.state_crc(*place) not in flipped and len(flipped) == 62


def test_close_writes_what_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Closing in the middle of things leaves a file that opens, and complains of nothing."""
    one = Rig(tmp_path)
    for number in range(5):
        one.perform(put("k", number))
    one.append(put("k", "waits"))
    one.close()
    assert caplog.text == ""
    with rig(tmp_path) as again:
        assert again.content()["k"] in (4, "waits")


def test_close_with_a_cut_that_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A log that was cut and not committed when the node closed is still its own log."""
    one = Rig(tmp_path)
    for number in range(5):
        one.perform(put("k", number))
    last = one.log.last_index
    one.append(put("k", "to be cut"))
    one.store.commit()
    one.log.cut(last + 1)
    one.close()
    assert caplog.text == ""
    with rig(tmp_path) as again:
        assert again.content()["k"] in (4, "to be cut")


# -- restart, growth ------------------------------------------------------------------------------------------------


def test_a_restart_replays_a_short_tail(tmp_path: Path) -> None:
    """The state table follows the log closely: a restart replays hundreds of entries, not history."""
    one = Rig(tmp_path)
    for number in range(0, 10 * GATHER_ENTRIES, 8):
        entries = [entry for each in range(number, number + 8) for entry in one.append(put(f"k{each % 50}", each))]
        one.store.commit()
        one.apply(entries)
        assert one.log.last_index - one.store.applied.index <= GATHER_ENTRIES + 9
    expected = one.content()
    one.crash()
    with rig(tmp_path) as again:
        assert again.content() == expected
        assert list(again.content()) == list(expected), "in insertion order"
        assert 0 < again.replayed <= GATHER_ENTRIES + 9
    with rig(tmp_path) as again:
        assert again.replayed == 0, "closed properly: nothing to replay"
        assert again.content() == expected


def test_a_write_waits_for_few_pages_of_a_large_dict(tmp_path: Path) -> None:
    """Keys all over a large dict are written to its table a few pages at a time, never hundreds beside one write, and
    all the same no more is left for a restart."""
    keys, rng = 20_000, random.Random(1)
    with rig(tmp_path) as one:
        one.perform(cmd.Update([(encode_key(f"k{number}"), DEFAULT_CODEC.encode("x" * 100)) for number in range(keys)]))
        for number in range(2 * GATHER_ENTRIES):
            before = one.store.applied.index
            one.perform(*[put(f"k{rng.randrange(keys)}", number) for _ in range(4)])
            assert one.store.applied.index - before <= 8, "32 keys"
            assert one.log.last_index - one.store.applied.index <= GATHER_ENTRIES + 1


@pytest.mark.parametrize(("keys", "size"), [(1000, 10), (30, 100_000)])
def test_a_small_dict_is_written_as_a_whole(tmp_path: Path, keys: int, size: int) -> None:
    """Of a small dict the same rows change again and again: they gather, and each is written once for all."""
    with rig(tmp_path) as one:
        gathered, moved = 0, 0
        while not moved:
            before = one.store.applied.index
            one.perform(*[put(f"k{(gathered * 7 + each) % keys}", "x" * size) for each in range(5)])
            gathered += 1
            moved = one.store.applied.index - before
        assert moved >= gathered - 1 and gathered * 5 * size > min(keys * size, GATHER_BYTES)


@pytest.mark.parametrize("at_once", [1, 20])
def test_a_write_waits_for_few_large_values(tmp_path: Path, at_once: int) -> None:
    """Large values go to the table about as fast as they come, and never by the hundred beside one write; and all the
    same no more is left for a restart than fits into memory easily."""
    size = 256 * 1024
    with rig(tmp_path) as one:
        for number in range(160 // at_once):
            before = one.store.applied.index
            entries = [
                entry
                for each in range(at_once)
                for entry in one.append(put(f"k{(number * at_once + each) % 60}", "x" * size))
            ]
            one.store.commit()
            one.apply(entries)
            moved = one.store.applied.index - before
            assert moved * size <= STEP_BYTES + at_once * size
            assert (one.log.last_index - one.store.applied.index) * size <= GATHER_BYTES + 2 * at_once * size
        assert one.store.applied.index > 50, "enough has gathered"


@pytest.mark.parametrize("log_retain", [0, 1000])
def test_file_and_log_do_not_grow_with_writes(tmp_path: Path, log_retain: int) -> None:
    """50,000 writes to ten keys take no more room than what is kept (compaction)."""
    with rig(tmp_path, log_retain=log_retain) as one:
        sizes: list[int] = []
        for number in range(0, 50_000, 10):
            one.append(*[put(f"k{each % 10}", each) for each in range(number, number + 10)])
            if number % 50 == 40:
                one.store.commit()
                one.apply(one.log.entries_from(one.machine.applied_index + 1, 1 << 62))
            if number % 10_000 == 9_990:
                sizes.append(one.file.stat().st_size)
                assert Path(f"{one.file}-wal").stat().st_size < 6 * 1024 * 1024
                assert len(one.log) <= log_retain + 5 * (GATHER_ENTRIES + 1)
        assert max(sizes) < 2 * 1024 * 1024
        (rows,) = one.connection.execute("SELECT count(*) FROM log").fetchone()
        assert rows == len(one.log)


def test_a_log_of_large_entries_is_kept_up_to_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the entries, those beyond 64 MiB go, and only those: a follower that lags a moment finds the rest
    (compaction)."""
    monkeypatch.setattr(store_module, "LOG_RETAIN_BYTES", 100_000)
    with rig(tmp_path, log_retain=10_000) as one:
        for number in range(2 * GATHER_ENTRIES):
            one.put_many(f"k{number % 10}", 1, "x" * 1000)
            if number > 100:
                assert one.log.bytes > 98_000
        assert one.log.bytes < 102_000, "the state table covers more than that"
        one.put_many("k", GATHER_ENTRIES, "x" * 1000)
        one.put_many("k", 1)
        one.put_many("k", 1)
        assert 98_000 < one.log.bytes < 102_000


def test_compaction_keeps_what_is_still_wanted(tmp_path: Path) -> None:
    """The log is never cut above the state table's index, nor above what a snapshot is followed by."""
    with rig(tmp_path) as one:
        one.put("k", -1)
        one.store.keep_log_after = 3
        for _ in range(GATHER_ENTRIES):
            one.put_many("k", 4)
            assert one.log.start.index <= min(one.store.applied.index, 3)
        assert [entry.index for entry in one.log.entries_from(4, 1 << 20)][:2] == [4, 5]
        one.store.keep_log_after = None
        for _ in range(GATHER_ENTRIES // 2):
            one.put_many("k", 4)
            assert one.log.start.index <= one.store.applied.index
            (first,) = one.connection.execute("SELECT min(idx) FROM log").fetchone()
            assert first == one.log.start.index + 1
        assert one.log.start.index == one.store.applied.index


def test_compaction_stays_below_what_is_applied(tmp_path: Path) -> None:
    """Entries that are on disk and not applied yet are in no state table: they stay."""
    one = Rig(tmp_path)
    waiting: list[Entry] = []
    for _ in range(3 * GATHER_ENTRIES // 10):
        waiting += [entry for number in range(10) for entry in one.append(put("k", number))]
        one.store.commit()
        one.apply(waiting[:-50])
        waiting = waiting[-50:]
        assert one.log.start.index <= one.store.applied.index
    last = one.log.last_index
    one.crash()
    with rig(tmp_path) as again:
        assert again.log.last_index == last


def test_compaction_goes_in_steps(tmp_path: Path) -> None:
    """However much has gathered, one commit deletes a bounded number of log entries."""
    with rig(tmp_path, log_retain=10**6) as one:
        for number in range(COMPACT_STEP + 1000):
            one.append(put("k", number))
        one.store.commit()
        one.apply(one.log.entries_from(1, 1 << 62))
        while one.store.applied.index <= COMPACT_STEP + 500:
            one.put_many("k", 20)
        one.store.log_retain = 0
        start = one.log.start.index
        while one.log.start.index == start:
            one.put_many("k", 50)
        assert one.log.start.index - start <= COMPACT_STEP


def test_applied_entries_leave_memory_and_are_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds the recent end of the log; older entries come from SQLite, the same."""
    monkeypatch.setattr(log_module, "MEMORY_BYTES", 100_000)
    with rig(tmp_path, log_retain=10**6) as one:
        written: list[Entry] = []
        for _ in range(50):
            written += one.put_many("k", 20, "x" * 1000)
        held = sum(len(entry.command) + log_module.OVERHEAD for entry in one.log._memory)
        unflushed = one.log.last_index - one.store.applied.index
        assert held <= 100_000 + unflushed * 1200
        found: list[Entry] = []
        while len(found) < len(written):
            found += one.log.entries_from(len(found) + 1, 50_000)
        assert found == written
        assert one.log.term_at(1) == 1
        assert sum(len(entry.command) for entry in one.log.entries_from(1, 50_000)) <= 50_000


def test_an_entry_that_waits_for_the_disk_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not applied and durable is never let go of, however large (storage/log, rule 3)."""
    monkeypatch.setattr(log_module, "MEMORY_BYTES", 1000)
    with rig(tmp_path) as one:
        entries = [entry for number in range(20) for entry in one.append(put(f"k{number}", "x" * 1000))]
        one.log.release_memory(one.log.last_index)
        assert one.log.entries_from(1, 1 << 62) == entries
        one.store.commit()
        assert one.log.entries_from(1, 1 << 62) == entries


def test_entries_must_be_contiguous(tmp_path: Path) -> None:
    """The log takes no entry that leaves a gap (figure 2, `log[]`)."""
    with rig(tmp_path) as one, pytest.raises(AssertionError, match="contiguous"):
        one.log.append([Entry(2, 1, cmd.NO_OP)])


# -- snapshots ------------------------------------------------------------------------------------------------------


def filled(path: Path, keys: int = 300, log_retain: int = 0) -> Rig:
    """A rig whose state table holds so many keys, and some more in the log."""
    one = Rig(path, log_retain=log_retain)
    one.perform(*[put(f"k{number}", "v" * (number % 200)) for number in range(keys)])
    one.put_many("k", GATHER_ENTRIES)
    one.put_many("k", 20)
    return one


def state_of(one: Rig) -> dict[Any, Any]:
    """The content of the state table alone."""
    machine = StateMachine(DEFAULT_CODEC)
    one.store.load_into(machine)
    return {key: (item.value, item.revision, item.position) for key, item in machine.items.items()}


def test_a_snapshot_goes_round(tmp_path: Path) -> None:
    """A snapshot holds the state at its index; installed elsewhere it is that state, durably (figure 13)."""
    one = filled(tmp_path / "from")
    made = snapshot.create(one.store.uri, tmp_path / "snapshot")
    assert snapshot.check(made.path) == made
    assert (made.index, made.term) == (one.store.applied.index, one.store.applied.term)
    expected = state_of(one)
    one.close()
    other = Rig(tmp_path / "to")
    other.perform(put("old", 1))
    other.store.set_vote(5, "somebody")
    other.store.commit()
    for _ in range(2):  # the second time is harmless
        other.store.install(f"{made.path.as_uri()}?mode=ro")
        assert state_of(other) == expected
        assert (other.log.start.index, other.log.last_index, len(other.log)) == (made.index, made.index, 0)
        assert other.log.term_at(made.index) == made.term
        assert not other.connection.in_transaction
        attached = {name for _, name, _ in other.connection.execute("PRAGMA database_list")}
        assert "snapshot" not in attached
    other.crash()
    with rig(tmp_path / "to") as again:
        assert state_of(again) == expected
        assert (again.store.term, again.store.voted_for) == (5, "somebody"), "the vote is the node's own"
        assert again.log.last_index == made.index


_INSTALL = """
import sys
from pathlib import Path
from replidict.storage.directory import connect
from replidict.storage.store import Store

def most() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

file, snapshot = map(Path, sys.argv[1:])
store = Store(connect(file, "fsync"), file.as_uri(), log_retain=0)
before = most()
store.install(snapshot.as_uri() + "?mode=ro")
print((most() - before) // 1024)
"""


def test_an_install_takes_no_memory_for_what_it_replaces(tmp_path: Path) -> None:
    """A snapshot of 96 MiB in the place of as much is copied from file to file: the node has a dict in memory already,
    and must not have another there."""
    with rig(tmp_path / "n") as made:
        for number in range(96):
            made.put(f"k{number}", "x" * 1024 * 1024)
        made.store.flush()
        snapshot.create(made.store.uri, tmp_path / "snapshot")
    command = [sys.executable, "-c", _INSTALL, str(tmp_path / "n" / FILE_NAME), str(tmp_path / "snapshot")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 24, "MiB"


@pytest.mark.parametrize(
    "statement",
    ["ATTACH", "BEGIN", "DELETE FROM state", "INSERT OR ROLLBACK INTO session", "INSERT OR REPLACE", "COMMIT"],
)
def test_an_interrupted_install_changes_nothing(tmp_path: Path, statement: str) -> None:
    """An install is one transaction: whatever fails in it, the node's old state is there at the restart."""
    with rig(tmp_path / "from") as source:
        source.put("new", 1)
    with rig(tmp_path / "from") as source:
        made = snapshot.create(source.store.uri, tmp_path / "snapshot")
    seen: list[Failing] = []
    one = Rig(tmp_path / "to", wrap=failing(seen))
    for number in range(20):
        one.put(f"old{number}", number)
    before = one.everything()
    seen[0].fails = statement
    with pytest.raises(StorageError, match="has stopped"):
        one.store.install(f"{made.path.as_uri()}?mode=ro")
    seen[0].fails = None
    one.close()
    with rig(tmp_path / "to") as again:
        assert again.everything() == before


def test_a_snapshot_sees_one_moment_while_writes_go_on(tmp_path: Path) -> None:
    """A snapshot taken while the writer goes on is the state at one applied index, and stalls nobody."""
    one = filled(tmp_path / "n")
    states = {one.store.applied.index: state_of(one)}

    def take() -> list[snapshot.Snapshot]:
        return [snapshot.create(one.store.uri, tmp_path / f"snapshot{number}") for number in range(5)]

    with ThreadPoolExecutor(1) as background:
        taking = background.submit(take)
        number = 0
        while not taking.done() or number < 3 * GATHER_ENTRIES:
            number += 1
            one.put(f"k{number % 40}", number)
            if one.store.applied.index not in states:
                states[one.store.applied.index] = state_of(one)
        made = taking.result()
    one.close()
    for each in made:
        with rig(tmp_path / f"to{each.index}") as other:
            other.store.set_vote(1, None)  # the leader's term comes with the snapshot
            other.store.install(f"{each.path.as_uri()}?mode=ro")
            assert state_of(other) == states[each.index]


def test_a_snapshot_of_a_damaged_file_is_not_made(tmp_path: Path) -> None:
    """Damage never spreads: a snapshot is checked row by row where it is made (promise 8)."""
    one = filled(tmp_path / "n")
    one.connection.execute("UPDATE state SET value = x'00' WHERE position = 7")
    with pytest.raises(StorageError, match="state row 7"):
        snapshot.create(one.store.uri, tmp_path / "snapshot")
    one.close()


def test_the_state_is_that_of_a_full_replay(tmp_path: Path) -> None:
    """State table and tail give what replaying the whole log gives: values, revisions, order, sessions (promise 5)."""
    operations: list[cmd.Operation] = []
    for number in range(3 * GATHER_ENTRIES):
        key = encode_key(f"k{number * 7 % 60}")
        choices: list[cmd.Operation] = [put(f"k{number % 60}", number), cmd.Delete(key), cmd.Pop(key), cmd.PopItem()]
        operations.append(choices[number * 31 % 5 % 4])
    operations[500] = cmd.Clear()
    machine = StateMachine(DEFAULT_CODEC)
    one = Rig(tmp_path)
    for position in range(0, len(operations), 6):
        entries = [entry for each in operations[position : position + 6] for entry in one.append(each)]
        one.store.commit()
        one.apply(entries)
        for entry in entries:
            machine.apply(entry.index, entry.command)
    one.crash()
    with rig(tmp_path) as again:
        assert list(again.machine.items.items()) == list(machine.items.items())
        assert again.machine.sessions == machine.sessions
        assert again.machine.revision == machine.revision

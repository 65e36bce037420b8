"""A node's file is read through while it runs: what is wrong in it is found, and nothing else."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replidict import Options, ReplicatedDict, StorageError
from replidict.command.main import main
from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.protocol.log_entry import Entry
from replidict.storage import records, scrubber
from replidict.storage.scrubber import PIECE_BYTES, Scrubber
from tests.clusters import cluster, host_of, leader_of, wait_until
from tests.storage_support import Rig, put, rig

RATE = 1_000_000


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def scrubbing(node: Rig, time: Time, rate: int = RATE) -> Iterator[Scrubber]:
    with closing(Scrubber(node.store, node.machine, node.directory.path, rate, time)) as scrub:
        yield scrub


def whole_pass(scrub: Scrubber, time: Time) -> None:
    """Read on until a pass that begins from here on is over."""
    wanted = scrub.passes + 2
    while scrub.passes < wanted:
        time.now = scrub.next_deadline()
        scrub.step()


def test_no_more_is_read_than_may_be(tmp_path: Path) -> None:
    """No piece is much larger than its bound, and no more is read in any time than the option allows; between passes of
    a small file there is a rest, and 0 switches it off."""
    with rig(tmp_path, log_retain=100) as node:
        for number in range(300):
            node.put(f"key {number}", "x" * 2_000)
        node.store.flush()
        time = Time()
        with scrubbing(node, time) as scrub:
            assert scrub.next_deadline() == scrubber.REST
            began, pieces = scrubber.REST, []
            while scrub.passes < 3:
                time.now = scrub.next_deadline()
                assert scrub.bytes <= RATE * (time.now - began) + 1
                before = scrub.bytes
                scrub.step()
                pieces.append(scrub.bytes - before)
                scrub.step()
                assert scrub.bytes == before + pieces[-1], "not before it is due"
            assert max(pieces) < PIECE_BYTES + 4_000 and len(pieces) > 30
            assert time.now >= 3 * scrubber.REST and scrub.ended == time.now
            assert 3 * 300 * 2_000 < scrub.bytes < 3 * 420 * 2_500
            with scrubbing(node, time, 0) as never:
                assert never.next_deadline() == float("inf")


@pytest.mark.parametrize("seed", range(12))
def test_what_changes_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """While keys are written, removed and cleared, sessions and leases come and go, and the table follows in steps of
    any size, pass after pass finds nothing."""
    rng = random.Random(seed)
    monkeypatch.setattr(scrubber, "PIECE_BYTES", rng.choice((1, 500, 5_000)))
    monkeypatch.setattr("replidict.storage.state_table.GATHER_ENTRIES", rng.choice((2, 20)))
    monkeypatch.setattr("replidict.storage.state_table.STEP_PAGES", 1)
    monkeypatch.setattr("replidict.storage.state_table.WHOLE_BYTES", 1)
    monkeypatch.setattr("replidict.machine.state_machine.MAX_SESSIONS", 3)
    monkeypatch.setattr("replidict.storage.large_values.LARGE_BYTES", rng.choice((255, 100_000)))
    time = Time()
    with rig(tmp_path, log_retain=rng.choice((0, 30))) as node, scrubbing(node, time) as scrub:
        node.perform(cmd.Put(encode_key("first"), encode(0)))
        lone(node, cmd.RaiseLevel(2))
        for number in range(400):
            key = encode_key(f"key {rng.randrange(30)}")
            match rng.randrange(12):
                case 0 | 1 | 2:
                    node.perform(cmd.Delete(key))
                case 3 if rng.random() < 0.3:
                    node.perform(cmd.Clear())
                case 4:
                    lone(node, cmd.OpenSession(b"%d" % number))
                    node._session = node._sequence = 0
                case 5:
                    lone(node, cmd.Tick(node.machine.coordination.clock.now + 1_000))
                case _:
                    node.perform(put(f"key {rng.randrange(30)}", rng.choice((rng.random(), "x" * number * 5))))
            if rng.random() < 0.05:
                node.store.flush()
            for _ in range(rng.choice((0, 1, 1, 3))):
                time.now = scrub.next_deadline()
                scrub.step()
        whole_pass(scrub, time)
        assert scrub.passes > 2


def lone(node: Rig, command: Any) -> None:
    """A command that is an entry by itself."""
    entry = Entry(node.log.last_index + 1, max(node.log.last_term, 1), cmd.encode(command))
    node.log.append([entry])
    node.store.commit()
    node.apply([entry])


def change_value(db: sqlite3.Connection, *, right: bool = True) -> None:
    position, key, revision = db.execute("SELECT position, key, revision FROM state LIMIT 1 OFFSET 5").fetchone()
    crc = records.state_crc(position, key, encode("other"), revision) if right else 0
    db.execute("UPDATE state SET value = ?, crc = ? WHERE position = ?", (encode("other"), crc, position))


def spoil_value(db: sqlite3.Connection) -> None:
    change_value(db, right=False)


def remove_row(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM state WHERE position = 5")


def add_row(db: sqlite3.Connection) -> None:
    key, value = encode_key("new"), encode("new")
    db.execute("INSERT INTO state VALUES (99, ?, ?, 3, ?)", (key, value, records.state_crc(99, key, value, 3)))


def change_entry(db: sqlite3.Connection) -> None:
    index, term, committed = db.execute("SELECT idx, term, committed FROM log LIMIT 1 OFFSET 5").fetchone()
    command = cmd.encode(cmd.OpenSession(b"other"))
    crc = records.log_crc(index, term, command, committed)
    db.execute("UPDATE log SET command = ?, crc = ? WHERE idx = ?", (command, crc, index))


def spoil_entry(db: sqlite3.Connection) -> None:
    db.execute("UPDATE log SET committed = committed + 1 WHERE idx = 7")


def remove_entry(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM log WHERE idx = 7")


def remove_last_entry(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM log WHERE idx = (SELECT max(idx) FROM log)")


def remove_session(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM session")


def spoil_session(db: sqlite3.Connection) -> None:
    db.execute("UPDATE session SET crc = crc + 1")


def spoil_fact(db: sqlite3.Connection) -> None:
    db.execute("UPDATE fact SET crc = crc + 1 WHERE name = 'members'")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_value, r"state row 6, of the key .* not what this node has in memory, though its checksum is right"),
        (spoil_value, "the checksum of state row 6 is wrong"),
        (remove_row, "it should hold 20 keys, but has 19"),
        (add_row, "state row 99"),
        (change_entry, r"log entry \d+ is not what this node has in memory"),
        (spoil_entry, "the checksum of log entry 7 is wrong"),
        (remove_entry, "log entry 7 is missing"),
        (remove_last_entry, r"log entry \d+ is missing"),
        (remove_session, "should hold 1 sessions, but has 0"),
        (spoil_session, r"the checksum of session \d+ is wrong"),
        (spoil_fact, "the checksum of 'members' is wrong"),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
@pytest.mark.parametrize("piece", [1, PIECE_BYTES])
def test_what_is_wrong_in_the_file_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[sqlite3.Connection], None],
    words: str,
    piece: int,
) -> None:
    """A row with a wrong checksum, one that is not what memory has, one that is missing and one too many: the error
    names the row and the file, and says what to do; nothing more is written, and the file is not opened again."""
    monkeypatch.setattr(scrubber, "PIECE_BYTES", piece)
    with rig(tmp_path, log_retain=100) as node:
        for number in range(20):
            node.put(f"key {number}", number)
        node.store.flush()
        time = Time()
        with scrubbing(node, time) as scrub:
            whole_pass(scrub, time)
            with closing(sqlite3.connect(node.file, isolation_level=None)) as db:
                change(db)
            with pytest.raises(StorageError, match=words) as raised:
                whole_pass(scrub, time)
            assert str(node.file) in str(raised.value) and "remove it from the cluster" in str(raised.value)
            with pytest.raises(StorageError, match=words):
                node.put("another", 1)
    with pytest.raises(StorageError, match="remove it from the cluster"):
        Rig(tmp_path)


def test_what_the_disk_has_made_of_a_page_is_found(tmp_path: Path) -> None:
    """Bytes that change in the file itself, and not by SQLite, are seen though the page was read before."""
    with rig(tmp_path, log_retain=100) as node:
        node.put("key", "a value that is easy to find")
        node.store.flush()
        node.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        time = Time()
        with scrubbing(node, time) as scrub:
            whole_pass(scrub, time)
            content = node.file.read_bytes()
            with node.file.open("r+b") as raw:
                raw.write(content.replace(b"easy to find", b"hard to find"))
            with pytest.raises(StorageError, match=r"the checksum of .* is wrong"):
                whole_pass(scrub, time)


def test_a_running_node_finds_a_changed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node of three whose file was changed by hand while it runs, with a right checksum, stops, says why, and is
    not started with that file again; the two others go on. The status tells of the passes."""
    monkeypatch.setattr(scrubber, "REST", 0.05)
    with cluster(tmp_path, options=Options(scrub_bytes_per_second=10_000_000)) as nodes:
        nodes[0].update({f"key {number}": number for number in range(20)})
        leader = leader_of(nodes)
        number, odd = next((number, node) for number, node in enumerate(nodes) if node is not leader)
        odd.barrier()
        inner = host_of(odd).node
        inner.call_and_wait(inner.store.flush)
        wait_until(lambda: odd.status().scrub_passes > 2, "it is read through")
        assert odd.status().scrub_bytes > 1_000 and odd.status().scrub_age is not None
        directory = tmp_path / f"n{number}"
        with closing(sqlite3.connect(directory / "replidict.db", isolation_level=None)) as db:
            change_value(db)
        wait_until(lambda: odd.status().role == "stopped", "the node stops")
        with pytest.raises(StorageError, match=r"state row 6.*not what this node has in memory.*remove it from the cl"):
            _ = odd["key 1"]
        leader["another"] = 1
        odd.close()
        done = CliRunner().invoke(main, ["inspect", str(directory)])
        assert done.exit_code == 5 and "diverged" in done.output
    with pytest.raises(StorageError, match=r"must not be opened any more.*state row 6"):
        ReplicatedDict(directory, address=str(odd.status().address), insecure=True)


def test_an_idle_node_is_woken_seldom(tmp_path: Path) -> None:
    """Between two passes nothing is due, and in a pass a few times a second: the deadlines say so."""
    with rig(tmp_path, log_retain=100) as node:
        for number in range(200):
            node.put(f"key {number}", "x" * 2_000)
        node.store.flush()
        time = Time()
        with scrubbing(node, time, Options().scrub_bytes_per_second) as scrub:
            due = []
            while scrub.passes < 2:
                time.now = scrub.next_deadline()
                scrub.step()
                due.append(time.now)
            waits = [later - earlier for earlier, later in pairwise(due)]
            assert sum(wait < 0.2 for wait in waits) <= 2, "all but the ends of passes"

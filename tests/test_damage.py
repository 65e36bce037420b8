"""Files damaged, cut short, torn or put back: refused, or all there; never silently less (design, promise 8)."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replidict import ReplicatedDict
from replidict.errors import StorageError
from replidict.storage import records, snapshot
from replidict.storage.directory import FILE_NAME
from tests.storage_support import FRAME, WAL, Rig, flip, image, put, rig, verdict, written

FLIPS = 100


def crashed(path: Path) -> tuple[Path, tuple[Any, ...]]:
    """The directory of a node that was killed, and what it must still hold: much in the file, much in the log."""
    one = Rig(path / "n", log_retain=100)
    one.store.set_vote(1, "somebody")
    for number in range(3):
        one.perform(*[put(f"k{number}-{each}", b"value" * each) for each in range(60)])
        one.put_many(f"many{number}", 300, number)
    one.close()
    one = Rig(path / "n", log_retain=100)
    for number in range(40):
        one.perform(put(f"late{number}", number))
    found = image(path / "n", path / "crashed")
    everything = one.everything()
    one.close()
    return found, everything


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, ...]]:
    """A node that was killed."""
    return crashed(tmp_path_factory.mktemp("victim"))


def test_a_killed_node_is_whole(victim: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    """Without damage, everything is there (promise 1)."""
    assert verdict(image(victim[0], tmp_path / "n"), victim[1]) == "whole"


def size_of(file: Path) -> int:
    """How long it is, without what was never written to."""
    return len(written(file.read_bytes())) if file.name == WAL else file.stat().st_size


@pytest.mark.parametrize("name", [FILE_NAME, WAL])
def test_a_flipped_bit_is_never_data_lost(victim: tuple[Path, tuple[Any, ...]], tmp_path: Path, name: str) -> None:
    """A bit flipped anywhere in the file or its write-ahead log: refused, or all there (promise 8)."""
    size, rng = size_of(victim[0] / name), random.Random(name)
    offsets = [*range(0, 128, 8), *(rng.randrange(size) for _ in range(FLIPS)), *range(size - FRAME, size, 500)]
    verdicts = []
    for offset in offsets:
        copy = image(victim[0], tmp_path / "n")
        flip(copy / name, offset, rng.randrange(8))
        verdicts.append(verdict(copy, victim[1]))
    refused = [each for each in verdicts if each != "whole"]
    assert len(refused) > len(offsets) // 4, "much of it is in use"


def test_damage_is_seen_without_the_mark(victim: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    """Where the mark is gone, damage before the last transaction of the write-ahead log is still refused."""
    rng = random.Random(6)
    for _ in range(15):
        copy = image(victim[0], tmp_path / "n", mark=False)
        flip(copy / WAL, 32 + rng.randrange(20) * FRAME + 24 + rng.randrange(4096), rng.randrange(8))
        assert f"{WAL} is damaged in frame" in verdict(copy, victim[1])


@pytest.mark.parametrize("name", [FILE_NAME, WAL])
def test_a_file_cut_short_is_never_data_lost(victim: tuple[Path, tuple[Any, ...]], tmp_path: Path, name: str) -> None:
    """The file or its write-ahead log cut off at any place, emptied or removed: refused."""
    size, rng = size_of(victim[0] / name), random.Random(name)
    step = 4096 if name == FILE_NAME else FRAME
    places = [0, 1, 100, *(rng.randrange(size) for _ in range(15)), *range(size - 3 * step, size, step), size - 1]
    for length in [*places, None]:
        copy = image(victim[0], tmp_path / "n")
        if length is None:
            (copy / name).unlink()
        else:
            os.truncate(copy / name, length)
        assert verdict(copy, victim[1]) != "whole", f"cut off after {length}"


def test_a_deleted_file_is_refused_again_and_again(tmp_path: Path) -> None:
    """A node whose file is gone is refused at every start, and is never an empty dict (promise 8)."""
    d: ReplicatedDict[str, str] = ReplicatedDict(tmp_path)
    d["key"] = "value"
    d.close()
    (tmp_path / "replidict.db").unlink()
    for _ in range(3):
        with pytest.raises(StorageError, match="is missing, but mark is there"):
            ReplicatedDict(tmp_path)


def test_an_old_copy_put_back_is_refused(tmp_path: Path) -> None:
    """A node that was given an older copy of its file has forgotten what others count on: refused."""
    one = Rig(tmp_path / "n")
    one.put("k", 1)
    old = image(tmp_path / "n", tmp_path / "old", mark=False)
    one.put("k", 2)
    everything = one.everything()
    one.close()
    shutil.copy(tmp_path / "n" / "mark", old / "mark")
    assert "already acknowledged" in verdict(old, everything)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE log SET command = x'00' WHERE idx = {middle}", "checksum of log entry {middle}"),
        ("UPDATE log SET term = 0 WHERE idx = {middle}", "checksum of log entry {middle}"),
        ("DELETE FROM log WHERE idx = {middle}", "log entry {middle} is missing"),
        ("DELETE FROM log WHERE idx = {last}", "its log ends at entry"),
        ("DELETE FROM log", "log"),
        ("UPDATE state SET value = x'00' WHERE position = 5", "checksum of state row 5"),
        ("DELETE FROM state WHERE position = 5", "keys"),
        ("UPDATE session SET data = x'00'", "checksum of session"),
        ("DELETE FROM session", "sessions"),
        ("UPDATE fact SET data = x'00' WHERE name = 'vote'", "checksum of 'vote'"),
        ("DELETE FROM fact WHERE name = 'vote'", "facts"),
        ("DELETE FROM fact WHERE name = 'members'", "facts"),
        ("DELETE FROM fact WHERE name = 'applied'", "facts"),
        ("DELETE FROM fact WHERE name = 'identity'", "facts"),
        ("DELETE FROM fact", "facts"),
        ("DROP TABLE log", "log"),
        ("PRAGMA application_id = 7", "another program"),
        ("PRAGMA user_version = 99", "newer release"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    victim: tuple[Path, tuple[Any, ...]], tmp_path: Path, statement: str, reason: str
) -> None:
    """Gaps, missing rows, wrong checksums, forgotten facts: each refused, with what is wrong."""
    copy = image(victim[0], tmp_path / "n")
    with closing(sqlite3.connect(copy / FILE_NAME, isolation_level=None)) as db:
        (last,) = db.execute("SELECT max(idx) FROM log").fetchone()
        db.execute(statement.format(middle=last - 20, last=last))
    assert re.search(reason.format(middle=last - 20), verdict(copy, victim[1]))


def test_a_term_below_the_logs_is_refused(victim: tuple[Path, tuple[Any, ...]], tmp_path: Path) -> None:
    """A node whose term is below its last log entry's has forgotten votes."""
    copy = image(victim[0], tmp_path / "n", mark=False)
    with closing(sqlite3.connect(copy / FILE_NAME, isolation_level=None)) as db:
        data = b"\x93\x00\xc0\x00"
        db.execute("UPDATE fact SET data = ?, crc = ? WHERE name = 'vote'", (data, records.fact_crc("vote", data)))
    assert "its term 0 is below the last log entry's 1" in verdict(copy, victim[1])


def test_a_flipped_bit_in_a_snapshot_never_spreads(tmp_path: Path) -> None:
    """A snapshot with a flipped bit is refused, or says and holds the same; cut short, it is refused."""
    with rig(tmp_path / "n") as one:
        one.perform(*[put(f"k{each}", "v" * each) for each in range(200)])
    with rig(tmp_path / "n") as one:
        made = snapshot.create(one.store.uri, tmp_path / "snapshot")
    rng, copy = random.Random(5), tmp_path / "copy"

    def content(path: Path) -> list[Any]:
        with closing(sqlite3.connect(path)) as db:
            return [db.execute(f"SELECT * FROM {table}").fetchall() for table in ("state", "session", "fact")]

    refused = 0
    for offset in [*range(0, 100, 3), *(rng.randrange(made.size) for _ in range(FLIPS))]:
        shutil.copy(made.path, copy)
        flip(copy, offset, rng.randrange(8))
        try:
            checked = snapshot.check(copy)
        except StorageError:
            refused += 1
        else:
            assert checked.sha256 != made.sha256, "the receiver compares this, too"
            assert (checked.index, checked.term) == (made.index, made.term)
            assert content(copy) == content(made.path)
    assert refused > FLIPS // 3
    for length in (0, 10, 100, 4096, made.size - 4096):
        shutil.copy(made.path, copy)
        os.truncate(copy, length)
        with pytest.raises(StorageError):
            snapshot.check(copy)


# -- a full disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system of its own")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_stops_the_node_and_loses_nothing(small_disk: Path) -> None:
    """When the disk is full the node says so, acknowledges and serves nothing more, and all that it had acknowledged is
    there when there is space again (promise 8)."""
    path, filler = small_disk / "n", small_disk / "filler"
    filler.write_bytes(bytes(1 << 20))
    acknowledged: dict[str, str] = {}
    with ReplicatedDict[str, str](path) as opened:
        with pytest.raises(StorageError, match=rf"{path}.*could not write.*disk has space"):
            for number in range(10_000):
                opened[f"k{number}"] = "x" * 5000
                acknowledged[f"k{number}"] = "x" * 5000
        assert acknowledged
        with pytest.raises(StorageError):
            opened["k"] = "after"
        with pytest.raises(StorageError):
            opened.get("k0")
        with pytest.raises(StorageError):
            opened.get("k0", linearizable=True)
        assert opened.status().role == "stopped"
    filler.unlink()
    with ReplicatedDict[str, str](path) as opened:
        found = opened.snapshot()
        assert acknowledged.items() <= found.items() and len(found) <= len(acknowledged) + 1
        opened["k"] = "there is space again"

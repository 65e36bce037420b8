"""Backups made while writes go on, and what is founded from them (docs/backup.md)."""

from __future__ import annotations

import datetime as dt
import gc
import logging
import os
import random
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from replidict import Backup, ClosedError, Options, ReplicatedDict, ReplidictError, StorageError
from replidict.node import online_backup
from replidict.server import scheduled_snapshots
from replidict.storage import records, snapshot
from replidict.storage.directory import FILE_NAME
from tests.clusters import Dict, cluster, free_addresses, host_of, wait_until
from tests.storage_support import flip, small_disk


@pytest.fixture
def d(tmp_path: Path) -> Iterator[Dict]:
    """An open node without a network, with three keys in an order that is not theirs."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as opened:
        opened.update(c=1, a=[2, None], b=(3,))
        yield opened


class Writers:
    """Threads that write, and what each acknowledged write did, by revision."""

    def __init__(self, nodes: list[Dict]) -> None:
        self.did: dict[int, tuple[str, int | None]] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(node, i)) for i, node in enumerate(nodes)]
        for thread in self._threads:
            thread.start()

    def _run(self, node: Dict, which: int) -> None:
        rng, number = random.Random(which), 0
        while not self._stop.is_set():
            number += 1
            key = f"k{which}-{rng.randrange(50)}"
            self.did[node.set(key, number)] = (key, number)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def state_at(self, revision: int) -> dict[str, int | None]:
        """What is there after exactly so many changes."""
        assert self.did.keys() >= set(range(1, revision + 1)), "every change was somebody's here"
        return {key: value for _, (key, value) in sorted(self.did.items())[:revision]}


def restored(backup: Path, path: Path) -> dict[Any, Any]:
    """What a node holds that was made from a backup."""
    ReplicatedDict.restore(backup, path)
    with ReplicatedDict[Any, Any](path) as opened:
        return opened.snapshot()


def damage_a_row(path: Path) -> None:
    """Change a value in a node's file, as a disk does that forgets a bit."""
    with closing(sqlite3.connect(path / FILE_NAME)) as db, db:
        db.execute("UPDATE state SET value = x'f00d' WHERE position = (SELECT min(position) FROM state)")


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# -- one backup -----------------------------------------------------------------------------------------------------


def test_a_backup_under_load_is_one_revision(tmp_path: Path) -> None:
    """Made on a node while all are written to, a backup restores to exactly the state of one revision, and that has
    every write that this node had acknowledged before."""
    with cluster(tmp_path) as nodes, Writers(nodes) as writers:
        made = []
        for number, node in enumerate(nodes * 2):
            wait_until(lambda number=number: len(writers.did) > 300 * number, "more is written")  # type: ignore[misc]
            acknowledged = node.set(f"before {number}", number)
            writers.did[acknowledged] = (f"before {number}", number)
            backup = node.backup(tmp_path / f"b{number}")
            assert backup.revision >= acknowledged
            made.append(backup)
    for number, backup in enumerate(made):
        state = restored(backup.path, tmp_path / f"r{number}")
        assert state == writers.state_at(backup.revision)
        assert (len(state), backup.path.stat().st_size) == (backup.keys, backup.size)


def test_it_says_whose_it_is(d: Dict, tmp_path: Path) -> None:
    """The file says of which cluster and node it is and when it was made; its size, keys and indices are told."""
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    made = d.backup(tmp_path / "b")
    status = d.status()
    assert (made.path, made.revision, made.index, made.keys) == (tmp_path / "b", 1, status.applied_index, 3)
    held = snapshot.check(tmp_path / "b")
    assert held.origin is not None and held.size == made.size == made.path.stat().st_size
    assert (held.origin.cluster_id, held.origin.node_id, held.origin.address) == (
        status.cluster_id, status.node_id, "local"
    )  # fmt: skip
    assert before <= dt.datetime.fromisoformat(held.origin.taken_at) <= dt.datetime.now(dt.UTC)
    assert made.path.stat().st_mode & 0o077 == 0, "what only this user could read, only this user can read"


def test_a_file_is_never_replaced(d: Dict, tmp_path: Path) -> None:
    """A target that exists is refused before anything is done, a broken link too, and stays as it is."""
    (tmp_path / "b").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    commits = host_of(d).node.store.commits
    before = left_in(tmp_path)
    for name in ("b", "link", "d"):
        with pytest.raises(FileExistsError, match=name):
            d.backup(tmp_path / name)
    assert (tmp_path / "b").read_text() == "precious"
    assert (left_in(tmp_path), host_of(d).node.store.commits) == (before, commits)


def test_who_is_second_is_refused(d: Dict, tmp_path: Path) -> None:
    """Of two backups to one path at the same time one is made, and the other is refused: nothing is replaced."""
    outcomes: list[object] = []

    def make() -> None:
        try:
            outcomes.append(d.backup(tmp_path / "b"))
        except FileExistsError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len([each for each in outcomes if isinstance(each, Backup)]) == 1
    assert len(outcomes) == 4
    assert left_in(tmp_path) == ["b", "d"]


@pytest.mark.parametrize("path", ["", ".", "/", None, 3])
def test_a_path_that_makes_no_sense(d: Dict, path: Any) -> None:
    """What can't be the path of a file is a `ValueError` that says so."""
    with pytest.raises(ValueError, match="path="):
        d.backup(path)


def test_a_place_that_cant_be_written(d: Dict, tmp_path: Path) -> None:
    """No such directory, or a file in its place: said with the name of the file, and the node goes on."""
    (tmp_path / "file").touch()
    for target in (tmp_path / "missing" / "b", tmp_path / "file" / "b"):
        with pytest.raises(ReplidictError, match=rf"{target}: no backup was made.*node goes on") as caught:
            d.backup(target)
        assert not isinstance(caught.value, StorageError)
    d["still"] = "here"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_at_the_target(d: Dict, tmp_path: Path) -> None:
    """A target without space is an error that names it; the node goes on, and nothing is left there."""
    d["big"] = b"x" * 3_000_000
    with small_disk(tmp_path / "small", "1m"):
        with pytest.raises(ReplidictError, match=r"small/b: no backup was made.*full") as caught:
            d.backup(tmp_path / "small" / "b")
        assert not isinstance(caught.value, StorageError)
        assert left_in(tmp_path / "small") == []
    d["still"] = "here"
    assert d.backup(tmp_path / "b").keys == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_room_is_left_on_the_nodes_own_disk(tmp_path: Path) -> None:
    """A backup beside the node gives up before the disk is full: the node could not go on without space."""
    with small_disk(tmp_path / "small", "40m"):
        with ReplicatedDict[int, bytes](tmp_path / "small" / "d") as d:
            for number in range(12):
                d[number] = b"x" * 1_000_000
            with pytest.raises(ReplidictError, match=r"no backup was made.*16 MiB to go on"):
                d.backup(tmp_path / "small" / "b")
            assert left_in(tmp_path / "small") == ["d"]
            d[100] = b"x" * 1_000_000
            assert d.backup(tmp_path / "elsewhere").keys == 13
        assert len(restored(tmp_path / "elsewhere", tmp_path / "r")) == 13


def test_a_row_that_is_not_as_it_was_written_ends_the_node(d: Dict, tmp_path: Path) -> None:
    """When a backup finds the node's own file damaged, there is no backup, and the node stops and says so."""
    d.backup(tmp_path / "good")
    damage_a_row(tmp_path / "d")
    with pytest.raises(StorageError, match=rf"{FILE_NAME}.*checksum of state row 1 is wrong.*has stopped"):
        d.backup(tmp_path / "b")
    wait_until(lambda: d.status().role == "stopped", "the node has stopped")
    with pytest.raises(StorageError, match="checksum"):
        d["k"] = 1
    assert left_in(tmp_path) == ["d", "good"]


def test_a_closed_dict_makes_no_backup(d: Dict, tmp_path: Path) -> None:
    """After `close` it is a `ClosedError`, and no file is made."""
    d.close()
    with pytest.raises(ClosedError):
        d.backup(tmp_path / "b")
    assert left_in(tmp_path) == ["d"]


@pytest.mark.parametrize("during", ["the copy", "the check"])
def test_close_ends_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    """`close` does not wait for a backup under way: that ends with `ClosedError` and leaves nothing, and the directory
    can be opened again at once."""
    monkeypatch.setattr(snapshot, "STEPS_A_ROW", 1 if during == "the copy" else 1 << 20)
    monkeypatch.setattr(snapshot, "COPY_BYTES", 1)
    monkeypatch.setattr(snapshot, "CHECK_ROWS", 1)
    arrived, caught, checked = threading.Event(), [], []
    check = snapshot.check

    def counted(*arguments: Any) -> snapshot.Snapshot:
        checked.append(1)
        return check(*arguments)

    monkeypatch.setattr(snapshot, "check", counted)
    d = ReplicatedDict[str, int](tmp_path / "d")
    d.update({f"k{number}": number for number in range(1000)})

    looked = 0

    def wait_a_little() -> None:
        nonlocal looked
        looked += 1
        arrived.set()
        wait_until(lambda: host_of(d).backups._ended is not None, "the dict is closed")
        if during == "the copy":
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline:
                assert host_of(d).directory._lock is not None, "nobody else may have the directory while it is read"

    def make() -> None:
        try:
            d.backup(tmp_path / "b")
        except ClosedError as error:
            caught.append(error)

    monkeypatch.setattr(online_backup, "_see_to_room", lambda _, needed: None if needed else wait_a_little())
    thread = threading.Thread(target=make)
    thread.start()
    assert arrived.wait(30)
    d.close()
    with ReplicatedDict[str, int](tmp_path / "d") as again:
        assert len(again) == 1000
    thread.join(30)
    assert (len(caught), looked, len(checked)) == (1, 1, during == "the check")
    assert left_in(tmp_path) == ["d"]


def test_a_check_lets_others_run(d: Dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever checks many rows pauses every few hundred, so that the node's thread gets its turn (the GIL)."""
    d.update((number, number) for number in range(3000))
    made = d.backup(tmp_path / "b")
    pauses: list[float] = []
    monkeypatch.setattr(snapshot, "time", SimpleNamespace(sleep=pauses.append))
    snapshot.check(made.path)
    assert pauses.count(snapshot.PAUSE) >= 3000 // snapshot.CHECK_ROWS


def test_a_node_that_fell_back_has_what_it_acknowledged(tmp_path: Path) -> None:
    """A backup of a follower has the writes that went through that follower, though they were committed elsewhere."""
    with cluster(tmp_path) as nodes:
        for number, node in enumerate(nodes):
            node[f"k{number}"] = number
            node.backup(tmp_path / f"b{number}")
    for number in range(3):
        assert restored(tmp_path / f"b{number}", tmp_path / f"r{number}")[f"k{number}"] == number


# -- restore --------------------------------------------------------------------------------------------------------


def test_all_of_it_goes_on_from_there(d: Dict, tmp_path: Path) -> None:
    """Values with their types, insertion order, revisions and indices are those of the backup; cluster and node are
    new, and nobody's session is left."""
    d["a"] = "changed"
    del d["c"]
    d["c"] = "last"
    made, before = d.backup(tmp_path / "b"), d.status()
    versions = {key: d.versioned(key) for key in d}
    ReplicatedDict.restore(tmp_path / "b", tmp_path / "r")
    with ReplicatedDict[Any, Any](tmp_path / "r") as r:
        assert list(r.items()) == [("a", "changed"), ("b", (3,)), ("c", "last")]
        assert {key: r.versioned(key) for key in r} == versions
        assert not host_of(r).node.machine.sessions
        after = r.status()
        assert (after.revision, after.keys) == (made.revision, 3)
        assert after.applied_index >= made.index
        assert r.set("new", 1) == made.revision + 1
        assert list(r)[-1] == "new"
        assert r.status().term > before.term
        assert after.cluster_id != before.cluster_id and after.node_id != before.node_id
    with ReplicatedDict[Any, Any](tmp_path / "r") as r:
        assert r["new"] == 1


def test_restored_twice_is_two_clusters(d: Dict, tmp_path: Path) -> None:
    """Two nodes made from one backup belong to different clusters: they never take each other for members."""
    d.backup(tmp_path / "b")
    ids = set()
    for name in ("r1", "r2"):
        ReplicatedDict.restore(tmp_path / "b", tmp_path / name, address="127.0.0.1:7999")
        with closing(sqlite3.connect(tmp_path / name / FILE_NAME)) as db:
            (data,) = db.execute("SELECT data FROM fact WHERE name = 'identity'").fetchone()
        identity = msgspec.msgpack.decode(data, type=records.Identity)
        assert identity.address == "127.0.0.1:7999"
        ids |= {identity.cluster_id, identity.node_id}
    assert len(ids) == 4


def test_it_listens_where_it_was_told(d: Dict, tmp_path: Path) -> None:
    """With `address` the new node is reached there, leads by itself, and can be opened under that address only."""
    (address,) = free_addresses(1)
    d.backup(tmp_path / "b")
    ReplicatedDict.restore(tmp_path / "b", tmp_path / "r", address=address.replace("127.0.0.1", "LOCALHOST"))
    with pytest.raises(ValueError, match="belongs to the node localhost"):
        ReplicatedDict[Any, Any](tmp_path / "r")
    with ReplicatedDict[Any, Any](tmp_path / "r", address=address.replace("127.0.0.1", "localhost")) as r:
        r["k"] = 1
        assert r.status().is_leader and r.status().peers == ()
    with pytest.raises(ValueError, match="address"):
        ReplicatedDict.restore(tmp_path / "b", tmp_path / "r2", address="nowhere")


def test_an_empty_dict_can_be_restored(tmp_path: Path) -> None:
    """A backup of nothing is a backup."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert d.backup(tmp_path / "b").keys == 0
    assert restored(tmp_path / "b", tmp_path / "r") == {}


def test_a_place_with_a_node_is_refused(d: Dict, tmp_path: Path) -> None:
    """Where there is a node, open or closed, or a part of one, nothing is restored and nothing is changed."""
    d.backup(tmp_path / "b")
    with pytest.raises(StorageError, match="holds a node"):
        ReplicatedDict.restore(tmp_path / "b", tmp_path / "d")
    d["k"] = 1
    d.close()
    with pytest.raises(StorageError, match="holds a node"):
        ReplicatedDict.restore(tmp_path / "b", tmp_path / "d")
    (tmp_path / "d" / FILE_NAME).rename(tmp_path / "moved away")
    with pytest.raises(StorageError, match=r"what is left of one \(mark\)"):
        ReplicatedDict.restore(tmp_path / "b", tmp_path / "d")
    assert left_in(tmp_path / "d") == ["lock", "mark"]


def test_a_damaged_backup_is_refused(d: Dict, tmp_path: Path) -> None:
    """A backup with a flipped bit that matters, cut short, empty, or that is something else: refused, with the name of
    the file, and no directory is made."""
    d.update((number, number) for number in range(100))
    made = d.backup(tmp_path / "b")
    whole, rng = restored(made.path, tmp_path / "whole"), random.Random(7)

    def refused(change: Callable[[Path], object]) -> bool:
        bad = Path(shutil.copy(made.path, tmp_path / "bad"))
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        change(bad)
        try:
            ReplicatedDict.restore(bad, tmp_path / "r")
        except StorageError as error:
            return str(bad) in str(error) and not (tmp_path / "r").exists()
        with ReplicatedDict[Any, Any](tmp_path / "r") as r:
            assert r.snapshot() == whole
        return False

    flips = [refused(lambda bad: flip(bad, rng.randrange(made.size), rng.randrange(8))) for _ in range(60)]
    assert any(flips)
    assert refused(lambda bad: os.truncate(bad, made.size // 2))
    assert refused(lambda bad: os.truncate(bad, 0))
    assert refused(lambda bad: bad.write_text("no backup at all"))
    assert refused(lambda bad: bad.unlink())
    assert refused(lambda bad: shutil.copy(tmp_path / "whole" / FILE_NAME, bad)), "a node's file is no backup"


def test_what_a_node_sends_another_is_no_backup(d: Dict, tmp_path: Path) -> None:
    """A snapshot under way between two nodes does not say whose it is: it is not taken for a backup."""
    d.backup(tmp_path / "b")
    snapshot.create(host_of(d).node.store.uri, tmp_path / "sent")
    with pytest.raises(StorageError, match="sent: not a backup"):
        ReplicatedDict.restore(tmp_path / "sent", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_restore_is_whole_or_nothing(d: Dict, tmp_path: Path) -> None:
    """A restore that runs out of space leaves no node behind, and can be done again elsewhere."""
    d["big"] = b"x" * 3_000_000
    made = d.backup(tmp_path / "b")
    with small_disk(tmp_path / "small", "1m"):
        with pytest.raises(StorageError, match="could not be made"):
            ReplicatedDict.restore(made.path, tmp_path / "small" / "r")
        with pytest.raises(StorageError, match="could not be made"):
            ReplicatedDict.restore(made.path, tmp_path / "small")
        assert set(left_in(tmp_path / "small")) <= {"lock"}
    assert restored(made.path, tmp_path / "r")["big"] == b"x" * 3_000_000


# -- automatic snapshots --------------------------------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time flies: a node looks all the time whether a snapshot is due, and the newest is old at once."""
    monkeypatch.setattr(scheduled_snapshots, "LOOK_EVERY", 0.005)
    monkeypatch.setattr(scheduled_snapshots, "EVERY", 0.0)


def kept(path: Path) -> list[Path]:
    """The automatic snapshots of a node, oldest first."""
    return sorted((path / "snapshots").glob("*.db"))


def write_until_kept(d: Dict, path: Path, count: int) -> None:
    """Write until so many snapshots are there that were not before."""
    seen, number = set(kept(path)), 0

    def enough() -> bool:
        nonlocal number
        number += 1
        d["n"] = number
        d[number % 10] = number
        seen.update(kept(path))
        return len(seen) >= before + count

    before = len(seen)
    wait_until(enough, f"{count} snapshots are taken")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("network", [False, True], ids=["alone", "network"])
def test_snapshots_are_taken_by_themselves(tmp_path: Path, network: bool) -> None:
    """A node keeps its newest snapshots and deletes the oldest; each restores to one revision, the one in its name."""
    address = free_addresses(1)[0] if network else None
    with ReplicatedDict[Any, Any](tmp_path / "d", address=address, options=Options(snapshot_retain=2)) as d:
        first = None
        while first is None or first in kept(tmp_path / "d"):
            write_until_kept(d, tmp_path / "d", 1)
            first = first or kept(tmp_path / "d")[0]
        wait_until(lambda: len(kept(tmp_path / "d")) == 2, "the oldest are deleted")
    for number, path in enumerate(kept(tmp_path / "d")):
        held = snapshot.check(path)
        assert held.revision == int(path.name.split("-")[0])
        assert len(restored(path, tmp_path / f"r{number}")) == held.keys
    assert left_in(tmp_path / "d" / "snapshots") == [path.name for path in kept(tmp_path / "d")]


@pytest.mark.usefixtures("often")
def test_writes_go_on_beside_automatic_snapshots(tmp_path: Path) -> None:
    """Every member of a cluster takes its own while all are written to; each is the state of one revision."""
    with cluster(tmp_path) as nodes, Writers(nodes) as writers:
        for number in range(3):
            wait_until(lambda path=tmp_path / f"n{number}": len(kept(path)) >= 2, "snapshots are taken")  # type: ignore[misc]
    for number in range(3):
        for which, path in enumerate(kept(tmp_path / f"n{number}")):
            state = restored(path, tmp_path / f"r{number}-{which}")
            assert state == writers.state_at(snapshot.check(path).revision)


@pytest.mark.usefixtures("often")
def test_no_snapshot_of_what_is_kept_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken while nothing was written, not of a new node and not after a restart."""
    looks = []
    due = scheduled_snapshots.Automatic._due

    def counting(self: scheduled_snapshots.Automatic) -> bool:
        looks.append(due(self))
        return looks[-1]

    monkeypatch.setattr(scheduled_snapshots.Automatic, "_due", counting)
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        wait_until(lambda: len(looks) > 5, "it looks")
        assert not any(looks) and not kept(tmp_path / "d")
        d["k"] = 1
        wait_until(lambda: len(kept(tmp_path / "d")) == 1, "one is taken")
    looks.clear()
    with ReplicatedDict[Any, Any](tmp_path / "d"):
        wait_until(lambda: len(looks) > 5, "it looks")
    assert not any(looks) and len(kept(tmp_path / "d")) == 1


def test_not_before_the_newest_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes alone make no snapshot due: the newest must be half an hour old, whoever took it."""
    with monkeypatch.context() as patch:
        patch.setattr(scheduled_snapshots, "LOOK_EVERY", 0.005)
        with ReplicatedDict[Any, Any](tmp_path / "d") as d:
            d["k"] = 1
            wait_until(lambda: len(kept(tmp_path / "d")) == 1, "the first is taken")
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d["k"] = 2
        (path,) = kept(tmp_path / "d")
        assert not host_of(d)._automatic._due()
        written = path.stat().st_mtime
        os.utime(path, (written - 1801, written - 1801))
        assert host_of(d)._automatic._due()
        os.utime(path, (written + 10_000, written + 10_000))
        assert host_of(d)._automatic._due(), "a clock that was set back is no reason to take none for hours"


@pytest.mark.usefixtures("often")
def test_none_are_taken_when_none_are_wanted(tmp_path: Path) -> None:
    """With `snapshot_retain=0` there is no thread for it, and what is there from before stays."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        write_until_kept(d, tmp_path / "d", 1)
    before = kept(tmp_path / "d")
    with ReplicatedDict[Any, Any](tmp_path / "d", options=Options(snapshot_retain=0)) as d:
        d["more"] = 1
        assert not [each for each in threading.enumerate() if each.name == "replidict snapshots"]
    assert kept(tmp_path / "d") == before
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="snapshot_retain"):
            Options(snapshot_retain=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="log_retain"):
        Options(log_retain=0)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    """An unfinished snapshot is removed at the next start; other files there are left alone."""
    (tmp_path / "d" / "snapshots").mkdir(parents=True)
    (tmp_path / "d" / "snapshots" / scheduled_snapshots.UNFINISHED).write_bytes(b"half")
    (tmp_path / "d" / "snapshots" / "mine").write_text("a note")
    with ReplicatedDict[Any, Any](tmp_path / "d"):
        assert left_in(tmp_path / "d" / "snapshots") == ["mine"]


@pytest.mark.usefixtures("often")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_no_room_for_snapshots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a disk without room for them no snapshot is taken: one warning, nothing left there, and the node goes on."""
    path = tmp_path / "small" / "d"
    with small_disk(tmp_path / "small", "40m"):
        (tmp_path / "small" / "filler").write_bytes(bytes(28 << 20))
        with ReplicatedDict[str, int](path) as d:
            tried: set[float] = set()

            def tried_again() -> bool:
                d["k"] = len(tried)
                tried.add(host_of(d)._automatic._not_before)
                return len(tried) > 4

            wait_until(tried_again, "it has tried a few times")
            assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
            assert "no backup was made" in caplog.text and str(path / "snapshots") in caplog.text
            assert left_in(path / "snapshots") == []
            assert d.status().role == "leader"


@pytest.mark.usefixtures("often")
def test_forgotten_while_a_snapshot_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten dict may be collected by the thread that takes its snapshots: it is closed, and nothing hangs."""
    d = ReplicatedDict[Any, Any](tmp_path / "d")
    host, thread = host_of(d), host_of(d)._automatic._thread
    cycle: list[Any] = [d]
    cycle.append(cycle)
    arrived, go_on = threading.Event(), threading.Event()

    def collect() -> None:
        arrived.set()
        assert go_on.wait(30)
        gc.collect()

    monkeypatch.setattr(snapshot, "COPY_BYTES", 1)
    monkeypatch.setattr(online_backup, "_see_to_room", lambda _, needed: None if needed else collect())
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            d.update((number, number) for number in range(100))
            assert arrived.wait(30)
            del d, cycle
            go_on.set()
            ended = thread.join(30)
            wait_until(lambda: host.node.failure is not None, "it is closed")
            host.close()
    finally:
        gc.enable()
    assert [each.category for each in caught] == [ResourceWarning]
    assert ended
    assert left_in(tmp_path / "d" / "snapshots") == []
    with ReplicatedDict[Any, Any](tmp_path / "d", options=Options(snapshot_retain=0)) as again:
        assert len(again) == 100

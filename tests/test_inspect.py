"""`replidict inspect`: all that is on a stopped node's disk, and nothing changed there."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result

from replidict import Options, ReplicatedDict
from replidict.command.log_entries import described
from replidict.command.main import main
from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.storage.directory import FILE_NAME
from tests.clusters import cluster, wait_until
from tests.storage_support import FRAME, WAL, Rig, flip, image, put, written

FOUNDERS = ("10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000")


def inspect(path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["inspect", str(path), *options])


def on_disk(path: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything in a directory: bytes, time of the last change, mode."""
    found = {}
    for each in path.rglob("*"):
        status = each.stat()
        found[str(each)] = (each.read_bytes() if each.is_file() else b"", status.st_mtime_ns, status.st_mode)
    return found


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """The directory of a node that was killed in the third term, with entries that it does not know to be committed."""
    one = Rig(tmp_path / "n", founders=FOUNDERS)
    one.store.set_vote(2, FOUNDERS[1])
    one.perform(put("hello", "distributed"), put("k", 1), term=2)
    one.append(put("k", 2), term=3)
    one.store.commit()
    yield image(tmp_path / "n", tmp_path / "killed")
    one.close()


@pytest.mark.parametrize("how", ["killed", "closed", "closed, read-only"])
def test_nothing_is_changed(killed: Path, tmp_path: Path, how: str) -> None:
    """Whether there is a write-ahead log beside the file or not, not a byte, name or time changes in the directory."""
    path = killed
    (path / "lock").touch()
    if how != "killed":
        Rig(path, founders=FOUNDERS).close()
        assert not (path / WAL).exists()
    else:
        assert (path / WAL).stat().st_size > 0
    if how == "closed, read-only":
        for each in (*path.iterdir(), path):
            each.chmod(0o500)
    before = on_disk(path)
    for options in ([], ["--json", "-n", "9"]):
        done = inspect(path, *options)
        assert done.exit_code == 0, done.output
    assert on_disk(path) == before
    path.chmod(0o700)


def test_it_tells_what_is_there(killed: Path) -> None:
    """Identity, term, vote, members, indices, sizes and entries are those of the node, in JSON and for people."""
    done = json.loads(inspect(killed, "--json", "-n", "2").output)
    assert done.pop("node_id") and done.pop("cluster_id") and done.pop("written") > 0 and len(done.pop("digest")) == 32
    assert done == {
        "path": str(killed), "address": FOUNDERS[0], "voters": list(FOUNDERS), "learners": [], "term": 3,
        "voted_for": None, "first_index": 1, "last_index": 3, "last_term": 3, "committed_index": 0,
        "applied_index": 0, "revision": 0, "keys": 0, "feature_level": 1,
        "file_bytes": (killed / FILE_NAME).stat().st_size, "wal_bytes": (killed / WAL).stat().st_size,
        "damage": None, "superseded": None,
        "removed": False, "recovered": None,
        "entries": [
            {"index": 2, "term": 2, "entry": "set 'hello' = 'distributed'; set 'k' = 1"},
            {"index": 3, "term": 3, "entry": "set 'k' = 2"},
        ],
    }  # fmt: skip
    text = inspect(killed, "-n", "2").output
    assert "log entries   1 to 3, the last of term 3" in text and "integrity     ok" in text
    assert re.search(
        r"state table   up to 0: 0 keys, revision 0\n +and 3 log entries that it has not taken in yet\n", text
    )
    assert text.splitlines()[-1].split() == ["3", "3", "unknown", "set", "'k'", "=", "2"]


def test_a_changed_membership_is_told(tmp_path: Path) -> None:
    """The members are those of the last configuration in the log, committed or not: it is the one in force."""
    from replidict.protocol.log_entry import Entry

    one = Rig(tmp_path / "n", founders=FOUNDERS)
    one.store.set_vote(1, None)
    one.log.append([Entry(1, 1, cmd.encode(cmd.Configuration(list(FOUNDERS[:2]), ["10.0.0.9:7000"])))])
    one.store.commit()
    one.close()
    done = json.loads(inspect(tmp_path / "n", "--json").output)
    assert (done["voters"], done["learners"]) == (list(FOUNDERS[:2]), ["10.0.0.9:7000"])


def test_more_entries_than_there_are(killed: Path) -> None:
    """More entries asked for than SQLite can count to: all are shown, or the number is refused, without a traceback."""
    assert inspect(killed, "-n", "1000000").exit_code == 0
    assert inspect(killed, "-n", "9" * 23).exit_code == 2


def test_a_removed_node_is_told(tmp_path: Path) -> None:
    """The disk of a node that was removed: shown, and exit status 8, as when it is started."""
    with cluster(tmp_path, 2) as nodes:
        removed = str(nodes[1].status().address)
        nodes[0].remove_peer(removed)
        wait_until(lambda: nodes[1].status().role == "removed", "it has stopped")
    done = inspect(tmp_path / "n1")
    assert done.exit_code == 8 and f"{removed} was removed from its cluster" in done.output
    assert "integrity     ok" in done.output
    assert json.loads(inspect(tmp_path / "n1", "--json").stdout)["removed"] is True
    assert inspect(tmp_path / "n0").exit_code == 0


def test_a_node_that_runs_is_refused(tmp_path: Path) -> None:
    """Where a node runs, inspecting is refused; where one is inspected, no node starts."""
    with ReplicatedDict[str, int](tmp_path / "d") as d:
        d["k"] = 1
        done = inspect(tmp_path / "d")
        assert done.exit_code == 5 and "in use" in done.output
    assert inspect(tmp_path / "d").exit_code == 0


def test_what_is_no_node(tmp_path: Path) -> None:
    """No directory, and one without a node: said so, and nothing is made there."""
    (tmp_path / "empty").mkdir()
    for name, message in (("missing", "no such directory"), ("empty", "holds no node")):
        done = inspect(tmp_path / name)
        assert done.exit_code == 5 and message in done.output
    assert not (tmp_path / "missing").exists() and not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("statement", "damage"),
    [
        ("UPDATE log SET command = x'00' WHERE idx = 2", "checksum of log entry 2"),
        ("DELETE FROM log WHERE idx = 2", "log entry 2 is missing"),
        ("DELETE FROM log WHERE idx = 3", "its log ends at entry 2"),
        ("UPDATE fact SET crc = 7 WHERE name = 'vote'", "checksum of 'vote'"),
    ],
)
def test_damage_is_told_beside_what_can_be_read(killed: Path, statement: str, damage: str) -> None:
    """A file that a node would refuse: exit status 5, what is wrong, and all the same what can be read of it."""
    with closing(sqlite3.connect(killed / FILE_NAME, isolation_level=None)) as db:
        db.execute(statement)
    done = inspect(killed)
    assert done.exit_code == 5 and "integrity     DAMAGED" in done.output
    assert FOUNDERS[0] in done.output and damage in done.output and str(killed / FILE_NAME) in done.output
    assert damage in json.loads(inspect(killed, "--json").stdout)["damage"]


@pytest.mark.parametrize("name", [FILE_NAME, WAL])
def test_it_agrees_with_the_node(killed: Path, tmp_path: Path, name: str) -> None:
    """Whatever bit is flipped, it says "ok" only of what a node opens, and never ends with a traceback."""
    rng, size = random.Random(name), len(written((killed / name).read_bytes())) if name == WAL else 32768
    for _ in range(60):
        copy = Path(shutil.copytree(killed, tmp_path / "copy", dirs_exist_ok=True))
        flip(copy / name, rng.randrange(size), rng.randrange(8))
        done = inspect(copy)
        assert done.exit_code in (0, 5), done.exception
        if done.exit_code == 0:
            Rig(copy, founders=FOUNDERS).close()


def test_a_newer_format_in_the_log_alone(killed: Path) -> None:
    """A newer release that was killed when it had just raised the format's number: refused, as a node refuses it."""
    with closing(sqlite3.connect(killed / FILE_NAME, isolation_level=None)) as db:
        db.execute("PRAGMA user_version = 99")
        raised = image(killed, killed.parent / "raised")
    done = inspect(raised)
    assert done.exit_code == 5 and "a newer release of replidict wrote it" in done.output
    with pytest.raises(StorageError, match="a newer release"):
        Rig(raised, founders=FOUNDERS)


def test_a_file_cut_short(killed: Path) -> None:
    """A write-ahead log that is cut off, and a file that is: refused with the reason."""
    os.truncate(killed / WAL, len(written((killed / WAL).read_bytes())) - 1)
    assert "already acknowledged" in inspect(killed).output
    os.truncate(killed / FILE_NAME, 1000)
    assert inspect(killed).exit_code == 5


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (cmd.Put(encode_key("k"), encode(b"v")), "set 'k' = b'v'"),
        (cmd.Add(encode_key((1, 2)), encode(None)), "add (1, 2) = None"),
        (cmd.CompareAndSet(encode_key("k"), encode(1), encode(2)), "compare_and_set 'k' from 1 = 2"),
        (cmd.Increment(encode_key("k"), encode(2), encode(0)), "increment 'k' by 2"),
        (cmd.Transact([], []), "transaction: no writes"),
        (
            cmd.Transact(
                [(encode_key("a"), 5), (encode_key("b"), None)],
                [cmd.Put(encode_key("a"), encode(1)), cmd.Delete(encode_key("c"))],
                7,
            ),
            "transaction: set 'a' = 1, delete 'c' if 'a' at revision 5, 'b' absent, all at revision 7",
        ),
        (cmd.Replace(encode_key("k"), encode(1), 7), "replace 'k' = 1 if at revision 7"),
        (cmd.Delete(encode_key("k")), "delete 'k'"),
        (cmd.PopItem(), "popitem"),
        (cmd.Remove(encode_key("k"), 7), "pop 'k' if at revision 7"),
        (cmd.Remove(encode_key("k"), 7, True), "popitem 'k' if at revision 7"),
        (cmd.Put(encode_key(10**5000), encode(-(10**5000))), f"set 1{'0' * 36}... = -1{'0' * 35}..."),
        (cmd.Clear(), "clear"),
        (cmd.Update([(encode_key(n), encode(n)) for n in range(5)]), "update 0 = 0, 1 = 1, 2 = 2, and 2 more"),
        (cmd.Put(encode_key("k"), b"\xc1 of another codec"), "set 'k' = b'\\xc1 of another codec'"),
        (cmd.Put(encode_key("k" * 99), encode(1)), f"set '{'k' * 36}... = 1"),
    ],
)
def test_entries_are_told_in_words(operation: cmd.Operation, words: str) -> None:
    """What an entry does is told briefly, whatever values it has."""
    assert described(cmd.encode(cmd.Batch(1, 1, 0, [operation]))) == words


def test_other_entries_are_told_in_words() -> None:
    """So are those that are no writes."""
    told: list[tuple[Any, str]] = [
        (cmd.NoOp(), "a leader begins its term"),
        (cmd.OpenSession(b"nonce"), "a session begins"),
        (cmd.Batch(1, 2, 1, []), "no writes"),
        (cmd.Batch(1, 2, 1, [cmd.Clear()] * 5), "clear; clear; clear; and 2 more"),
        (cmd.Configuration(["a:1"], ["b:1"]), "voters a:1, learners b:1"),
    ]
    assert [described(cmd.encode(command)) for command, _ in told] == [words for _, words in told]
    assert described(b"\x00") == "what this release does not know: upgrade it"


def torn_in_the_middle(path: Path, durability: Literal["fsync", "process"]) -> Path:
    """The directory of a node that was killed, and a frame of whose write-ahead log did not reach the disk, though
    those of later commits did: without a sync after each of them a loss of power does that."""
    with ReplicatedDict[str, int](path, options=Options(durability=durability)) as d:
        for number in range(40):
            d[f"key {number}"] = number
        torn = Path(shutil.copytree(path, path.with_name("torn")))
    frames = len(written((torn / WAL).read_bytes())) // FRAME
    flip(torn / WAL, 32 + FRAME * (frames // 2) + 100, 3)
    return torn


@pytest.mark.parametrize("opened", ["process", "fsync"])
def test_what_ran_without_syncs_is_judged_so(tmp_path: Path, opened: Literal["fsync", "process"]) -> None:
    """Of a node with durability="process" it says what an opening would: the log is good up to where it is torn. The
    node opens, with either durability, and has what came before."""
    torn = torn_in_the_middle(tmp_path / "n", "process")
    done = json.loads(inspect(torn, "--json").output)
    assert done["damage"] is None and 5 < done["last_index"] < 41
    with ReplicatedDict[str, int](torn, options=Options(durability=opened)) as d:
        assert d["key 1"] == 1 and 5 < len(d) < 40
        d["another"] = 1


@pytest.mark.parametrize("later", ["fsync", "process"])
def test_what_ran_with_syncs_is_judged_so(tmp_path: Path, later: Literal["fsync", "process"]) -> None:
    """How a node ran last counts, not how it ran before: what was synced and can't be read is damage."""
    with ReplicatedDict[str, int](tmp_path / "n", options=Options(durability="process")) as d:
        d["k"] = 1
    with ReplicatedDict[str, int](tmp_path / "n", options=Options(durability="fsync")) as d:
        d["k"] = 2
    torn = torn_in_the_middle(tmp_path / "n", later)
    done = inspect(torn)
    if later == "process":
        assert done.exit_code == 0
        return
    assert done.exit_code == 5 and "is damaged in frame" in done.output
    with pytest.raises(StorageError, match="is damaged in frame"):
        ReplicatedDict(torn)

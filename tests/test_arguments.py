"""What is wrong with what a caller gives is said at once, by name, and nothing is changed."""

from __future__ import annotations

import fcntl
import math
import shutil
import socket
import sqlite3
import subprocess
import sys
from dataclasses import Field, FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from replidict import TLS, Options, ReplicatedDict, ReplidictError, SecurityError, StorageError
from replidict.options import MAY_BE_ZERO
from tests.clusters import free_addresses, leader_of, open_member, wait_until

FILE = "replidict.db"


def contents(directory: Path) -> dict[str, bytes]:
    """Every file in it that says something, byte by byte: not SQLite's index of its log, nor an empty log or lock."""
    found = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    return {name: data for name, data in found.items() if data and not name.endswith("-shm")}


def assert_unlocked(directory: Path) -> None:
    with (directory / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A directory with a closed node in it."""
    path = tmp_path / "used"
    with ReplicatedDict[str, int](path) as d:
        d["a"] = 1
    return path


def assert_still_good(path: Path, **arguments: Any) -> None:
    with ReplicatedDict[str, int](path, **arguments) as d:
        assert d == {"a": 1}


# -- arguments that make no sense -----------------------------------------------------------------------------------

_HERE = "127.0.0.1:7101"


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        pytest.param("peers=", {"peers": ["127.0.0.1:7102"]}, id="peers without address"),
        pytest.param("peers=", {"address": _HERE, "peers": "127.0.0.1:7102"}, id="str as peers"),
        pytest.param("peers=", {"address": _HERE, "peers": b"127.0.0.1:7102"}, id="bytes as peers"),
        pytest.param("peers=", {"address": _HERE, "peers": None}, id="None as peers"),
        pytest.param("peers=", {"address": _HERE, "peers": 5}, id="a number as peers"),
        pytest.param("peers", {"address": _HERE, "peers": [7102]}, id="a number as peer"),
        pytest.param(_HERE, {"address": _HERE, "peers": [_HERE]}, id="itself as peer"),
        pytest.param("localhost:7101", {"address": "LOCALHOST:7101", "peers": ["localhost:7101"]}, id="itself again"),
        pytest.param("07101", {"address": _HERE, "peers": ["127.0.0.1:07101"]}, id="itself, with a zero"),
        pytest.param("127.0.0.1:7102", {"address": _HERE, "peers": ["127.0.0.1:7102"] * 2}, id="peer twice"),
        pytest.param("B:1", {"address": _HERE, "peers": ["b:1", "B:1"]}, id="peer twice, in capitals"),
        pytest.param("address", {"address": 7101}, id="a number as address"),
        pytest.param("127.0.0.1", {"address": "127.0.0.1"}, id="no port"),
        pytest.param("127.0.0.1:", {"address": "127.0.0.1:"}, id="empty port"),
        pytest.param("127.0.0.1:0", {"address": "127.0.0.1:0"}, id="port 0"),
        pytest.param("127.0.0.1:65536", {"address": "127.0.0.1:65536"}, id="port too high"),
        pytest.param("127.0.0.1:http", {"address": "127.0.0.1:http"}, id="port by name"),
        pytest.param(":7101", {"address": ":7101"}, id="no host"),
        pytest.param("0.0.0.0:7101", {"address": "0.0.0.0:7101"}, id="every address"),
        pytest.param("::1:7101", {"address": "::1:7101"}, id="IPv6 without brackets"),
        pytest.param("a b:1", {"address": _HERE, "peers": ["a b:1"]}, id="bad peer"),
        pytest.param("''", {"address": ""}, id="empty address"),
        pytest.param("timeout=", {"timeout": -1}, id="negative timeout"),
        pytest.param("timeout=", {"timeout": math.nan}, id="timeout nan"),
        pytest.param("timeout=", {"timeout": math.inf}, id="timeout without end"),
        pytest.param("timeout=", {"timeout": None}, id="timeout None"),
        pytest.param("timeout=", {"timeout": "10"}, id="timeout str"),
        pytest.param("timeout=", {"timeout": True}, id="timeout bool"),
        pytest.param("options=", {"options": None}, id="options None"),
        pytest.param("options=", {"options": {"heartbeat": 1}}, id="options dict"),
        pytest.param("codec=", {"codec": None}, id="codec None"),
        pytest.param("codec=", {"codec": object()}, id="codec without methods"),
        pytest.param("secret=", {"secret": "a long secret"}, id="secret without address"),
        pytest.param("tls=", {"tls": TLS(cert="c", key="k", ca="a")}, id="tls without address"),
        pytest.param("tls=", {"address": _HERE, "tls": "cert.pem"}, id="tls str"),
        pytest.param("secret=", {"address": _HERE, "secret": "short"}, id="secret too short"),
        pytest.param("secret=", {"address": _HERE, "secret": 12345678}, id="secret a number"),
        pytest.param("secret=", {"address": _HERE, "secret": "s" * 9, "tls": TLS(cert="c", key="k", ca="a")}, id="two"),
    ],
)  # fmt: skip
def test_wrong_arguments(tmp_path: Path, named: str, arguments: dict[str, Any]) -> None:
    """An argument that makes no sense is a `ValueError`, or for an address a `ReplidictError`, that names it."""
    with pytest.raises((ValueError, ReplidictError)) as raised:
        ReplicatedDict[Any, Any](tmp_path / "d", **arguments)
    assert named in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_off_loopback_without_security(tmp_path: Path) -> None:
    """Off loopback, without a secret or TLS, it refuses to listen, before anything is made (promise 7)."""
    with pytest.raises(SecurityError, match=r"10\.0\.0\.1:7000"):
        ReplicatedDict[Any, Any](tmp_path / "d", address="10.0.0.1:7000")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, "", b"", object()])
def test_wrong_path(path: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is no path is a `ValueError` that says so, and nothing is made where the program happens to be."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path="):
        ReplicatedDict[Any, Any](path)
    assert list(tmp_path.iterdir()) == []


_WRONG: dict[str, list[Any]] = {
    "heartbeat": [0.2],
    "election_timeout": [0.2],
    "durability": ["FSYNC", "none", True],
    "lease_reads": [1, 0],
    "max_key_bytes": [2**21],
    "max_value_bytes": [2**30],
}


@pytest.mark.parametrize("field", fields(Options), ids=lambda field: field.name)
def test_wrong_options(field: Field[Any]) -> None:
    """A wrong option is a `ValueError` that names it, as soon as it is made."""
    wrong = [None, "x", [], math.nan, math.inf, *_WRONG.get(field.name, [])]
    wrong += [-1, True] if field.type in ("int", "float") else []
    wrong += [0] if field.type in ("int", "float") and field.name not in MAY_BE_ZERO else []
    wrong += [1.5] if field.type != "float" else []
    for value in wrong:
        with pytest.raises(ValueError, match=rf"{field.name}="):
            Options(**{field.name: value})


def test_what_may_be_zero_is_said() -> None:
    """An option of which 0 is a value is not said to need a positive one."""
    for name in MAY_BE_ZERO:
        wrong: dict[str, Any] = {name: -1}
        right: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=rf"{name}=-1.*must be 0 or a positive number below 2\*\*40"):
            Options(**wrong)
        assert getattr(Options(**right), name) == 0


def test_options_are_frozen_and_named() -> None:
    """Options can't be changed later, nor given by position, where one would be taken for another."""
    options = Options()
    with pytest.raises(FrozenInstanceError):
        options.heartbeat = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Options(0.1)  # type: ignore[call-arg]
    assert Options(heartbeat=1, election_timeout=3).heartbeat == 1


@pytest.mark.parametrize("timeout", [-5, math.nan, math.inf, "1", True])
def test_wrong_timeouts_of_reads(tmp_path: Path, timeout: Any) -> None:
    """A timeout that is none is refused by every read, also by one that need not wait."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        for read in (d.get, d.versioned):
            for how in ({}, {"linearizable": True}):
                with pytest.raises(ValueError, match="timeout="):
                    read("k", timeout=timeout, **how)
        with pytest.raises(ValueError, match="timeout="):
            d.get("k", max_staleness=1000, timeout=timeout)
        assert d.get("k", 1, timeout=5) == 1


# -- the directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "below", "below/further"])
def test_path_is_a_file(tmp_path: Path, below: str) -> None:
    """A path that is a file, or below one, is a `StorageError`, and the file stays as it is."""
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    with pytest.raises(StorageError, match="file"):
        ReplicatedDict[Any, Any](file / below)
    assert contents(tmp_path) == {"file": b"precious"}


def test_in_use_by_this_process(used: Path) -> None:
    """A directory that is open already is a `StorageError` that says so, and the first one goes on."""
    with ReplicatedDict[str, int](used) as d:
        for again in (used, used.parent / "." / used.name, str(used)):
            with pytest.raises(StorageError, match="in use"):
                ReplicatedDict[Any, Any](again)
        d["b"] = 2
    with ReplicatedDict[str, int](used) as d:
        assert d == {"a": 1, "b": 2}


def test_in_use_through_a_link(used: Path) -> None:
    """A directory is the same by whatever name."""
    link = used.parent / "link"
    link.symlink_to(used)
    with ReplicatedDict[str, int](used), pytest.raises(StorageError, match="in use"):
        ReplicatedDict[Any, Any](link)


def test_in_use_by_another_process(used: Path) -> None:
    """A directory that another process uses is refused, and can be had as soon as that one is dead (kill -9)."""
    script = (
        "import sys; from replidict import ReplicatedDict as R; d = R(sys.argv[1]); d.wait_ready();"  # writes no more
        "print('open', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(used)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "open\n"
            before = contents(used)
            with pytest.raises(StorageError, match="in use by another process"):
                ReplicatedDict[Any, Any](used)
            assert contents(used) == before
        finally:
            other.kill()
    assert_still_good(used)


def _foreign_database(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE log(idx INTEGER)")
    db.close()


def _newer(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()


def _older(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 0")
    db.close()


def _truncate(file: Path) -> None:
    with file.open("r+b") as raw:
        raw.truncate(file.stat().st_size // 2)


def _flip(file: Path) -> None:
    """One bit in the value that is stored, where SQLite itself does not look."""
    with sqlite3.connect(file) as db:
        (value,) = db.execute("SELECT value FROM state").fetchone()
        db.execute("UPDATE state SET value = ?", (bytes([value[0] ^ 1]) + value[1:],))
    db.close()


def _cut_state(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM state")
    db.close()


def _cut_identity(file: Path) -> None:
    with sqlite3.connect(file) as db:
        db.execute("DELETE FROM fact WHERE name = 'identity'")
    db.close()


def _empty_beside_log(file: Path) -> None:
    file.unlink()
    Path(f"{file}-wal").write_bytes(b"the log of the file that is gone")


@pytest.mark.parametrize(
    ("says", "damage"),
    [
        pytest.param("not a SQLite file", lambda file: file.write_bytes(b""), id="empty"),
        pytest.param("not a SQLite file", lambda file: file.write_bytes(b"hello"), id="text"),
        pytest.param("not a SQLite file", lambda file: file.write_bytes(b"\0" * 8192), id="zeros"),
        pytest.param("", lambda file: file.write_bytes(b"SQLite format 3\0" + b"\xff" * 8000), id="only a header"),
        pytest.param("another program", _foreign_database, id="foreign database"),
        pytest.param("newer release", _newer, id="newer format"),
        pytest.param("", _older, id="format without number"),
        pytest.param("", _truncate, id="truncated"),
        pytest.param("checksum", _flip, id="bit flipped"),
        pytest.param("should hold", _cut_state, id="rows gone"),
        pytest.param("identity", _cut_identity, id="identity gone"),
        pytest.param("missing", _empty_beside_log, id="file gone, its log left"),
        pytest.param("", lambda file: (file.unlink(), file.mkdir()), id="a directory"),
    ],
)
def test_damaged_file(used: Path, says: str, damage: Any) -> None:
    """A corrupt or foreign file is a `StorageError` that names it, is never taken for empty, and stays as it is."""
    damage(used / FILE)
    before = contents(used)
    for _ in range(2):
        with pytest.raises(StorageError) as raised:
            ReplicatedDict[Any, Any](used)
        assert FILE in str(raised.value) and says in str(raised.value)
        assert contents(used) == before
        assert_unlocked(used)


def test_newer_format_with_a_log(used: Path, tmp_path: Path) -> None:
    """A newer release's file is left alone also when that release was killed, and its write-ahead log is there."""
    left = tmp_path / "left"
    with ReplicatedDict[str, int](used) as d:
        d["b"] = 2
        shutil.copytree(used, left)
    with sqlite3.connect(left / FILE) as db:
        db.execute("PRAGMA user_version = 1000")
        killed = tmp_path / "killed"
        shutil.copytree(left, killed)
    db.close()
    before = contents(killed)
    assert before["replidict.db-wal"]
    with pytest.raises(StorageError, match="newer release"):
        ReplicatedDict[Any, Any](killed)
    assert contents(killed) == before


# -- addresses ------------------------------------------------------------------------------------------------------


def test_address_in_use(tmp_path: Path) -> None:
    """An address in use is a `ReplidictError` that names it, and the directory can be given another one afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ReplidictError, match=taken):
            ReplicatedDict[Any, Any](tmp_path / "d", address=taken)
        assert not (tmp_path / "d" / FILE).exists()
        (free,) = free_addresses(1)
        with ReplicatedDict[Any, Any](tmp_path / "d", address=free) as d:
            d["a"] = 1


def test_address_in_use_at_a_restart(tmp_path: Path) -> None:
    """A node whose address is taken meanwhile says so, and its data stays and serves when the address is free."""
    (address,) = free_addresses(1)
    with ReplicatedDict[Any, Any](tmp_path / "d", address=address) as d:
        d["a"] = 1
    before = contents(tmp_path / "d")
    host, port = address.split(":")
    with socket.create_server((host, int(port))), pytest.raises(ReplidictError, match=address):
        ReplicatedDict[Any, Any](tmp_path / "d", address=address)
    assert contents(tmp_path / "d") == before
    assert_unlocked(tmp_path / "d")
    assert_still_good(tmp_path / "d", address=address)


def test_address_of_another_machine(tmp_path: Path) -> None:
    """An address that this machine does not have can't be listened on, and nothing is made."""
    with pytest.raises(ReplidictError, match=r"192\.0\.2\.1:7000"):
        ReplicatedDict[Any, Any](tmp_path / "d", address="192.0.2.1:7000", insecure=True)
    assert not (tmp_path / "d" / FILE).exists()


def test_another_address_on_the_same_directory(used: Path, tmp_path: Path) -> None:
    """A directory belongs to one node: under another address it is a `ValueError` that names both."""
    before = contents(used)
    first, second = free_addresses(2)
    with pytest.raises(ValueError, match=first):
        ReplicatedDict[Any, Any](used, address=first)
    assert contents(used) == before
    assert_unlocked(used)
    assert_still_good(used)
    networked = tmp_path / "networked"
    with ReplicatedDict[Any, Any](networked, address=first) as d:
        d["a"] = 1
    before = contents(networked)
    with pytest.raises(ValueError, match=rf"{first}, not to {second}"):
        ReplicatedDict[Any, Any](networked, address=second)
    with pytest.raises(ValueError, match=rf"{first}, not to local"):
        ReplicatedDict[Any, Any](networked)
    assert contents(networked) == before
    assert_still_good(networked, address=first)


def test_other_peers_the_second_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`peers=` founds a cluster; afterwards the directory knows the members, and a difference is only logged."""
    (address,) = free_addresses(1)
    with ReplicatedDict[Any, Any](tmp_path / "d", address=address) as d:
        d["a"] = 1
    with ReplicatedDict[Any, Any](tmp_path / "d", address=address, peers=["127.0.0.1:7999"]) as d:
        assert d.status().peers == ()
        assert d.get("a", linearizable=True) == 1
    assert "peers= differ" in caplog.text


def test_a_peer_of_another_cluster_is_not_counted(tmp_path: Path) -> None:
    """Nodes that were given other lists of peers found no cluster together: none is ever the leader of the other."""
    first, second, third = free_addresses(3)
    with (
        ReplicatedDict[Any, Any](tmp_path / "1", address=first, peers=[second]) as one,
        ReplicatedDict[Any, Any](tmp_path / "2", address=second, peers=[first, third]) as two,
    ):
        assert not one.wait_ready(1.5)
        assert one.status().connected == two.status().connected == ()


@pytest.mark.parametrize("wrong", [None, "b:1", 5])
def test_peers_that_are_no_list_are_told_what_to_do(tmp_path: Path, wrong: Any) -> None:
    """A node that was given no list of peers by mistake founds no cluster of its own; the error says how to do that."""
    with pytest.raises(ValueError, match=r"must be a list of addresses.*leave peers= out, or give \[\]"):
        ReplicatedDict(tmp_path / "d", address=_HERE, peers=wrong)
    assert not (tmp_path / "d").exists()


def test_an_int_of_many_digits_is_refused_in_words(tmp_path: Path) -> None:
    """An argument that Python itself does not print is told of as any other."""
    with pytest.raises(ValueError, match=r"timeout=<an int of 16,610 bits>: must be a number of seconds"):
        ReplicatedDict(tmp_path / "d", timeout=10**5000)
    with pytest.raises(ValueError, match=r"Options\(log_retain=<an int of 16,610 bits>\)"):
        Options(log_retain=10**5000)


def test_peers_may_be_any_iterable(tmp_path: Path) -> None:
    """`peers=` takes a generator, a set or a dict's keys as well as a list, in any order."""
    addresses = free_addresses(3)
    with (
        ReplicatedDict[Any, Any](
            tmp_path / "1", address=addresses[0], peers=(each for each in addresses[:0:-1])
        ) as one,
        ReplicatedDict[Any, Any](tmp_path / "2", address=addresses[1], peers={addresses[0], addresses[2]}) as two,
        open_member(tmp_path, addresses, 2) as three,
    ):
        assert leader_of([one, two, three]) in (one, two, three)
        wait_until(lambda: len(one.status().connected) == 2, "all are connected")

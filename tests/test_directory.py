"""A node's directory: who may use it, who may read it, and what is written there for others."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict import TLS, Options, ReplicatedDict, StorageError
from replidict.command.security_options import _secret
from replidict.raft import install_snapshot
from replidict.security import security_for
from tests.clusters import free_addresses, wait_until

PATIENCE = 60


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_a_removed_lock_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever removes `lock` as stale lets no second process in: the node makes it anew, says so, and goes on."""
    with ReplicatedDict[str, int](tmp_path / "d") as d:
        (tmp_path / "d" / "lock").unlink()
        with pytest.raises(StorageError, match="in use by another"):
            ReplicatedDict[str, int](tmp_path / "d")
        wait_until((tmp_path / "d" / "lock").exists, "it is made anew")
        wait_until(lambda: "was removed while this node ran" in caplog.text, "it is logged")
        with (tmp_path / "d" / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        d["k"] = 1


def test_a_lock_taken_over_stops_the_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where `lock` was removed and another process, of a release that knows no other lock, has made it anew, the node
    stops before both write, and says that it was this, not the disk."""
    caplog.set_level(logging.ERROR)
    d = ReplicatedDict[str, int](tmp_path / "d")
    with (tmp_path / "anew").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # In one step: a node that looks in between finds none, and makes it anew itself.
        (tmp_path / "anew").rename(tmp_path / "d" / "lock")
        wait_until(lambda: d.status().role == "stopped", "it has stopped")
        with pytest.raises(StorageError, match="two processes use one directory"):
            d["k"] = 1
    d.close()
    assert "Never remove `lock`" in caplog.text


def test_a_lock_without_its_name_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has locked a file which another removed meanwhile tries again, with the one that has the name."""
    real = fcntl.flock
    removed: list[Path] = []

    def flock(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and not removed:
            removed.append(tmp_path / "d" / "lock")
            removed[0].unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with ReplicatedDict[str, int](tmp_path / "d"):
        assert removed
        with (tmp_path / "d" / "lock").open() as lock, pytest.raises(BlockingIOError):
            real(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_files_are_private(tmp_path: Path) -> None:
    """In a directory that was there before, every file is its user's alone, and the directory stays as it was."""
    mine, other = free_addresses(2)
    with umask(0o022):
        for name in "ab":
            (tmp_path / name).mkdir(mode=0o755)
        with ReplicatedDict[Any, Any](tmp_path / "a", address=mine, options=Options(log_retain=10)) as d:
            d.update(dict.fromkeys(range(2000), "x" * 100))
            for number in range(400):
                d[number] = number
            with ReplicatedDict[Any, Any](tmp_path / "b", address=other, join=mine, timeout=PATIENCE) as e:
                wait_until(lambda: len(e) == 2000, "it has the snapshot")
                d.backup(tmp_path / "backup")
                ReplicatedDict.restore(tmp_path / "backup", tmp_path / "c")
                seen = {
                    path: stat.S_IMODE(path.stat().st_mode)
                    for path in tmp_path.rglob("*")
                    if path.is_file() and not path.name.startswith("outgoing")
                }
    assert {path.name for path in seen} >= {"replidict.db", "replidict.db-wal", "mark", "lock", "backup"}
    assert {path: oct(mode) for path, mode in seen.items() if mode & 0o077} == {}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755


def test_a_snapshot_that_cannot_be_written_stops_no_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A leader that can't write a snapshot for a follower goes on, says what is wrong, and tries again later."""
    monkeypatch.setattr(install_snapshot, "RETRY_PAUSE", 0.2)
    mine, other = free_addresses(2)
    with ReplicatedDict[Any, Any](tmp_path / "a", address=mine, options=Options(log_retain=10)) as d:
        d.update(dict.fromkeys(range(2000), "x" * 100))
        for number in range(400):
            d[number] = number
        in_the_way = tmp_path / "a" / "outgoing.snapshot"
        (in_the_way / "something").mkdir(parents=True)
        with ReplicatedDict[Any, Any](tmp_path / "b", address=other, join=mine, timeout=PATIENCE) as e:
            wait_until(lambda: "needs a snapshot, which could not be made" in caplog.text, "it is logged")
            d["k"] = 1
            assert d.status().is_leader and len(e) == 0
            (in_the_way / "something").rmdir()
            in_the_way.rmdir()
            wait_until(lambda: len(e) == 2001, "it has the snapshot")
    assert len([line for line in caplog.messages if "could not be made" in line]) == 1


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"a shared secret\n", "a shared secret"),
        (b"  a shared secret \r\n", "a shared secret"),
        ("ein gehütetes Geheimnis\n".encode(), "ein gehütetes Geheimnis"),
        (b"\xff\xfe\x80 eight bytes\n", b"\xff\xfe\x80 eight bytes"),
    ],
)
def test_a_secret_file_is_bytes(tmp_path: Path, content: bytes, secret: str | bytes) -> None:
    """A secret read from a file is the same whatever the locale is, and need not be text; line ends do not count."""
    (tmp_path / "secret").write_bytes(content)
    read = _secret(tmp_path / "secret")
    found, wanted = (security_for("10.0.0.1:7000", None, each, False).secret for each in (read, secret))
    assert found == wanted


def test_certificates_by_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a `TLS` are those that its paths meant when it was made."""
    monkeypatch.chdir(tmp_path)
    tls = TLS(cert="node.crt", key=Path("node.key"), ca="ca.crt")
    monkeypatch.chdir("/")
    assert [Path(path) for path in (tls.cert, tls.key, tls.ca)] == [
        tmp_path / name for name in ("node.crt", "node.key", "ca.crt")
    ]

"""`examples/copy_store.py`, by which a diskcache or a shelve becomes a dict, with real ones of both."""

from __future__ import annotations

import re
import shelve
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import diskcache  # type: ignore[import-untyped]
import pytest

from replidict import ReplicatedDict
from tests.serving import ROOT

SCRIPT = [sys.executable, str(ROOT / "examples" / "copy_store.py")]


def copy(source: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SCRIPT, source, directory], capture_output=True, text=True, timeout=60)


def content(directory: Path) -> dict[Any, Any]:
    with ReplicatedDict[Any, Any](directory) as d:
        return d.snapshot()


def test_a_diskcache_is_copied(tmp_path: Path) -> None:
    """Keys and values of all kinds, in their order, with their time to live; what has expired is left out."""
    entries = {"a": 1, "b": {"list": [1, (2, 3)]}, 7: b"bytes", ("tuple", 1): "text", "file": b"x" * 100_000}
    with diskcache.Cache(str(tmp_path / "cache"), cull_limit=0) as cache:
        for key, value in entries.items():
            cache.set(key, value)
        cache.set("for an hour", "e", expire=3600)
        cache.set("gone", "e", expire=-1)
    done = copy(tmp_path / "cache", tmp_path / "d")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 of 7 entries copied, 1 were there already or had expired\n"
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert list(d.items()) == [*entries.items(), ("for an hour", "e")]
        left = d.ttl("for an hour")
        assert left is not None and 3500 < left < 3601
        assert d.ttl("a") is None


def test_a_shelve_is_copied(tmp_path: Path) -> None:
    """All entries of a shelve, with their types."""
    entries = {f"key {n}": {"number": n, "price": Decimal(n) / 4} for n in range(500)}
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        shelf.update(entries)
    done = copy(tmp_path / "shelf", tmp_path / "d")
    assert (done.returncode, done.stdout) == (0, "500 of 500 entries copied, 0 were there already or had expired\n"), (
        done.stderr
    )
    assert content(tmp_path / "d") == entries


def test_what_is_there_stays(tmp_path: Path) -> None:
    """A key that the dict has already keeps its value, also when the copy is made a second time."""
    with diskcache.Cache(str(tmp_path / "cache")) as cache:
        cache["a"] = 1
        cache["b"] = 2
    with ReplicatedDict[str, int](tmp_path / "d") as d:
        d["a"] = 99
    assert copy(tmp_path / "cache", tmp_path / "d").stdout.startswith("1 of 2 entries copied, 1 were there")
    assert copy(tmp_path / "cache", tmp_path / "d").stdout.startswith("0 of 2 entries copied, 2 were there")
    assert content(tmp_path / "d") == {"a": 99, "b": 2}


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    """Objects and values that are too large are left out and named, the rest is copied, and the exit status is 1."""
    with diskcache.Cache(str(tmp_path / "cache")) as cache:
        for number in range(10):
            cache.set(f"before {number}", number)
        cache.set("a complex number", 1j)
        cache.set("larger than a command", "x" * (2 << 20))
        cache.set("too large", "x" * (5 << 20))
        cache.set("after", 1)
    done = copy(tmp_path / "cache", tmp_path / "d")
    assert done.returncode == 1
    assert done.stdout == "12 of 14 entries copied, 0 were there already or had expired\n"
    assert re.search(r"^refused: .*complex", done.stderr, re.MULTILINE), done.stderr
    assert "2 entries can't be kept" in done.stderr
    assert {"larger than a command", "after"} < set(content(tmp_path / "d"))


def test_an_interrupted_copy_goes_on(tmp_path: Path) -> None:
    """A copy that was killed in the middle is begun again, and copies what is missing."""
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        shelf.update({f"key {n}": "x" * 1000 for n in range(5000)})
    with ReplicatedDict[Any, Any](tmp_path / "d", share=True) as d:
        with subprocess.Popen([*SCRIPT, tmp_path / "shelf", tmp_path / "d"], stderr=subprocess.DEVNULL) as process:
            while len(d) == 0:
                assert process.poll() is None
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        there = len(d)
        assert 0 < there < 5000
        done = copy(tmp_path / "shelf", tmp_path / "d")
        assert done.returncode == 0, done.stderr
        copied = int(done.stdout.split()[0].replace(",", ""))
        assert 0 < copied <= 5000 - there
        d.barrier()
        assert len(d) == 5000


@pytest.mark.parametrize("name", ["nothing", "nothing/below"])
def test_a_source_that_is_not_there_is_an_error(name: str, tmp_path: Path) -> None:
    """A mistyped source is an error, and makes neither a source nor a node."""
    done = copy(tmp_path / name, tmp_path / "d")
    assert done.returncode == 2
    assert "neither" in done.stderr
    assert list(tmp_path.iterdir()) == []

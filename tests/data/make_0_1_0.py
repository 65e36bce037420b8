"""Makes `tests/data/0.1.0/`: what release 0.1.0 leaves on a disk. Run by that release, once, from the project's root:

    git archive af5eedd replidict | tar -x -C SOME_DIRECTORY
    PYTHONPATH=SOME_DIRECTORY python tests/data/make_0_1_0.py

`closed` is the directory of a node that was closed, with an automatic snapshot in it; `killed` that of one that was
killed with entries in its log that its tables lack; `member` that of one of three; `backup` a backup. `expected.json`
is what the release itself found in each: keys, values and revisions, in order.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import replidict

HERE = Path(__file__).parent / "0.1.0"
ADDRESSES = [f"127.83.17.5:{port}" for port in (20000, 20001, 20002)]


def fill(d: Any) -> None:
    """Something of everything."""
    d.update({
        "none": None, "bool": True, "int": -7, "large": 2**80, "float": 1.5, "text": "äöü€", "bytes": b"\x00\xff",
        "bytearray": bytearray(b"abc"), "tuple": (1, (2, "x")), "list": [1, [2], {"k": "v"}], "dict": {1: 2, "a": []},
        "set": {1}, "frozenset": frozenset({2}), "decimal": decimal.Decimal("1.20"), "uuid": uuid.UUID(int=7),
        "datetime": dt.datetime(2026, 11, 25, 13, 30, tzinfo=dt.UTC), "date": dt.date(2026, 11, 25),
        "time": dt.time(13, 30), "timedelta": dt.timedelta(days=1, seconds=2),
    })  # fmt: skip
    d[1], d[("a", 2)], d[b"key"], d[2.5] = "one", "tuple", "bytes", "float"
    d["gone"] = 1
    del d["gone"]
    d["last"] = 1
    assert d.popitem() == ("last", 1)
    assert d.setdefault("int", 8) == -7
    assert d.compare_and_set("int", -7, -8)
    assert d.replace("text", "ä", revision=d.versioned("text").revision)
    assert not d.add("none", 1)
    for number in range(300):
        d[f"many{number % 20}"] = number


def held(d: Any) -> list[list[Any]]:
    """Keys, values and revisions, in order."""
    return [[repr(key), repr(value), d.versioned(key).revision] for key, value in d.items()]


def pack(name: str, directory: Path) -> None:
    """Keep a directory."""
    with tarfile.open(HERE / f"{name}.tar.gz", "w:gz") as tar:
        tar.add(directory, arcname=name, filter=lambda info: None if info.name.endswith(("lock", "-shm")) else info)


def main() -> None:
    """Make all of them."""
    HERE.mkdir(exist_ok=True)
    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        d: replidict.ReplicatedDict[Any, Any]
        with replidict.ReplicatedDict(root / "closed") as d:
            fill(d)
            expected["closed"] = expected["snapshot"] = expected["backup"] = held(d)
            (root / "backup").mkdir()
            d.backup(root / "backup" / "0.1.0.db")
            opened: Any = d
            opened._host._automatic._take()
        pack("closed", root / "closed")
        pack("backup", root / "backup")
        subprocess.run([sys.executable, __file__, str(root / "killed")], check=False)
        expected["killed"] = json.loads((root / "killed.json").read_text())
        pack("killed", root / "killed")
        nodes: list[replidict.ReplicatedDict[Any, Any]] = [
            replidict.ReplicatedDict(root / f"n{i}", address=a, peers=[b for b in ADDRESSES if b != a])
            for i, a in enumerate(ADDRESSES)
        ]
        nodes[0].wait_ready(30)
        fill(nodes[0])
        for node in nodes:
            node.barrier()
        expected["member"] = held(nodes[1])
        for node in nodes:
            node.close()
        pack("member", root / "n1")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=0))


def be_killed(path: Path) -> None:
    """Leave a directory as a process does that is killed."""
    d: Any = replidict.ReplicatedDict(path)
    fill(d)
    path.with_suffix(".json").write_text(json.dumps(held(d)))
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else be_killed(Path(sys.argv[1]))

"""What release 0.1.0 left on disks: directories, backups and automatic snapshots open with what that release held."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replidict import ReplicatedDict
from replidict.storage import file_format
from replidict.storage.directory import FILE_NAME
from replidict.storage.inspection import inspect
from replidict.storage.recovery import survivors
from tests.clusters import free_addresses, wait_until

DATA = Path(__file__).parent / "data" / "0.1.0"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())


@pytest.fixture
def made_by_0_1_0(tmp_path: Path) -> Callable[[str], Path]:
    """Unpacks one of the directories."""

    def unpack(name: str) -> Path:
        with tarfile.open(DATA / f"{name}.tar.gz") as tar:
            tar.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpack


def held(d: Any) -> list[list[Any]]:
    return [[repr(key), repr(value), d.versioned(key).revision] for key, value in d.items()]


def held_by_a_node(path: Path, **arguments: Any) -> list[list[Any]]:
    """What a node that opens this directory holds: at once, after its level was raised, and after another start."""
    with ReplicatedDict[Any, Any](path, **arguments) as d:
        found = held(d)
        wait_until(lambda: d.status().feature_level == 2, "the level is raised")
        d["new"] = "by the present release"
        del d["new"]
    with ReplicatedDict[Any, Any](path, **arguments) as d:
        assert held(d) == found
        assert d.status().feature_level == 2
    return found


@pytest.mark.parametrize("name", ["closed", "killed"])
def test_a_directory(made_by_0_1_0: Callable[[str], Path], name: str) -> None:
    """A node's directory opens with equal keys, values, order and revisions, whether the node was closed or killed;
    it can be inspected before and after."""
    path = made_by_0_1_0(name)
    found = inspect(path)
    assert (found.damage, found.feature_level) == (None, 1)
    assert held_by_a_node(path) == EXPECTED[name]
    found = inspect(path)
    assert (found.damage, found.feature_level) == (None, 2)


@pytest.mark.parametrize("name", ["backup", "snapshot"])
def test_a_backup(made_by_0_1_0: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """A backup, and a snapshot that was taken by itself, are restored to the same."""
    if name == "backup":
        (backup,) = made_by_0_1_0("backup").iterdir()
    else:
        (backup,) = (made_by_0_1_0("closed") / "snapshots").iterdir()
    ReplicatedDict.restore(backup, tmp_path / "restored")
    with closing(sqlite3.connect(tmp_path / "restored" / FILE_NAME)) as db:
        assert file_format.read(db) == 1
    assert held_by_a_node(tmp_path / "restored") == EXPECTED[name]


def test_the_disk_of_a_member(made_by_0_1_0: Callable[[str], Path]) -> None:
    """The disk of one of three is recovered, and goes on with the same."""
    path = made_by_0_1_0("member")
    (address,) = free_addresses(1)
    with survivors(path, []) as found:
        found.recover(address)
    assert held_by_a_node(path, address=address) == EXPECTED["member"]

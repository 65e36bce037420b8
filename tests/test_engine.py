"""The seam to PySyncObj: its private names, pinned to the release they were read in."""

from __future__ import annotations

import hashlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pysyncobj import SyncObj, node, poller, syncobj, transport

import replidict.raft.engine

PINNED: dict[ModuleType | type[Any], str] = {
    syncobj: "e8bdf06797085d73",
    transport.Transport: "9b0212a7af6123e7",
    poller: "f69ac749fb410670",
    node.Node: "08d57d1bfde2aca1",
}


@pytest.mark.parametrize("code", PINNED, ids=lambda code: code.__name__)
def test_pysyncobj_is_the_release_that_was_read(code: ModuleType | type[Any]) -> None:
    """A release of PySyncObj that changes the code the engine builds on fails here first (design section 6)."""
    assert version("pysyncobj") == "0.3.17"
    digest = hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:16]
    assert digest == PINNED[code], "read the changed code before pinning it anew"


def test_every_private_name_exists() -> None:
    """Each mangled name that the engine overrides or sets is one that PySyncObj has."""
    source = Path(replidict.raft.engine.__file__).read_text()
    names = set(re.findall(r"_SyncObj(__\w+)", source))
    theirs = set(re.findall(r"self\.(__\w+)|def (__\w+)", inspect.getsource(SyncObj)))
    assert names
    assert names <= {name for pair in theirs for name in pair}


def test_pysyncobj_unpickles_nothing_of_ours() -> None:
    """The engine reaches none of PySyncObj's own message, journal or apply code (E14)."""
    engine = replidict.raft.engine.Engine
    for name in ("_SyncObj__onMessageReceived", "_onTick", "_SyncObj__onNodeConnected", "_SyncObj__setCurrentTerm"):
        assert getattr(engine, name) is not getattr(SyncObj, name), f"{name} is PySyncObj's own"

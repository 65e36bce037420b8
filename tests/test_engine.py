"""The seam to PySyncObj: its private names, pinned to the release they were read in, and what runs of it."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pysyncobj
import pytest
from pysyncobj import SyncObj, node, poller, syncobj, transport

import replidict.raft.engine
from replidict.options import Options
from replidict.protocol.peer_messages import AddMember
from tests.simulator.member_scenarios import made
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import a_leader, put, until

PINNED: dict[ModuleType | type[Any], str] = {
    syncobj: "e8bdf06797085d73",
    transport.Transport: "9b0212a7af6123e7",
    poller: "f69ac749fb410670",
    node.Node: "08d57d1bfde2aca1",
}


@pytest.mark.parametrize("code", PINNED, ids=lambda code: code.__name__)
def test_pysyncobj_is_the_release_that_was_read(code: ModuleType | type[Any]) -> None:
    """A release of PySyncObj that changes the code the engine builds on fails here first."""
    assert version("pysyncobj") == "0.3.17"
    digest = hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:16]
    assert digest == PINNED[code], "read the changed code before pinning it anew"


def test_every_private_name_exists() -> None:
    """Each mangled name that the engine overrides or reads is one that PySyncObj has."""
    source = Path(replidict.raft.engine.__file__).read_text()
    names = set(re.findall(r"_SyncObj(__\w+)", source))
    theirs = set(re.findall(r"self\.(__\w+)|def (__\w+)", inspect.getsource(SyncObj)))
    assert names
    assert names <= {name for pair in theirs for name in pair}


def test_what_runs_of_pysyncobj() -> None:
    """While nodes elect a leader, write, let in another one and lose one, only what passes on connections and messages,
    and node ids, run of PySyncObj; nothing of its Raft, journal, snapshots, commands or pickle does (E14)."""
    ran: set[str] = set()
    home = str(Path(pysyncobj.__file__).parent)

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(home):
            ran.add(frame.f_code.co_qualname)

    with new_cluster(1, 3, Options()) as cluster:
        cluster.start()
        sys.setprofile(profile)
        try:
            first = a_leader(cluster)
            put(first, 1)
            made(cluster, AddMember("n4:7000", voter=False))
            first.crash()
            put(a_leader(cluster), 2)
        finally:
            sys.setprofile(None)
    assert {name for name in ran if not name.startswith(("Transport.", "Node."))} == set()


def test_a_backlog_is_applied_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was away applies what it missed in steps of so many bytes, one entry at least, and is answered when
    all is applied."""
    monkeypatch.setattr(replidict.raft.engine, "APPLY_BYTES", 5_000)
    with new_cluster(1, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        away = next(machine for machine in cluster.machines.values() if machine is not leader)
        away.crash()
        for number in range(20):
            write = put(leader, number, "x" * 2_000)
            until(cluster, lambda write=write: write.result is not None, "it is written")  # type: ignore[misc]
        away.start()
        assert away.node is not None
        state, seen = away.node.engine.state, [away.node.engine.last_applied]

        def caught_up() -> bool:
            if state.last_applied != seen[-1]:
                seen.append(state.last_applied)
            return state.last_applied >= 20 and state.last_applied == leader.node.engine.last_applied  # type: ignore[union-attr]

        until(cluster, caught_up, "it has caught up")
        large = [later - earlier for earlier, later in pairwise(seen) if later - earlier > 5]
        assert len(seen) > 8 and not large, seen

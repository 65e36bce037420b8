"""Release 0.1.0 and the present one in one cluster, and the way from the one to the other. Real processes; the old
release comes out of the project's history. `pop` stands for what level 2 adds: the present nodes are told so."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replidict.storage.directory import FILE_NAME
from tests import old_release
from tests.clusters import wait_until
from tests.processes import ROOT, Process, Refused, equal_copies, leader, own_addresses, start_all

STANDSTILL = 10.0
"""Seconds for which no node may acknowledge anything: twenty election timeouts, for machines that are busy."""


@contextmanager
def cluster(root: Path, count: int = 3) -> Iterator[list[Process]]:
    """So many nodes of the old release, ready."""
    addresses = own_addresses(count)
    nodes = [Process(root / f"n{number}", each, [other for other in addresses if other != each])
             for number, each in enumerate(addresses)]  # fmt: skip
    for node in nodes:
        node.tree = old_release.sources()
    try:
        start_all(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def upgrade(node: Process, *, kill: bool) -> None:
    """Have a node run the present release."""
    if kill:
        node.kill()
    else:
        node.close()
    node.tree = ROOT
    start_all([node])
    node.do("have_pop_need_level_two")


class Load:
    """Writes to every node that runs, one after the other on each, and what was acknowledged."""

    def __init__(self, nodes: list[Process]) -> None:
        self.acknowledged: dict[str, int] = {}
        self.longest_standstill = 0.0
        self._last = time.monotonic()
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number, node)) for number, node in enumerate(nodes)]

    def _write(self, number: int, node: Process) -> None:
        count = 0
        while not self._over.is_set():
            count += 1
            answer = node.call("set", f"{number}-{count}", count)
            now = time.monotonic()
            with self._mutex:
                if answer.ok:
                    self.acknowledged[f"{number}-{count}"] = count
                    self.longest_standstill = max(self.longest_standstill, now - self._last)
                    self._last = now
            if not answer.ok:
                self._over.wait(0.05)  # its process is being replaced

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)


def refused(node: Process) -> str:
    """What a write of level 2 is refused with."""
    answer = node.call("pop", "no such key", None)
    assert answer.error == "NotCommitted", answer
    return answer.message


@pytest.mark.parametrize("leader_first", [True, False], ids=["leader first", "leader last"])
def test_a_cluster_is_upgraded_node_by_node_under_load(tmp_path: Path, leader_first: bool) -> None:
    """Old and new nodes mix (promise 14): nothing acknowledged is lost, no two nodes differ, and nothing stands still
    for longer than an election. What the old ones don't know is refused with their address and release, until the
    last of them is upgraded; from then on it works, on every node."""
    with cluster(tmp_path) as nodes:
        first = leader(nodes)
        order = [first, *(node for node in nodes if node is not first)]
        if not leader_first:
            order.reverse()
        with Load(nodes) as load:
            for number, node in enumerate(order):
                upgrade(node, kill=number != 1)
                old = order[number + 1 :]
                for new in order[: number + 1] if old else []:
                    text = refused(new)
                    assert any(f"{each.address} runs replidict 0.1.0" in text for each in old), text
                    assert new.status()["feature_level"] == 1
            for node in nodes:
                wait_until(lambda node=node: node.status()["feature_level"] == 2, "the level is raised")  # type: ignore[misc]
                assert node.do("pop", "no such key", "nothing") == "nothing"
            acknowledged = len(load.acknowledged)
            wait_until(lambda: len(load.acknowledged) > acknowledged + 100, "writes go on")
        assert load.longest_standstill < STANDSTILL
        found = equal_copies(nodes)
        assert load.acknowledged.items() <= found.items()
        for node in nodes:
            node.close()
        start_all(nodes)
        assert equal_copies(nodes) == found
        assert {node.status()["feature_level"] for node in nodes} == {2}


def test_until_the_level_is_raised_the_old_release_may_be_put_back(tmp_path: Path) -> None:
    """A node of a mixed cluster whose upgrade is taken back goes on with what it had, and so does the cluster."""
    with cluster(tmp_path) as nodes:
        nodes[0].do("set", "k", 1)
        for node in nodes[:2]:
            upgrade(node, kill=False)
        nodes[1].do("set", "k", 2)
        for node in nodes[:2]:
            node.close()
            node.tree = old_release.sources()
            start_all([node])
        nodes[2].do("set", "k", 3)
        assert equal_copies(nodes) == {"k": 3}


def image(path: Path) -> dict[str, str]:
    """The files of a directory, byte for byte, but those that SQLite makes anew each time, and the lock."""
    names = (FILE_NAME, f"{FILE_NAME}-wal", "mark")
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names if (path / name).exists()}


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "closed"])
def test_a_downgrade_is_refused(tmp_path: Path, kill: bool) -> None:
    """The old release refuses a directory whose log goes beyond it, in words, and leaves its files as they are; the
    present one opens it again."""
    node = Process(tmp_path / "n")
    node.tree = old_release.sources()
    node.start()
    node.do("set", "k", 1)
    node.close()
    node.tree = ROOT
    node.start()
    wait_until(lambda: node.status()["feature_level"] == 2, "the level is raised")
    node.do("set", "k", 2)
    node.do("set", "large", "x" * 100_000)
    node.kill() if kill else node.close()
    before = image(node.path)
    node.tree = old_release.sources()
    with pytest.raises(Refused, match=r"StorageError: .*a newer release of replidict wrote it"):
        node.start()
    assert image(node.path) == before
    node.tree = ROOT
    node.start()
    assert node.snapshot() == {"k": 2, "large": "x" * 100_000}
    node.close()


def status_by_command(tree: Path, node: Process) -> str:
    """What the command of a release says of a node's status and of the members."""
    said = [
        subprocess.run(
            [sys.executable, "-m", "replidict", command, "--node", str(node.address)], cwd=tree, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(tree)}, text=True, check=False,
        )
        for command in ("status", "members")
    ]  # fmt: skip
    assert [each.returncode for each in said] == [0, 0], said
    return "".join(each.stdout for each in said)


def test_the_commands_of_both_releases_talk_to_nodes_of_both(tmp_path: Path) -> None:
    """`replidict` of either release shows what nodes of either say."""
    with cluster(tmp_path, 2) as nodes:
        upgrade(nodes[1], kill=False)
        for tree in (ROOT, old_release.sources()):
            for node in nodes:
                text = status_by_command(tree, node)
                assert str(nodes[0].address) in text and str(nodes[1].address) in text
        assert "level 1" in status_by_command(ROOT, nodes[1]) and "0.1.0" in status_by_command(ROOT, nodes[1])


def test_an_old_release_can_not_join_a_raised_cluster(tmp_path: Path) -> None:
    """It is told which release it is, and what to do; the upgraded one comes in by the same directory."""
    with cluster(tmp_path) as nodes:
        for node in nodes:
            upgrade(node, kill=False)
        wait_until(lambda: nodes[0].status()["feature_level"] == 2, "the level is raised")
        newcomer = Process(tmp_path / "new", own_addresses(1)[0])
        newcomer.tree = old_release.sources()
        newcomer.join(str(nodes[0].address))
        with pytest.raises(Refused, match=f"{newcomer.address} runs replidict 0.1.0.*level 2: upgrade replidict"):
            newcomer.start()
        newcomer.tree = ROOT
        try:
            start_all([newcomer])
            nodes[0].do("set", "k", 1)
            assert equal_copies([*nodes, newcomer]) == {"k": 1}
        finally:
            newcomer.kill()


def test_old_and_new_nodes_join_a_cluster_that_is_not_raised(tmp_path: Path) -> None:
    """A node of the present release joins by an old member, and an old one by a new member; each holds the level down
    until it is upgraded."""
    with cluster(tmp_path, 2) as nodes:
        upgrade(nodes[1], kill=False)
        joiners = [Process(tmp_path / f"joiner{number}", address) for number, address in enumerate(own_addresses(2))]
        try:
            for joiner, member, tree in zip(joiners, nodes, (ROOT, old_release.sources()), strict=True):
                joiner.tree = tree
                joiner.join(str(member.address))
                start_all([joiner])
            everybody = [*nodes, *joiners]
            nodes[0].do("set", "k", 1)
            assert equal_copies(everybody) == {"k": 1}
            upgrade(nodes[0], kill=False)
            assert f"{joiners[1].address} runs replidict 0.1.0" in refused(nodes[0])
            new = {str(node.address): "0.2.0" for node in everybody if node.tree == ROOT}
            new[str(joiners[1].address)] = "0.1.0"
            wait_until(lambda: releases(nodes[0]) == new, "the leader has met everybody")
            upgrade(joiners[1], kill=True)
            for node in everybody:
                wait_until(lambda node=node: node.status()["feature_level"] == 2, "the level is raised")  # type: ignore[misc]
            assert equal_copies(everybody) == {"k": 1}
        finally:
            for joiner in joiners:
                joiner.kill()


def releases(node: Process) -> dict[str, str]:
    return {address: release for address, _, release in node.do("members")}

"""Who leads next when the leader's process ends, in the simulator and with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import wait_until
from tests.processes import Process, leader, own_addresses
from tests.simulator.failover_scenarios import a_leader_without_power_is_missed_in_time
from tests.simulator.guards import STORY_OPTIONS
from tests.simulator.run import new_cluster

PATIENCE = 30.0
"""Seconds within which something that needs an election happens that does not wait for a time-out."""

OPTIONS = {"election_timeout": 2 * PATIENCE}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Process]]:
    """Three voters, the first of which leads. It has founded the cluster alone, or they would wait for a time-out."""
    addresses = own_addresses(3)
    made = [
        Process(tmp_path / f"n{number}", address, options=OPTIONS, timeout=PATIENCE)
        for number, address in enumerate(addresses)
    ]
    try:
        for node in made:
            if node is not made[0]:
                node.join(addresses[0])
            node.start()
            node.do("wait_ready", PATIENCE)
        wait_until(lambda: [voter for _, voter, _ in made[0].do("members")] == [True] * 3, "three vote", PATIENCE)
        yield made
    finally:
        for node in made:
            node.kill()


def test_without_power_only_silence_tells() -> None:
    """Nobody is given up before its election timeout because its machine has lost its power."""
    with new_cluster(1, 3, STORY_OPTIONS) as cluster:
        a_leader_without_power_is_missed_in_time(cluster)


def test_a_killed_leader_is_replaced_at_once(nodes: list[Process]) -> None:
    """After kill -9 of the leader, what others have asked for is answered long before the election timeout, by way of
    the next leader: writes and reads that were under way, and new ones."""
    first, second, third = nodes
    assert leader(nodes) is first
    second.do("set", "before", 1)
    first.pause()
    pending = [second.submit("set", "a", 1), third.submit("get", "before", linearizable=True), third.submit("barrier")]
    assert not any(each.done() for each in pending)
    first.kill()
    assert [each.result(PATIENCE).result() for each in pending][1] == 1
    second.do("set", "b", 2)
    assert leader(nodes) in (second, third)
    assert third.do("get", "a", linearizable=True) == 1


def test_a_pause_is_no_evidence(nodes: list[Process]) -> None:
    """A leader that is stopped for so long that its connections are given up, and that can't accept new ones, is still
    the leader of the same term when it goes on before the election timeout is over."""
    first, *others = nodes
    term = first.status()["term"]
    first.pause()
    wait_until(lambda: not any(node.status()["connected"].count(first.address) for node in others), "it is given up")
    first.resume()
    others[0].do("set", "after", 1)
    assert leader(nodes) is first
    assert {node.status()["term"] for node in nodes} == {term}

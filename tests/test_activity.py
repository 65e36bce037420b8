"""What a node remembers of its last minutes: counts of writes, how long they took, and elections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replidict import ReplicatedDict
from replidict.api.observation import disk_bytes_of, recent_of
from replidict.node.activity import ELECTIONS, INTERVAL, INTERVALS, Activity
from tests.clusters import cluster, leader_of, wait_until


class Clock:
    """Time that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 3 * INTERVAL), st.integers(0, 5)), max_size=300))
def test_writes_are_counted_where_they_happened(steps: list[tuple[float, int]]) -> None:
    """Each write is counted once, in the interval in which it was applied; what is older than five minutes is not."""
    clock = Clock()
    activity, revision = Activity(clock), 0
    model: dict[int, int] = {}
    for passed, writes in steps:
        clock.now += passed
        revision += writes
        activity.look(revision, 1, "a:1")
        number = int(clock.now / INTERVAL)
        model[number] = model.get(number, 0) + writes
    here = int(clock.now / INTERVAL)
    expected = {here - number: writes for number, writes in model.items() if writes and here - number < INTERVALS}
    assert {each.ago: each.writes for each in activity.recent().counted if each.writes} == expected


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=200))
def test_percentiles_are_right_to_five_percent(times: list[float]) -> None:
    """p50 and p99 are those of the sorted times, but for 5 %."""
    clock = Clock()
    activity = Activity(clock)
    for took in times:
        activity.count(1, clock.now - took)
    (counted,) = activity.recent().counted
    ordered = sorted(times)
    for share, found in ((0.5, counted.p50), (0.99, counted.p99)):
        exact = next(time for rank, time in enumerate(ordered, 1) if rank >= share * len(ordered))
        assert found == pytest.approx(exact, rel=0.05)


def test_a_state_that_comes_as_a_whole_is_no_write() -> None:
    """A restart, or a snapshot that is installed, is no peak of writes."""
    activity = Activity(Clock())
    activity.begin_at(1_000_000)
    activity.look(1_000_001, 1, None)
    assert [each.writes for each in activity.recent().counted] == [1]


def test_elections_are_remembered_the_newest_first() -> None:
    """Each leader is told with its term, also one that leads again; a time without a leader is none."""
    clock = Clock()
    activity = Activity(clock)
    for term, leader in [(1, None), (1, "a:1"), (1, "a:1"), (1, None), (2, "b:1"), (3, "b:1")]:
        clock.now += 1
        activity.look(0, term, leader)
    assert [(each.term, each.address, each.ago) for each in activity.recent().elections] == [
        (3, "b:1", 0), (2, "b:1", 1), (1, "a:1", 4),
    ]  # fmt: skip
    for term in range(4, 100):
        activity.look(0, term, "c:1")
    assert len(activity.recent().elections) == ELECTIONS


def test_a_node_counts_what_it_does(tmp_path: Path) -> None:
    """A node that writes tells how long that took, one that only applies does not, and both who leads."""
    with cluster(tmp_path) as nodes:
        leading = leader_of(nodes)
        writing, other = (node for node in nodes if node is not leading)
        for number in range(20):
            writing["k"] = number
        other.barrier()

        def writes(node: ReplicatedDict[Any, Any]) -> int:
            return sum(each.writes for each in recent_of(node).counted)

        for node in (writing, other):
            wait_until(lambda node=node: writes(node) == 20, "it has counted what it applied")  # type: ignore[misc]
            assert recent_of(node).elections[0].address == leading.status().address
        took = [each.p99 for each in recent_of(writing).counted if each.p99 is not None]
        assert took and all(0 < each < 60 for each in took)
        assert [each.p50 for each in recent_of(other).counted if each.p50 is not None] == []


def test_a_restart_is_no_write(tmp_path: Path) -> None:
    """What is read from the disk when a node is opened is not counted; its files are."""
    with ReplicatedDict[str, str](tmp_path / "d") as d:
        d.update({f"{number}": "x" * 1000 for number in range(100)})
        assert disk_bytes_of(d) > 100_000
    with ReplicatedDict[str, str](tmp_path / "d") as d:
        d.barrier()
        assert sum(each.writes for each in recent_of(d).counted) == 0

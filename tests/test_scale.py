"""The figures of docs/scale.md are made by code that still runs, and say what the page says."""

from __future__ import annotations

from statistics import median

import pytest

from replidict.options import Options
from tests.scale import ROWS, far, outage, readers, times
from tests.serving import ROOT


def test_a_write_takes_one_round_trip_or_two() -> None:
    """On the leader a write takes one round trip to a follower, on a follower two, and a read as long; a leader that is
    lost is replaced."""
    with far(3, round_trip=0.08) as world:
        leader = world.settle()
        follower = next(machine for machine in world.machines.values() if machine is not leader)
        for reads in (False, True):
            assert median(times(world, leader, 3, reads=reads)) == pytest.approx(0.08, rel=0.1)
            assert median(times(world, follower, 3, reads=reads)) == pytest.approx(0.16, rel=0.1)
        assert 0 < outage(world, silently=True) < 60


def test_readers_keep_up() -> None:
    """Members without a vote get everything, and a write does not wait for them."""
    with far(3, Options()) as world:
        alone = median(times(world, world.settle(), 1))
    with far(3, Options(), readers=4) as world:
        leader = world.settle()
        assert median(times(world, leader, 1)) < 1.5 * alone
        assert leader.node is not None
        index = leader.node.engine.last_applied
        world.pass_time(1)
        assert all(m.node is not None and m.node.engine.last_applied >= index for m in world.machines.values())
    assert readers(2, 0.5)[-1] == 0


def test_every_table_is_on_the_page() -> None:
    """docs/scale.md has each table that `python -m tests.scale` makes, with its titles."""
    page = (ROOT / "docs" / "scale.md").read_text()
    assert [name for name, (titles, _) in ROWS.items() if f"| {titles.replace('; ', ' | ')} |" not in page] == []

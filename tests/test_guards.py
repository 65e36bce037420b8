"""The harness is tested, too: whatever guard is taken out of the engine, it notices."""

from __future__ import annotations

import re

import pytest

from tests.serving import ROOT
from tests.simulator.__main__ import find
from tests.simulator.guards import GUARDS, STORY_OPTIONS, Guard
from tests.simulator.run import new_cluster

STORIES = [guard for guard in GUARDS.values() if guard.scenario is not None]
BY_SEEDS = [guard for guard in GUARDS.values() if guard.scenario is None]
TABLE = (ROOT / "docs" / "simulation.md").read_text()
FOUND_AFTER = {name: int(count) for name, count in re.findall(r"^\| `([\w-]+)` \|.*\| (\d+) \|$", TABLE, re.MULTILINE)}
"""After how many seeds each was found when the table in the docs was made. The last of these is tried first: it saves
minutes, and if the product has changed since, the others are tried as well."""


@pytest.mark.parametrize("guard", STORIES, ids=lambda guard: guard.name)
def test_a_story_ends_well(guard: Guard) -> None:
    """With all guards in place the stories told by hand end well."""
    assert guard.scenario is not None
    with new_cluster(1, guard.nodes, STORY_OPTIONS) as cluster:
        guard.scenario(cluster)


@pytest.mark.parametrize("guard", STORIES, ids=lambda guard: guard.name)
def test_a_story_finds_a_missing_guard(guard: Guard) -> None:
    """Without the guard the story ends badly."""
    assert find(guard)[1] is not None, guard.prevents


@pytest.mark.parametrize("guard", BY_SEEDS, ids=lambda guard: guard.name)
def test_the_simulator_finds_a_missing_guard(guard: Guard) -> None:
    """Without the guard one of the first seeds, as many as the guard says, breaks an invariant."""
    after = FOUND_AFTER.get(guard.name)
    assert find(guard, None if after is None else after - 1)[1] is not None, guard.prevents

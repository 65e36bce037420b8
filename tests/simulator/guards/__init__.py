"""What keeps the engine safe, taken out one at a time: the simulator must notice.

Each guard is a generator that yields (object, attribute, replacement) for what the product would be without it; its
docstring says what it prevents. `without` puts the replacements in force for a while. `row` names the defect of
PySyncObj or the rule that the guard stands for, and `within` the seeds that finding it may take.
"""

from __future__ import annotations

from tests.simulator.guards import (
    coordination,
    divergence,
    elections,
    large_values,
    levels,
    log,
    members,
    state,
    watches,
)
from tests.simulator.guards.guard import GUARDS, STORY_OPTIONS, Guard, without

__all__ = [
    "GUARDS",
    "STORY_OPTIONS",
    "Guard",
    "coordination",
    "divergence",
    "elections",
    "large_values",
    "levels",
    "log",
    "members",
    "state",
    "watches",
    "without",
]

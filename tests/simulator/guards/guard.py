"""One guard: what keeps the engine safe, and how it is taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from replidict.options import Options
from tests.simulator.scenarios import Scenario

Replacements = Iterator[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Guard:
    """One guard, and how to take it out."""

    name: str
    row: str
    prevents: str
    within: int
    remove: Callable[[], Replacements]
    scenario: Scenario | None = None
    nodes: int = 3  # in the scenario
    changing: bool = False  # the members, in the seeds


GUARDS: dict[str, Guard] = {}
STORY_OPTIONS = Options(lease_reads=True)


def guard(
    row: str, within: int = 0, scenario: Scenario | None = None, nodes: int = 3, *, changing: bool = False
) -> Callable[[Callable[[], Replacements]], Callable[[], Replacements]]:
    """Register a guard under the name of the function; with a scenario, that is what finds it."""

    def register(remove: Callable[[], Replacements]) -> Callable[[], Replacements]:
        name = remove.__name__.replace("_", "-")
        assert remove.__doc__ is not None
        GUARDS[name] = Guard(name, row, " ".join(remove.__doc__.split()), within, remove, scenario, nodes, changing)
        return remove

    return register


@contextmanager
def without(name: str | None) -> Iterator[None]:
    """Take a guard out; None: all stay."""
    with ExitStack() as stack:
        if name is not None:
            for owner, attribute, replacement in GUARDS[name].remove():
                stack.enter_context(mock.patch.object(owner, attribute, replacement))
        yield

"""A simulation that is checked at every step."""

from __future__ import annotations

from pathlib import Path

from replidict.options import Options
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.world import World
from tests.simulator.invariants import Checker


class Cluster(World):
    """All machines, and what they share; `checker` sees everything that happens to them."""

    checker: Checker

    def __init__(
        self, seed: int, addresses: list[str], options: Options, directory: Path, *, keep_trace: int | None = 400
    ) -> None:
        super().__init__(seed, addresses, options, directory, observe=self._check, keep_trace=keep_trace)

    def _check(self, world: World) -> Checker:
        self.checker = Checker(self)
        return self.checker


def cluster_of(machine: Machine) -> Cluster:
    """The checked simulation that a machine belongs to."""
    assert isinstance(machine.cluster, Cluster)
    return machine.cluster

"""Machines that run older releases, and are upgraded one by one, at random moments.

Rules kept here:

1. An older release is a node that knows no higher level. What else it would do otherwise it is never brought to do:
   `check_levels` sees to it that it is given nothing that it can't read.
2. A release is replaced while the process is down, after a crash or in order. An older one may be put back as long as
   the disk is not marked: the product refuses it then.
3. A machine that joins runs an older release only where nobody's disk is marked: it would be refused.
4. Where releases are mixed, one operation stands for those that level 2 adds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from replidict.machine import commands as cmd
from replidict.release import FIRST, THIS
from replidict.testing.simulator.machine import Machine
from tests.simulator.cluster import Cluster

ADDED = cmd.SetDefault
"""Counts as an operation of level 2."""


class Upgrades:
    """The releases of one run: mixed, or the present one everywhere."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self.mixed = rng.random() < 0.4
        self._interval = rng.choice((2.0, 5.0, 15.0))
        self._downgrades = rng.choice((0.0, 0.1, 0.4))
        self._stopped = False
        self.count = 0

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Rule 4."""
        with mock.patch.dict(cmd.LEVEL_OF, {ADDED: 2} if self.mixed else {}):
            yield

    def start(self) -> None:
        """Draw the releases to begin with; before the machines are started."""
        if self.mixed:
            for machine in self._cluster.machines.values():
                machine.release = self._rng.choice((FIRST, FIRST, THIS))
            self._cluster.on_machine.append(self._new_machine)
            self._next()

    def _new_machine(self, machine: Machine) -> None:
        if not self._stopped and all(other.disk.format == 1 for other in self._cluster.machines.values()):
            machine.release = self._rng.choice((FIRST, THIS))

    def _next(self) -> None:
        self._cluster.loop.after(self._rng.expovariate(1 / self._interval), self._replace)

    def _replace(self) -> None:
        if self._stopped:
            return
        machine = self._rng.choice(list(self._cluster.machines.values()))
        if machine.release is FIRST:
            self._install(machine)
        elif self._rng.random() < self._downgrades and not machine.paused:
            machine.close()
            if machine.disk.format == 1:
                machine.release = FIRST
                self._cluster.trace.note("upgrades", "downgrade", machine.address)
            if not (machine.removed or machine.diskless):
                machine.start()
        self._next()

    def _install(self, machine: Machine) -> None:
        running = machine.node is not None
        if machine.paused or self._rng.random() < 0.5:
            machine.crash()
        else:
            machine.close()
        machine.release = THIS
        self.count += 1
        self._cluster.trace.note("upgrades", "upgrade", machine.address)
        if running and not (machine.removed or machine.diskless):
            machine.start()

    def finish(self) -> None:
        """All that are left are upgraded."""
        self._stopped = True
        for machine in self._cluster.machines.values():
            if machine.release is FIRST:
                self._install(machine)

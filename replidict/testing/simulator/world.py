"""All machines of a simulation, and what they share."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Self

from replidict.options import Options
from replidict.storage import records
from replidict.storage.directory import Beginning
from replidict.testing.simulator.loop import Loop, Trace
from replidict.testing.simulator.machine import Machine, Observer
from replidict.testing.simulator.network import Network

CLUSTER_ID = "simulated"


class World:
    """All machines of a simulation, and what they share."""

    def __init__(
        self,
        seed: int,
        addresses: list[str],
        options: Options,
        directory: Path,
        *,
        observe: Callable[[Self], Observer] = lambda world: Observer(),
        keep_trace: int | None = 400,
        shows_messages: bool = True,
    ) -> None:
        self.seed = seed
        self.options = options
        self.directory = directory
        self.loop = Loop()
        self.trace = Trace(self.loop, keep_trace, shows_messages=shows_messages)
        self.counters = {"steps": 0, "spins": 0, "removed": 0}
        self.fsync_time = 0.001
        self.step_time = 0.0001
        self.network = Network(self.loop, self.trace, random.Random(f"{seed} network"))
        self.observer = observe(self)
        self.machines: dict[str, Machine] = {}
        """All there ever were, by address; who is a member is for others to say."""
        self.on_machine: list[Callable[[Machine], None]] = []
        self._disks = 0
        self.founders = addresses
        for address in addresses:
            self.add(address, self.founding(addresses))
        self.observer.founded({a: machine.disk.node_id for a, machine in self.machines.items()})

    def new_identity(self) -> str:
        """The identity of a disk that is made now."""
        self._disks += 1
        return f"disk-{self._disks}"

    def founding(self, addresses: list[str]) -> Beginning:
        """The initial content of a founder's disk."""
        return Beginning(CLUSTER_ID, self.new_identity(), records.Members(0, sorted(addresses), []))

    def add(self, address: str, beginning: Beginning) -> Machine:
        """A machine more."""
        machine = self.machines[address] = Machine(self, address, beginning)
        self.network.add(address, machine)
        for hook in self.on_machine:
            hook(machine)
        return machine

    def start(self) -> None:
        """Start all nodes."""
        for machine in self.machines.values():
            machine.start()

    def destroy(self) -> None:
        """Free everything, whatever state it is in."""
        for machine in self.machines.values():
            node = machine._gone(silently=False)
            if node is not None:
                machine._abandon(node)
            machine.disk.destroy()

"""Faults: each seed draws its own kinds of faults, and how often they happen.

A run with every kind of fault at once mostly shows a cluster that can't work. So each seed takes a few kinds only
("swarm testing"), and between faults there is time for work, more in some seeds than in others.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from replidict.testing.simulator.disk import POINTS, Fault
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.network import SILENCE_TIMEOUT
from replidict.testing.simulator.world import World


class Nemesis:
    """Injects faults until it is stopped."""

    def __init__(
        self,
        cluster: World,
        rng: random.Random,
        *,
        drift: float,
        kinds: Sequence[str] | None = None,
        pace: tuple[float, float] | None = None,
        changes: Mapping[str, Callable[[], bool]] | None = None,
    ) -> None:
        """`drift` is by how much a clock may run fast or slow. `pace` is how long it takes to the next one and
        how long things stay broken, on average. With `changes` of the members these happen, too."""
        self._cluster = cluster
        self._rng = rng
        self._drift = drift
        self.counts: Counter[str] = Counter()
        self._stopped = False
        table: dict[str, Callable[[], bool]] = {
            "crash": self._crash,
            "power loss": partial(self._crash, silently=True),
            "crash of the leader": self._crash_leader,
            "crash of all": self._crash_all,
            "crash at a statement": partial(self._disk, crash=True),
            "I/O error": partial(self._disk, crash=False),
            "I/O error on all": self._disk_all,
            "disk full": self._full,
            "disk full on all": self._full_all,
            "pause": self._pause,
            "pause of the leader": self._pause_leader,
            "transfer": self._transfer,
            "clock rate": self._rate,
            "slow node": self._slow_node,
            "node cut off": self._isolate,
            "leader cut off": self._isolate_leader,
            "leader reaches few": self._leader_reaches_few,
            "split": self._split,
            "one-way": self._one_way,
            "connection lost": self._cut,
            "slow link": self._slow_link,
            "damaged snapshot": self._damage,
            "backups": self._back_up,
        }
        refusals: dict[str, Callable[[], bool]] = {"refused": self._refuse, "leader refused": self._refuse_leader}
        if kinds is None:
            share = rng.choice((0.15, 0.3, 0.5))
            kinds = [kind for kind in table if rng.random() < share] or ["crash"]
            if changes is not None:
                share = rng.choice((0.3, 0.6, 1.0))
                drawn = [kind for kind in changes if rng.random() < share] or [next(iter(changes))]
                kinds += drawn * rng.choice((1, 1, 2))
            other = random.Random(f"{cluster.seed} refusals")
            kinds += [kind for kind in refusals if other.random() < 0.2]
        self._table = {**table, **refusals, **(changes or {})}
        self.kinds = kinds
        self.interval = rng.choice((0.3, 1.0, 2.0, 5.0))
        self._outage = rng.choice((0.05, 0.5, 2.0, 5.0))
        if pace is not None:
            self.interval, self._outage = pace

    def start(self) -> None:
        """Begin."""
        self._next()

    def stop(self) -> None:
        """No faults any more; what is broken is mended."""
        cluster = self._cluster
        cluster.network.heal()
        for machine in cluster.machines.values():
            machine.disk.full = False
            machine.disk.fault = None
            machine.damage_next_snapshot = False
            machine.backs_up = False
            machine.slowness = 1.0
            machine.resume()
            self._start(machine)
        self._stopped = True

    def _next(self) -> None:
        self._cluster.loop.after(self._rng.expovariate(1 / self.interval), self._strike)

    def _strike(self) -> None:
        if self._stopped:
            return
        kind = self._rng.choice(self.kinds)
        if self._table[kind]():
            self.counts[kind] += 1
            self._cluster.trace.note("nemesis", "fault", kind)
        self._next()

    def _later(self, action: Callable[[], None], scale: float = 1.0) -> None:
        def unless_stopped() -> None:
            if not self._stopped:
                action()

        self._cluster.loop.after(self._rng.expovariate(1 / self._outage) * scale, unless_stopped)

    def _machine(self) -> Machine:
        return self._rng.choice([m for m in self._cluster.machines.values() if not m.removed])

    def _leader(self) -> Machine | None:
        for machine in self._cluster.machines.values():
            if machine.node is not None and machine.node.engine.is_leader:
                return machine
        return None

    # -- processes --------------------------------------------------------------------------------------------------

    def _start(self, machine: Machine) -> None:
        if machine.node is None and not (self._stopped or machine.removed or machine.diskless):
            machine.disk.full = False
            machine.start()

    def revive(self) -> None:
        """Whatever is down is started again after a while; called regularly."""
        if self._stopped:
            return
        for machine in self._cluster.machines.values():
            if machine.node is None:
                self._later(partial(self._start, machine))
        self._cluster.loop.after(0.5, self.revive)

    def _crash(self, *, silently: bool = False) -> bool:
        machine = self._machine()
        if machine.node is None:
            return False
        machine.crash(silently=silently)
        self._later(partial(self._start, machine))
        return True

    def _crash_leader(self) -> bool:
        machine = self._leader()
        if machine is None:
            return False
        machine.crash()
        self._later(partial(self._start, machine))
        return True

    def _crash_all(self) -> bool:
        for machine in self._cluster.machines.values():
            machine.crash()
            self._later(partial(self._start, machine))
        return True

    def _pause(self) -> bool:
        machine = self._machine()
        if not machine.reachable:
            return False
        machine.pause()
        self._later(machine.resume)
        return True

    def _pause_leader(self) -> bool:
        machine = self._leader()
        if machine is None or machine.paused:
            return False
        machine.pause()
        self._later(machine.resume)
        return True

    def _transfer(self) -> bool:
        machine = self._leader()
        if machine is None or machine.node is None or not machine.node.engine.transfer.begin():
            return False
        machine.wake()
        return True

    def _rate(self) -> bool:
        self._machine().set_rate(1 + self._rng.uniform(-self._drift, self._drift))
        return True

    def _slow_node(self) -> bool:
        machine = self._machine()
        machine.slowness = self._rng.choice((1.0, 5.0, 30.0))
        return True

    # -- disks ------------------------------------------------------------------------------------------------------

    def _fault(self, crash: bool) -> Fault:
        point, skip = self._rng.choice(POINTS), self._rng.randint(0, 3)
        return Fault(point, skip, crash, memory=skip % 2 == 1)

    def _disk(self, *, crash: bool) -> bool:
        self._machine().disk.fault = self._fault(crash)
        return True

    def _disk_all(self) -> bool:
        for machine in self._cluster.machines.values():
            machine.disk.fault = self._fault(crash=False)
        return True

    def _free(self, machine: Machine) -> None:
        machine.disk.full = False

    def _full(self) -> bool:
        machine = self._machine()
        machine.disk.full = True
        self._later(partial(self._free, machine))
        return True

    def _full_all(self) -> bool:
        for machine in self._cluster.machines.values():
            machine.disk.full = True
            self._later(partial(self._free, machine))
        return True

    def _back_up(self) -> bool:
        machine = self._machine()
        machine.backs_up, machine.crashes_in_backups = True, self._rng.random() < 0.5
        self._later(partial(setattr, machine, "backs_up", False))
        return True

    def _damage(self) -> bool:
        for machine in self._cluster.machines.values():
            machine.damage_next_snapshot = True
        return True

    # -- the network ------------------------------------------------------------------------------------------------

    def _block(self, directions: list[tuple[str, str]]) -> bool:
        network = self._cluster.network
        network.block(directions)
        # Long enough, often, that connections are given up.
        self._later(partial(network.unblock, directions), 1 + SILENCE_TIMEOUT * self._rng.random())
        return True

    def _around(self, address: str) -> list[tuple[str, str]]:
        others = [other for other in self._cluster.machines if other != address]
        return [(address, other) for other in others] + [(other, address) for other in others]

    def _isolate(self) -> bool:
        return self._block(self._around(self._machine().address))

    def _isolate_leader(self) -> bool:
        leader = self._leader()
        return leader is not None and self._block(self._around(leader.address))

    def _leader_reaches_few(self) -> bool:
        """Cut the leader off from a majority, and then crash it."""
        leader = self._leader()
        if leader is None:
            return False
        others = [other for other in self._cluster.machines if other != leader.address]
        self._rng.shuffle(others)
        reached = others[: self._rng.randint(0, max(len(others) // 2 - 1, 0))]
        self._block([(leader.address, other) for other in others if other not in reached])
        self._cluster.loop.after(self._rng.uniform(0.0, 1.0), partial(self._then_crash, leader, leader.incarnation))
        return True

    def _then_crash(self, machine: Machine, incarnation: int) -> None:
        if not self._stopped and machine.node is not None and machine.incarnation == incarnation:
            machine.crash()
            self._later(partial(self._start, machine))

    def _split(self) -> bool:
        addresses = list(self._cluster.machines)
        if len(addresses) < 2:
            return False
        self._rng.shuffle(addresses)
        at = self._rng.randint(1, len(addresses) - 1)
        left, right = addresses[:at], addresses[at:]
        return self._block([pair for a in left for b in right for pair in ((a, b), (b, a))])

    def _one_way(self) -> bool:
        address = self._machine().address
        outward = self._rng.random() < 0.5
        pairs = [pair for pair in self._around(address) if (pair[0] == address) is outward]
        return self._block([pair for pair in pairs if self._rng.random() < 0.7])

    def _cut(self) -> bool:
        return self._cluster.network.cut_some()

    def _refuse(self) -> bool:
        """A device between a node and some others refuses, as a firewall does."""
        return self._refuse_around(self._machine().address)

    def _refuse_leader(self) -> bool:
        leader = self._leader()
        return leader is not None and self._refuse_around(leader.address)

    def _refuse_around(self, address: str) -> bool:
        share = self._rng.choice((0.5, 0.9))
        others = [other for other in self._cluster.machines if other != address and self._rng.random() < share]
        pairs = [frozenset((address, other)) for other in others]
        network = self._cluster.network
        network.refuse_between(pairs)
        self._later(partial(network.let_through, pairs))
        return bool(pairs)

    def _slow_link(self) -> bool:
        a, b = self._rng.sample(list(self._cluster.machines), 2)
        network = self._cluster.network
        network.slow[a, b] = self._rng.choice((10.0, 50.0, 200.0))
        self._later(partial(self._fast_link, a, b))
        return True

    def _fast_link(self, a: str, b: str) -> None:
        self._cluster.network.slow.pop((a, b), None)

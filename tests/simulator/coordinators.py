"""A workload of ttls, leases, locks, semaphores and fenced writes, on every node beside the clients.

Rules kept here:

1. Each process asks for one thing at a time, by the product's own registries, and gives up after a while.
2. Keys with a ttl are new each time, so what became of one says all.
3. At the end everybody lets go: then, within the longest ttl and a moment, nothing of it must be left.
"""

from __future__ import annotations

import random
from functools import partial

from replidict.errors import LockLost, ReplidictError
from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.node.held_leases import HeldLease, milliseconds
from replidict.node.lock_requests import Request, State, Wanted
from replidict.node.node import Node
from replidict.node.proposals import Write
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.check_coordination import CoordinationChecks
from tests.simulator.cluster import Cluster
from tests.simulator.healing import members

TTLS = (1.0, 3.0, 6.0)
NAMES = (("lock", 0), ("shared", 0), ("pool", 2))


class Coordinator:
    """One on each machine."""

    def __init__(self, machine: Machine, checks: CoordinationChecks) -> None:
        self._machine, self._checks = machine, checks
        self._rng = random.Random(f"{machine.cluster.seed} {machine.name} coordinator")
        self._loop = machine.cluster.loop
        self._stopped = False
        self._count = 0
        self._request: Request | None = None
        self._lease: HeldLease | None = None
        machine.on_start.append(self._started)

    def _started(self) -> None:
        node = self._machine.node
        assert node is not None
        node.locks.holder = f"{self._machine.address} {self._machine.incarnation}"
        self._request = self._lease = None
        self._later(self._machine.incarnation)

    def _later(self, incarnation: int) -> None:
        self._loop.after(self._rng.expovariate(1 / 0.7), partial(self._act, incarnation))

    def stop(self) -> None:
        """Let go of everything."""
        self._stopped = True
        if self._machine.node is not None:
            self._let_go(self._machine.node)

    def _let_go(self, node: Node) -> None:
        if self._request is not None:
            node.locks.withdraw(self._request)
            self._request = None
        if self._lease is not None:
            node.leases.give_back(self._lease, "stopped")
            self._lease = None

    def _act(self, incarnation: int) -> None:
        machine, rng = self._machine, self._rng
        node = machine.node
        if self._stopped or node is None or machine.incarnation != incarnation:
            return
        self._later(incarnation)
        if machine.paused:
            return
        try:
            rng.choice((self._set, self._set, self._ask, self._ask, self._ask, self._fence, self._fence, self._open))(
                node
            )
        except ReplidictError:
            pass  # the node is about to stop

    def _set(self, node: Node) -> None:
        """A key with a ttl, or on the lease."""
        self._count += 1
        key = f"ttl {self._machine.name} {self._machine.incarnation} {self._count}"
        ttl = self._rng.choice(TTLS)
        lease = self._lease
        if lease is not None and lease.granted and self._rng.random() < 0.3:
            expiring = cmd.Expiring(cmd.Put(encode_key(key), encode("leased")), None, lease.id)
        else:
            self._checks.promised(key, ttl)
            expiring = cmd.Expiring(cmd.Put(encode_key(key), encode("mortal")), milliseconds(ttl), None)
        node.proposals.submit(Write(expiring, 100, lambda: None))

    def _ask(self, node: Node) -> None:
        """A lock, or give back the one that is held or waited for."""
        if self._request is not None and self._request.state is not State.OVER:
            if self._rng.random() < 0.7:
                node.locks.withdraw(self._request)
                self._request = None
            return
        name, permits = self._rng.choice(NAMES)
        shared = name == "shared" and self._rng.random() < 0.5
        wanted = Wanted(name, self._rng.choice(TTLS), shared, permits, "")
        told = False

        def woken() -> None:
            nonlocal told
            if request.state is State.HELD and not told:
                told = True
                self._checks.told(self._machine, request, shared=shared, permits=permits)

        self._request = request = node.locks.request(wanted, woken)
        node.locks.ask(request, wanted, self._rng.random() < 0.8)

    def _fence(self, node: Node) -> None:
        """A write with the token of what is held, or was."""
        if self._request is not None and self._request.token:
            fenced = cmd.Fenced(self._request.name, self._request.token, cmd.Put(encode_key("fenced"), encode("x")))
            node.proposals.submit(Write(fenced, 100, lambda: None))
            try:
                node.locks.see_to(self._request)
            except LockLost:
                self._request = None

    def _open(self, node: Node) -> None:
        """A lease, or the end of the one that there is."""
        if self._lease is None or self._lease.lost.is_set():
            self._lease, _ = node.leases.ask(self._rng.choice(TTLS), lambda: None)
        elif self._rng.random() < 0.3:
            node.leases.give_back(self._lease, "no use any more")
            self._lease = None


def nothing_is_left(cluster: Cluster) -> None:
    """All faults are over, and everybody has let go: what had a ttl is gone, in time, and no lock has a ghost."""

    def left() -> list[str]:
        for machine in members(cluster):  # of others, one may not know yet, or not be able to learn, that it is none
            if machine.node is not None:
                state = machine.node.machine
                mortal = [str(key) for key in state.items if str(key).startswith("ttl ")]
                found = mortal + [f"lock {name}" for name in state.coordination.locks.by_name]
                found += [f"lease {lease}" for lease in state.coordination.leases.open]
                if found:
                    return [f"{machine.address}: {each}" for each in found]
        return []

    cluster.loop.run_until(cluster.loop.now + max(TTLS) * 1.1 + 3.0, lambda: not left())
    if found := left():
        raise Violation("never late", f"still there: {found}")

"""What must become of a cluster when all faults are over: progress for every member, and equality.

Rules kept here:

1. Every member takes a write and serves a linearizable read, within a bounded time.
2. All members end up with the same log, state and configuration, in memory and on disk; every learner that is to be a
   voter is one, and the feature level is the one that all know.
3. A removed node that can reach a member that it knows, with the disk that it knows, is told, and stops.
"""

from __future__ import annotations

import random

from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, encode, encode_key
from replidict.machine.state_machine import StateMachine
from replidict.storage.store import Store
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.check_states import state_digest
from tests.simulator.clients import Call, Client, History, Workload
from tests.simulator.cluster import Cluster
from tests.simulator.operators import Operator

HEALING = 20.0
"""Simulated seconds within which, after the last fault, every member must take a write, and all be equal."""

CHANGING = 20.0
"""Simulated seconds more, when the members were changing."""


class _Last:
    """The last requests: one write and one read by each member."""

    def __init__(self, cluster: Cluster, history: History) -> None:
        self._cluster = cluster
        self._history = history
        self._clients: dict[tuple[str, str], Client] = {}
        self._calls: dict[tuple[str, str], Call] = {}

    def ask(self) -> None:
        """Ask where nothing was answered yet."""
        for machine in members(self._cluster):
            for kind in ("write", "read"):
                call = self._calls.get((machine.address, kind))
                # A session may have ended meanwhile: then nobody knows what became of the write, and another is due.
                # And whoever is a member again is another process.
                if call is None or call.given_up or call.incarnation != machine.incarnation:
                    self._calls[machine.address, kind] = self._call(machine, kind)
        self._cluster.loop.after(1.0, self.ask)

    def _call(self, machine: Machine, kind: str) -> Call:
        address = machine.address
        client = self._clients.get((address, kind))
        if client is None:
            workload = Workload(timeout=(2 * HEALING + CHANGING, 2 * HEALING + CHANGING))
            client = Client(f"last {kind} of {address}", machine, workload, self._history, random.Random(0))
            client.stop()
            self._clients[address, kind] = client
        if kind == "read":
            return client.read("get", f"last {address}")
        key, marker = f"last {address}", f"last-{address}-{len(self._history.operations)}-{len(self._calls)}"
        return client.write("set", key, marker, cmd.Put(encode_key(key), encode(marker)))

    def open(self) -> list[str]:
        """Which members wait for an answer, and for what."""
        here = members(self._cluster)
        asked = [(m, kind, self._calls.get((m.address, kind))) for m in here for kind in ("write", "read")]
        return [
            f"{machine.address}'s {kind}"
            for machine, kind, call in asked
            if call is None or not call.answered or call.incarnation != machine.incarnation
        ]


def members(cluster: Cluster) -> list[Machine]:
    """The machines that are members, and run."""
    return [
        machine
        for machine in cluster.machines.values()
        if machine.node is not None and cluster.checker.members.is_member(machine)
    ]


def heal(cluster: Cluster, history: History, operator: Operator) -> None:
    """Wait for progress and equality."""
    last = _Last(cluster, history)
    last.ask()

    def open_outcomes() -> bool:
        """Whether the outcome of some write is still open: its caller may be gone, but not for ever unknown."""
        return any(m.node is not None and m.node.proposals._in_flight for m in members(cluster))

    def missing() -> str | None:
        """What is not as it must be."""
        if operator.busy:
            return "a change of the members is not made"
        if waiting := last.open():
            return f"{waiting} wait"
        if behind := cluster.checker.levels.settled(members(cluster)):
            return behind
        return _differences(cluster) or ("outcomes are open" if open_outcomes() else None) or _untold(cluster)

    def tidy() -> None:
        operator.tidy()
        cluster.loop.after(1.0, tidy)

    tidy()
    seconds = HEALING + CHANGING * (cluster.checker.members.changes > 0 or operator.busy)
    cluster.loop.run_until(cluster.loop.now + seconds, lambda: missing() is None)
    if (what := missing()) is not None:
        raise Violation("progress", f"{seconds} s after the last fault: {what}; {_states(cluster)}")


def _differences(cluster: Cluster) -> str | None:
    known = cluster.checker.members.latest
    nodes = [machine.node for machine in members(cluster) if machine.node is not None]
    engines = [node.engine for node in nodes]
    if len(engines) < len(known.all):
        return f"only {len(engines)} of {sorted(known.all)} run"
    if any(engine.members != known for engine in engines):
        return f"not all go by {known}"
    if known.learners != known.readers:
        return f"{sorted(known.learners - known.readers)} are no voters yet"
    applied = {engine.last_applied for engine in engines}
    if len(applied) > 1 or applied != {engine.log.last_index for engine in engines}:
        return "logs or states differ"
    return None


def _untold(cluster: Cluster) -> str | None:
    """Rule 3."""
    here, identity = members(cluster), cluster.checker.members.identity
    for machine in cluster.machines.values():
        if machine.node is None or machine in here:
            continue
        known = machine.node.engine.members
        if any(other.address in known.all and identity(known, other.address) == other.disk.node_id for other in here):
            return f"{machine.address} does not know that it was removed"
    return None


def _states(cluster: Cluster) -> str:
    return "; ".join(
        f"{address}: {node.engine.role.name} of term {node.engine.term}, log {node.engine.log.start.index}.."
        f"{node.engine.log.last_index}, commit {node.engine.commit_index}, applied {node.engine.last_applied}, "
        f"by {sorted(node.engine.members.all)} of {node.engine.members.index}"
        for address, machine in cluster.machines.items()
        if (node := machine.node) is not None
    )


def compare(cluster: Cluster) -> None:
    """All members equal, in memory and on disk, once all have what has come since they healed."""
    cluster.loop.run_until(cluster.loop.now + HEALING, lambda: _differences(cluster) is None)
    digests = {m.address: state_digest(m.node.machine) for m in members(cluster) if m.node is not None}
    if len(set(digests.values())) != 1:
        raise Violation("equality", f"{digests}")
    for address, machine in cluster.machines.items():
        machine.close()
        difference = machine.disk.differences()
        if difference is not None:
            raise Violation("disk", f"{address}: {difference}")
        if address not in digests:
            continue
        store = Store(machine.disk.connect(), machine.disk.uri, log_retain=1)
        again = StateMachine(DEFAULT_CODEC)
        store.load_into(again)
        for entry in store.log.entries_from(again.applied_index + 1, 1 << 30):
            again.apply(entry.index, entry.command)
        store._db.close()
        if state_digest(again) != digests[address]:
            raise Violation("equality", f"what {address} has on disk does not replay to what it had in memory")

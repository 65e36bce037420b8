"""Transactions under faults: tellers on every node move money, watch each other's duty, and take seats.

What must hold of every state on every node: the money is conserved, somebody is on duty (write skew), no more seats are
taken than there are (phantoms). And what tellers were told must be strictly serializable, by `linearizability`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from replidict.api.transaction_view import Transaction
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, decode
from replidict.machine.state_machine import StateMachine
from replidict.node.proposals import Write
from replidict.options import Options
from replidict.testing.simulator.faults import Nemesis
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.history import Operation
from tests.linearizability import check
from tests.simulator.clients import History
from tests.simulator.cluster import Cluster
from tests.simulator.healing import compare, heal
from tests.simulator.operators import Operator
from tests.simulator.run import new_cluster

ACCOUNTS = ("alice", "bob", "carol")
DUTIES = ("duty 0", "duty 1")
SEATS = 4
AMOUNT = 100
PAUSE = 0.15
"""Seconds between two transactions of a teller, on average."""

T = Transaction[Any, Any]


def money(state: StateMachine) -> str | None:
    """The accounts hold together what they began with."""
    held = [state.find(name) for name in ACCOUNTS]
    if held == [None] * len(held):
        return None  # not opened yet
    amounts = [None if item is None else decode(item.value)[0] for item in held]
    whole = None not in amounts and sum(amounts) == AMOUNT * len(ACCOUNTS)  # type: ignore[arg-type]  # none is None
    return None if whole else f"the accounts hold {amounts}"


def duty(state: StateMachine) -> str | None:
    """One of two is on duty."""
    items = [item for name in DUTIES if (item := state.find(name)) is not None]
    return None if not items or any(decode(item.value)[0] for item in items) else "nobody is on duty"


def seats(state: StateMachine) -> str | None:
    """No seat too many is taken."""
    count = sum(key.startswith("seat") for key in state.items if isinstance(key, str))
    return None if count <= SEATS else f"{count} seats are taken"


class Teller:
    """Makes one transaction after the other on one machine, as `transact` does, in simulated time."""

    def __init__(self, name: str, machine: Machine, told: list[Operation], rng: random.Random) -> None:
        self.name, self._machine, self._told, self._rng = name, machine, told, rng
        self._count = 0
        self._pending: tuple[int, float, cmd.Transact, Write] | None = None
        self._seen_values: dict[Any, Any] = {}
        self.conflicts = 0
        self.done = 0
        self.stopped = False
        machine.on_start.append(self._later)
        machine.on_end.append(self.unknown)

    def _later(self) -> None:
        self._machine.cluster.loop.after(
            self._rng.expovariate(1 / PAUSE), partial(self._begin, self._machine.incarnation)
        )

    def _begin(self, incarnation: int) -> None:
        machine = self._machine
        if self.stopped or machine.node is None or machine.incarnation != incarnation:
            return
        if machine.paused:
            self._later()
            return
        self._count += 1
        t: T = Transaction(machine.node, DEFAULT_CODEC, machine.cluster.options)
        bodies: list[Callable[[T], None]] = [
            self._open,
            self._transfer,
            self._leave,
            self._come,
            self._sit,
            self._stand,
        ]
        self._rng.choices(bodies, [1, 6, 3, 1, 3, 1])[0](t)
        operation, size = t.prepared().operation()
        if not operation.writes:
            self._later()
            return
        write = Write(operation, size, lambda: self._answered(called, operation, write))
        called = machine.time
        machine.cluster.trace.note(self.name, "call", operation)
        machine.node.proposals.submit(write)
        # Of what is not answered in time nothing is known: it stays in the history as that.
        self._pending = (incarnation, called, operation, write)
        machine.cluster.loop.after(2.0, partial(self._give_up, incarnation, write))

    def _give_up(self, incarnation: int, write: Write) -> None:
        machine, waits = self._machine, self._pending is not None and self._pending[3] is write
        if waits and machine.incarnation == incarnation and machine.node is not None:
            if not machine.node.proposals.give_up(write):
                self.unknown()
            self._pending = None
            self._later()

    def unknown(self) -> None:
        """The answer is lost: it may have been done."""
        if self._pending is not None and self._pending[3].sent:
            _, called, operation, _ = self._pending
            self._told.append(_operation(self.name, called, None, operation, None, self._seen_values))
        self._pending = None

    def _answered(self, called: float, operation: cmd.Transact, write: Write) -> None:
        if self._pending is None or self._pending[3] is not write:
            return
        if write.error is not None:
            self.unknown()
            return
        self._pending = None
        if isinstance(write.result, str | bytes):
            raise Violation("results", f"{self.name}: {operation} gave {write.result!r}")
        if isinstance(write.result, int):
            self.done += 1
            self._told.append(_operation(self.name, called, self._machine.time, operation, True, self._seen_values))
        else:
            self.conflicts += 1
        self._later()

    # -- bodies -------------------------------------------------------------------------------------------------------

    def _mark(self, value: Any) -> list[Any]:
        return [value, f"{self.name}#{self._count}"]

    def _read(self, t: T, *keys: str) -> list[Any]:
        self._seen_values = {key: t.get(key) for key in keys}
        return [None if value is None else value[0] for value in self._seen_values.values()]

    def _open(self, t: T) -> None:
        if self._read(t, *ACCOUNTS) == [None] * len(ACCOUNTS):
            t.update({name: self._mark(AMOUNT) for name in ACCOUNTS})

    def _transfer(self, t: T) -> None:
        source, target = self._rng.sample(ACCOUNTS, 2)
        held, other = self._read(t, source, target)
        if held:
            t[source] = self._mark(held - 1)
            assert t[source][0] == held - 1  # own writes are seen
            t[target] = self._mark(other + 1)

    def _leave(self, t: T) -> None:
        mine, other = self._rng.sample(DUTIES, 2)
        on, other_on = self._read(t, mine, other)
        if on and other_on:
            t[mine] = self._mark(False)

    def _come(self, t: T) -> None:
        self._seen_values = {}
        t[self._rng.choice(DUTIES)] = self._mark(True)

    def _sit(self, t: T) -> None:
        self._seen_values = {}
        if sum(key.startswith("seat") for key in t) < SEATS:
            t[f"seat {self.name}#{self._count}"] = self._mark(True)

    def _stand(self, t: T) -> None:
        taken = [key for key in sorted(self._machine.node.machine.items) if key.startswith("seat")]  # type: ignore[union-attr]
        if taken:
            key = self._rng.choice(taken)
            if self._read(t, key) != [None]:
                del t[key]


def _operation(
    client: str, call: float, ret: float | None, operation: cmd.Transact, result: Any, seen: dict[Any, Any]
) -> Operation:
    """What a transaction read and wrote, for the checker. Values are told apart by their marks."""
    reads = [(key, None if value is None else value[1]) for key, value in seen.items()]
    writes = [
        (decode(write.key), decode(write.value)[1] if isinstance(write, cmd.Put) else None)
        for write in operation.writes
        if not isinstance(write, cmd.Expiring)  # this workload has none
    ]
    return Operation(client, call, ret, "transact", None, (reads, writes), result)


@contextmanager
def a_bank(seed: int, options: Options) -> Iterator[tuple[Cluster, list[Teller], list[Operation]]]:
    """A cluster whose nodes have tellers."""
    with new_cluster(seed, 3, options) as cluster:
        told: list[Operation] = []
        tellers = [
            Teller(f"{machine.name}.{number}", machine, told, random.Random(f"{seed} {machine.name} {number}"))
            for machine in cluster.machines.values() for number in range(2)
        ]  # fmt: skip
        cluster.checker.states.rules += [money, duty, seats]
        yield cluster, tellers, told


def simulate_bank(seed: int, *, seconds: float = 20.0) -> tuple[Violation | None, int, int]:
    """Run one seed under faults; what was violated, and how many transactions were done, and how many conflicted."""
    with a_bank(seed, Options()) as (cluster, tellers, told):
        nemesis = Nemesis(cluster, random.Random(f"seed {seed} faults"), drift=0.08)
        try:
            cluster.start()
            nemesis.start()
            nemesis.revive()
            cluster.loop.run_until(seconds)
            for teller in tellers:
                teller.stopped = True
            nemesis.stop()
            heal(cluster, History(), Operator(cluster, random.Random(f"seed {seed} operator")))
            for teller in tellers:
                teller.unknown()
            compare(cluster)
            verdict = check(told, seconds=10.0)
            if verdict.outcome == "not linearizable":
                raise Violation("strict serializability", str(verdict))
        except Violation as violation:
            return violation, 0, 0
        return None, sum(teller.done for teller in tellers), sum(teller.conflicts for teller in tellers)

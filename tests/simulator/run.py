"""One seed from beginning to end: a cluster, its workload and its faults; then healing, and the last checks."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from replidict.options import Options
from replidict.storage import schema
from replidict.testing.simulator.disk import lay_out
from replidict.testing.simulator.faults import Nemesis
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.linearizability import check
from tests.simulator import guards, limits
from tests.simulator.clients import Client, History, Workload, complete_history
from tests.simulator.cluster import Cluster
from tests.simulator.coordinators import Coordinator, nothing_is_left
from tests.simulator.healing import compare, heal
from tests.simulator.operators import Operator
from tests.simulator.upgrades import Upgrades
from tests.simulator.watchers import Watchers


@dataclass
class Result:
    """What came of one seed."""

    seed: int
    nodes: int
    changing: bool
    seconds: float
    violation: Violation | None = None
    digest: str = ""
    trace: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0


@contextmanager
def _directory() -> Iterator[Path]:
    base = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="replidict-simulator-", dir=base if base.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nodes that fail on purpose log a lot."""
    logger = logging.getLogger("replidict")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def new_cluster(seed: int, nodes: int, options: Options, *, keep_trace: int | None = 400) -> Iterator[Cluster]:
    """A cluster that is not started yet; everything is freed afterwards."""
    with _directory() as directory, _quiet(), mock.patch.object(schema, "create", lay_out):
        addresses = [f"n{number}:7000" for number in range(1, nodes + 1)]
        cluster = Cluster(seed, addresses, options, directory, keep_trace=keep_trace)
        try:
            yield cluster
        finally:
            cluster.destroy()


def _draw_options(rng: random.Random, seed: int) -> Options:
    mine = random.Random(f"seed {seed} history")
    heartbeat, election_timeout = rng.choice(((0.1, 0.5), (0.1, 0.5), (0.05, 0.2), (0.2, 1.0)))
    return Options(
        heartbeat=heartbeat,
        election_timeout=election_timeout,
        lease_reads=rng.random() < 0.3,
        log_retain=rng.choice((1, 1, 3, 10, 50, 500)),
        max_command_bytes=rng.choice((300, 2_000, 1 << 20)),
        history_entries=mine.choice((1, 5, 20, 100, 100_000)),
        history_bytes=mine.choice((2_000, 20_000, 64 << 20)),
        scrub_bytes_per_second=mine.choice((0, 5_000, 20_000)),
    )


KEYS: list[tuple[Hashable, ...]] = [("a", "b", "c"), ("a", "b", "c", "d", "e", "f"), ("a", 1, True, 1.0, "b")]
"""In the last ones three keys are one, for a dict."""


def _draw_workload(rng: random.Random, nodes: int) -> Workload:
    spanning = rng.random() < 0.3
    keys: tuple[Hashable, ...] = rng.choice(KEYS)
    if spanning:
        keys = keys[:4]
    return Workload(
        clients=rng.choice((1, 2)) if nodes == 3 else 1,
        pause=rng.choice((0.5, 1.0, 1.5)) * (2.0 if spanning else 1.0),
        timeout=rng.choice(((0.3, 1.0), (0.3, 3.0), (2.0, 5.0))),
        keys=keys,
        spanning=spanning,
        padding=rng.choice((0, 0, 500, 5_000)),
        burst=rng.choice((0.0, 0.0, 0.5)),
    )


def simulate(
    seed: int,
    *,
    nodes: int | None = None,
    changing: bool | None = None,
    seconds: float = 60.0,
    kinds: list[str] | None = None,
    keep_trace: int | None = 400,
    without: str | None = None,
) -> Result:
    """Run one seed, `changing` the members or not. A violation is returned, not raised; so is everything that went
    wrong unexpectedly."""
    began = time.process_time()
    rng = random.Random(f"seed {seed}")
    drawn = rng.random() < 0.5
    changing = drawn if changing is None else changing
    drawn_nodes = rng.choice((3, 3, 4, 5, 6, 7) if changing else (3, 3, 5))
    nodes = nodes or drawn_nodes
    options, workload, constants = _draw_options(rng, seed), _draw_workload(rng, nodes), limits.draw(rng, nodes)
    result = Result(seed, nodes, changing, seconds)
    with (
        limits.in_force(constants),
        guards.without(without),
        new_cluster(seed, nodes, options, keep_trace=keep_trace) as cluster,
        (upgrades := Upgrades(cluster, random.Random(f"seed {seed} releases"))).in_force(),
    ):
        _draw_world(cluster, rng)
        drift = 0.045 if options.lease_reads else 0.08
        operator = Operator(cluster, random.Random(f"seed {seed} operator"))
        nemesis = Nemesis(
            cluster, random.Random(f"seed {seed} faults"), drift=drift, kinds=kinds,
            changes=operator.kinds if changing else None,
        )  # fmt: skip
        cluster.trace.note("seed", str(seed), f"{options} {workload} {nemesis.kinds} every {nemesis.interval}")
        cluster.trace.note("seed", "limits", {name: value for _, name, value in constants})
        history = History()
        try:
            watchers = Watchers(cluster, workload.keys, random.Random(f"seed {seed} watchers"))
            _run(cluster, nemesis, operator, upgrades, workload, history, seconds, watchers)
        except Violation as violation:
            result.violation = violation
        result.digest = cluster.trace.digest()
        if result.violation is not None:
            result.trace = cluster.trace.lines()
        result.faults = nemesis.counts
        told = history.told
        result.counts = Counter(
            **cluster.counters, messages=cluster.network.messages, cuts=cluster.network.cuts, writes=told.done,
            not_committed=told.not_committed, unknown=told.unknown, reads=told.reads, reads_failed=told.reads_failed,
            entries=cluster.checker.logs.highest_commit, leaders=cluster.checker.elections.leaders_seen,
            snapshots=cluster.checker.snapshots_installed, events=cluster.loop.events,
            changes=cluster.checker.members.changes, farewells=cluster.network.farewells,
            refused=cluster.network.refused, stranded=operator.stranded, mixed=upgrades.mixed, upgrades=upgrades.count,
            levels_raised=cluster.checker.levels.raised,
            expired=cluster.checker.coordination.expired, granted=cluster.checker.coordination.granted,
            fenced=cluster.checker.coordination.fenced, unfenced=cluster.checker.coordination.refused,
        )  # fmt: skip
    result.cpu = time.process_time() - began
    return result


def _draw_world(cluster: Cluster, rng: random.Random) -> None:
    network = cluster.network
    network.delay = rng.choice(((0.0002, 0.002), (0.001, 0.02), (0.0001, 0.08)))
    network.heavy_tail = rng.choice((0.0, 0.0, 0.02))
    network.capacity = rng.choice((30_000, 1 << 30))
    cluster.fsync_time = rng.choice((0.0003, 0.002, 0.02))


def _run(
    cluster: Cluster, nemesis: Nemesis, operator: Operator, upgrades: Upgrades, workload: Workload, history: History,
    seconds: float, watchers: Watchers,
) -> None:  # fmt: skip
    clients: list[Client] = []

    def populate(machine: Machine) -> None:
        names = [f"{machine.name}.{number}" for number in range(workload.clients)]
        rngs = [random.Random(f"{cluster.seed} {name}") for name in names]
        clients.extend(Client(name, machine, workload, history, rng) for name, rng in zip(names, rngs, strict=True))

    coordinators: list[Coordinator] = []
    if not workload.spanning:  # whose operations would meet the keys of these

        def coordinate(machine: Machine) -> None:
            coordinators.append(Coordinator(machine, cluster.checker.coordination))

        for machine in cluster.machines.values():
            coordinate(machine)
        cluster.on_machine.append(coordinate)
    for machine in cluster.machines.values():
        populate(machine)
    cluster.on_machine.append(populate)
    upgrades.start()
    cluster.start()
    nemesis.start()
    nemesis.revive()
    cluster.loop.run_until(seconds)
    for client in clients:
        client.stop()
    for coordinator in coordinators:
        coordinator.stop()
    cluster.on_machine.clear()
    cluster.trace.note("nemesis", "stop")
    nemesis.stop()
    upgrades.finish()
    heal(cluster, history, operator)
    if coordinators:
        nothing_is_left(cluster)
    watchers.settle()
    cluster.counters["told"], cluster.counters["lost"] = watchers.told, watchers.losses
    compare(cluster)
    _judge(cluster, history)


def _judge(cluster: Cluster, history: History) -> None:
    """What clients were told is true."""
    effects = cluster.checker.states.effects
    told = cluster.checker.watches.markers()
    for marker, effect in effects.items():
        if type(effect.result) in (int, bool) and told[marker] != bool(effect.result):
            raise Violation("watch", f"{marker}, which gave {effect.result!r}, is told {told[marker]} times")
    for marker in history.refused:
        if marker in effects:
            raise Violation("not committed", f"{marker} was refused, and applied by entry {effects[marker].index}")
    for call in history.open.values():
        if call.machine.incarnation == call.incarnation and not call.given_up:
            raise Violation("answers", f"{call.client}: {call.operation or call.kind} was never answered")
    verdict = check(complete_history(history), seconds=20.0)
    cluster.counters["undecided"] = verdict.outcome == "undecided"
    if verdict.outcome == "not linearizable":
        raise Violation("linearizability", str(verdict))

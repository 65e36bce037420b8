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

from replidict import commands as cmd
from replidict.codec import DEFAULT_CODEC, encode, encode_key
from replidict.options import Options
from replidict.state_machine import StateMachine
from replidict.storage import tables
from replidict.storage.store import Store
from tests.linearizability import check
from tests.simulator import guards, limits
from tests.simulator.clients import Call, Client, History, Workload, complete_history
from tests.simulator.cluster import Cluster, name_of
from tests.simulator.disk import lay_out
from tests.simulator.faults import Nemesis
from tests.simulator.invariants import Violation, state_digest

HEALING = 20.0
"""Simulated seconds within which, after the last fault, every node must take a write, and all be equal."""


@dataclass
class Result:
    """What came of one seed."""

    seed: int
    nodes: int
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
    with _directory() as directory, _quiet(), mock.patch.object(tables, "create", lay_out):
        addresses = [f"n{number}:7000" for number in range(1, nodes + 1)]
        cluster = Cluster(seed, addresses, options, directory, keep_trace=keep_trace)
        try:
            yield cluster
        finally:
            cluster.destroy()


def _draw_options(rng: random.Random) -> Options:
    heartbeat, election_timeout = rng.choice(((0.1, 0.5), (0.1, 0.5), (0.05, 0.2), (0.2, 1.0)))
    return Options(
        heartbeat=heartbeat,
        election_timeout=election_timeout,
        lease_reads=rng.random() < 0.3,
        log_retain=rng.choice((1, 1, 3, 10, 50, 500)),
        max_command_bytes=rng.choice((300, 2_000, 1 << 20)),
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
    seconds: float = 60.0,
    kinds: list[str] | None = None,
    keep_trace: int | None = 400,
    without: str | None = None,
) -> Result:
    """Run one seed. A violation is returned, not raised; so is everything that went wrong unexpectedly."""
    began = time.process_time()
    rng = random.Random(f"seed {seed}")
    drawn = rng.choice((3, 3, 5))
    nodes = nodes or drawn
    options, workload, constants = _draw_options(rng), _draw_workload(rng, nodes), limits.draw(rng, nodes)
    result = Result(seed, nodes, seconds)
    with (
        limits.in_force(constants),
        guards.without(without),
        new_cluster(seed, nodes, options, keep_trace=keep_trace) as cluster,
    ):
        _draw_world(cluster, rng)
        drift = 0.045 if options.lease_reads else 0.08
        nemesis = Nemesis(cluster, random.Random(f"seed {seed} faults"), drift=drift, kinds=kinds)
        cluster.trace.note("seed", str(seed), f"{options} {workload} {nemesis.kinds} every {nemesis.interval}")
        cluster.trace.note("seed", "limits", {name: value for _, name, value in constants})
        history = History()
        try:
            _run(cluster, nemesis, workload, history, seconds)
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
            entries=cluster.checker.highest_commit, leaders=cluster.checker.leaders_seen,
            snapshots=cluster.checker.snapshots_installed, events=cluster.loop.events,
        )  # fmt: skip
    result.cpu = time.process_time() - began
    return result


def _draw_world(cluster: Cluster, rng: random.Random) -> None:
    network = cluster.network
    network.delay = rng.choice(((0.0002, 0.002), (0.001, 0.02), (0.0001, 0.08)))
    network.heavy_tail = rng.choice((0.0, 0.0, 0.02))
    network.capacity = rng.choice((30_000, 1 << 30))
    cluster.fsync_time = rng.choice((0.0003, 0.002, 0.02))


def _run(cluster: Cluster, nemesis: Nemesis, workload: Workload, history: History, seconds: float) -> None:
    names = [(f"{name_of(address)}.{number}", machine) for address, machine in cluster.machines.items()
             for number in range(workload.clients)]  # fmt: skip
    clients = [
        Client(name, machine, workload, history, random.Random(f"{cluster.seed} {name}")) for name, machine in names
    ]
    cluster.start()
    nemesis.start()
    nemesis.revive()
    cluster.loop.run_until(seconds)
    for client in clients:
        client.stop()
    cluster.trace.note("nemesis", "stop")
    nemesis.stop()
    _heal(cluster, history)
    _compare(cluster)
    _judge(cluster, history)


def _heal(cluster: Cluster, history: History) -> None:
    """Progress and equality within a bounded time."""
    calls: dict[str, Call] = {}
    clients = {
        address: Client(
            f"last {address}", machine, Workload(timeout=(2 * HEALING, 2 * HEALING)), history, random.Random(0)
        )
        for address, machine in cluster.machines.items()
    }
    for client in clients.values():
        client.stop()

    def ask() -> None:
        for number, (address, client) in enumerate(clients.items()):
            call = calls.get(address)
            # A session may have ended meanwhile: then nobody knows what became of the write, and another is due.
            if call is None or call.given_up:
                key, marker = f"last {address}", f"last-{address}-{len(history.operations)}-{number}"
                calls[address] = client.write("set", key, marker, cmd.Put(encode_key(key), encode(marker)))
        cluster.loop.after(1.0, ask)

    ask()

    def waits() -> bool:
        """Whether the outcome of some write is still open: its caller may be gone, but not for ever unknown."""
        return any(m.node is not None and m.node.proposals._in_flight for m in cluster.machines.values())

    def equal() -> bool:
        nodes = [machine.node for machine in cluster.machines.values()]
        applied = {node.engine.last_applied for node in nodes if node is not None}
        ends = {node.engine.log.last_index for node in nodes if node is not None}
        return all(call.answered for call in calls.values()) and len(applied) == 1 and applied == ends and not waits()

    cluster.loop.run_until(cluster.loop.now + HEALING, equal)
    if not equal():
        open_calls = [call.client for call in calls.values() if not call.answered]
        states = [
            f"{address}: {node.engine.role.name} of term {node.engine.term}, log {node.engine.log.start.index}.."
            f"{node.engine.log.last_index}, commit {node.engine.commit_index}, applied {node.engine.last_applied}"
            for address, machine in cluster.machines.items()
            if (node := machine.node) is not None
        ]
        raise Violation(
            "progress",
            f"{HEALING} s after the last fault: {open_calls} wait; outcomes open: {waits()}; {'; '.join(states)}",
        )


def _compare(cluster: Cluster) -> None:
    """All nodes equal, in memory and on disk."""
    digests = {address: state_digest(m.node.machine) for address, m in cluster.machines.items() if m.node is not None}
    if len(set(digests.values())) != 1:
        raise Violation("equality", f"{digests}")
    for address, machine in cluster.machines.items():
        machine.close()
        difference = machine.disk.differences()
        if difference is not None:
            raise Violation("disk", f"{address}: {difference}")
        store = Store(machine.disk.connect(), machine.disk.uri, log_retain=1)
        again = StateMachine(DEFAULT_CODEC)
        store.load_into(again)
        for entry in store.log.entries_from(again.applied_index + 1, 1 << 30):
            again.apply(entry.index, entry.command)
        store._db.close()
        if state_digest(again) != digests[address]:
            raise Violation("equality", f"what {address} has on disk does not replay to what it had in memory")


def _judge(cluster: Cluster, history: History) -> None:
    """What clients were told is true."""
    effects = cluster.checker.effects
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

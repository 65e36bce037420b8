"""Processes that share a node, beside a process that has the node for itself; and how long they wait when the one that
runs it is killed."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from benchmarks.processes import Child
from benchmarks.results import ANY, Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster, Embedded, Member

OWN, ATTACHED, HOST = "node of its own", "replidict, attached", "replidict, host"
PATIENCE = 30.0


@contextmanager
def beside(member: Member) -> Iterator[Child]:
    """A process attached to the node of a member."""
    assert isinstance(member, Embedded)
    child = member.beside(share=True)
    try:
        child.greeting.result(60)
        yield child
    finally:
        child.kill()


def in_turn(rounds: int, clients: dict[str, Child], measured: Callable[[Child], dict[str, float]]) -> Iterator[Row]:
    """The same for each client, one after the other, several times: what else the machine does meets all of them."""
    for _ in range(rounds):
        for name, client in clients.items():
            yield Row(name, {}, measured(client))


def reads(client: Child) -> dict[str, float]:
    """A local read, in a plain loop."""
    return {"read us": float(client.call("mean_get"))}


def used(settings: Settings, cluster: Cluster, own: str) -> Measured:
    """Reads and writes in the process that runs the node, and in one attached to it."""
    rounds, seconds = settings.pick(5, 1), settings.pick(0.5, 0.1)
    cluster.at("leader").call("fill")
    for place in ("leader", "follower"):
        member = cluster.leader() if place == "leader" else cluster.followers()[0]
        with beside(member) as attached:
            clients = {own: member.client, ATTACHED: attached} if own == OWN else {own: member.client}
            for client in clients.values():
                client.call("barrier")
                client.call("writes", threads=1, seconds=seconds)
            for row in in_turn(rounds, clients, reads):
                yield Row(row.system, {"at": place, "threads": ANY}, row.figures)
            for threads in (1, 16):
                found: list[dict[str, Any]] = []

                def written(client: Child, threads: int = threads, found: list[Any] = found) -> dict[str, float]:
                    found.append(client.call("writes", threads=threads, seconds=seconds))
                    return latency(found[-1])

                for row in in_turn(rounds, clients, written):
                    yield Row(row.system, {"at": place, "threads": threads}, row.figures)
                    yield from complaints(f"{row.system}, {threads} threads", found[-1])


def kills(settings: Settings, count: int) -> Measured:
    """Three processes with one node of one member; the one that runs it is killed, again and again."""
    times: list[float] = []
    with settings.cluster(count=1, share=True) as cluster:
        (member,) = cluster.members
        assert isinstance(member, Embedded)
        processes = [member.client]
        try:
            for _ in range(2):
                processes.append(member.beside())
                processes[-1].greeting.result(60)
            for _ in range(count):
                for each in processes:
                    each.call("writes", threads=1, seconds=0.05)
                time.sleep(random.uniform(0.1, 0.3))
                host = next(each for each in processes if each.call("status")["sharing"] == "host")
                processes.remove(host)
                since = perf_counter()
                host.kill()
                waiting = [each.submit("first_write", since=since, patience=PATIENCE) for each in processes]
                times.append(max(float(each.result(2 * PATIENCE)) for each in waiting))
                processes.append(member.beside())
                processes[-1].greeting.result(60)
        finally:
            for each in processes:
                each.kill()
    figures = {"median s": statistics.median(times), "worst s": max(times), "best s": min(times)}
    yield Row("replidict", {"the host is": "killed"}, figures | {"kills": float(count)})


def measure(settings: Settings) -> Measured:
    with settings.cluster(lets_attach=True) as cluster:
        yield from used(settings, cluster, OWN)
    with settings.cluster(share=True) as cluster:
        yield from used(settings, cluster, HOST)
    yield from kills(settings, settings.pick(20, 1))
    yield Note(f"{OWN}: not shared, or shared as `replidict serve` does it; the attached process is attached to it")
    yield Note(f"{HOST}: the process of `share=True` that runs the node, which has a second copy for its own use")
    yield Note("killed: from SIGKILL until each of two attached processes has written, to a single node")


BENCHMARK = Benchmark(
    "share",
    "Processes that share a node, three nodes: writes of 100 bytes, and local reads",
    measure,
    compare=("read us", "p50 ms", "per s"),
    against=(OWN,),
    repeated=False,
)

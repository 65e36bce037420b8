"""A fourth node joins three that hold many keys, while writes go on: what they feel of it, and when it is a voter."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

from benchmarks.processes import PATIENCE, Failed, free_addresses
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster, Embedded

THREADS = 4


def voter_after(cluster: Cluster, root: Path, asked: str) -> float:
    """Seconds from the start of a process that joins until it is a voter, as it says itself."""
    (address,) = free_addresses(1)
    member = Embedded("replidict", {"path": str(root / "new"), "address": address, "join": asked})
    cluster.members.append(member)
    start = perf_counter()
    member.start()
    member.client.greeting.result(120)
    while not member.client.call("status")["votes"]:
        sleep(0.02)
        if perf_counter() > start + PATIENCE:
            raise Failed("the node that joined never became a voter")
    return perf_counter() - start


def measure(settings: Settings) -> Measured:
    keys, seconds = settings.pick(300_000, 3_000), settings.pick(20.0, 2.0)
    with settings.cluster() as cluster, TemporaryDirectory(dir=settings.directory) as root:
        leader = cluster.leader().client
        leader.call("load", keys=keys, piece=1_000, value_bytes=100)
        leader.call("writes", threads=THREADS, seconds=settings.pick(3.0, 0.2), keys=keys)  # caches warm up
        before = leader.call("writes", threads=THREADS, seconds=seconds, keys=keys)
        load = leader.submit("writes", threads=THREADS, seconds=seconds, keys=keys)
        took = voter_after(cluster, Path(root), leader.call("status")["address"])
        during = load.result(seconds + 60)
        cluster.kill()
    yield Row("three nodes", {"threads": THREADS}, latency(before))
    yield Row("replidict", {"threads": THREADS}, {**latency(during), "process start to voter s": took})
    for found in (before, during):
        yield from complaints("replidict", found)
    yield Note(f"{keys:,} keys of 100 bytes; writes on the leader for {seconds:g} s, from the start of the new process")


BENCHMARK = Benchmark(
    "join",
    "A fourth node joins",
    measure,
    compare=("p50 ms", "p99 ms"),
    against=("three nodes",),
)

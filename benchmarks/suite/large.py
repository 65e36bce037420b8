"""A million keys: what they cost in time and memory, beside a thousand, and a minute with a snapshot in it."""

from __future__ import annotations

import time
from time import perf_counter

from benchmarks.processes import Child
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster

FEW = 1_000
FIRST = "key-00000000"


def writes(settings: Settings, leader: Child, keys: int) -> Measured:
    span = settings.pick(6.0, 0.3)
    for threads in (1, 16):
        found = leader.call("writes", threads=threads, seconds=span, keys=keys)
        system = "replidict" if keys > FEW else "replidict, 1,000 keys"
        yield Row(system, {"writes": f"{span:g} s", "threads": threads}, latency(found))
        yield from complaints(system, found)


def minute(settings: Settings, cluster: Cluster, keys: int) -> Measured:
    """Writes go on while a follower dies, stays away until its log position is gone, and gets a snapshot."""
    seconds, absence = settings.pick(60.0, 1.5), settings.pick(25.0, 0.2)
    leader, follower = cluster.leader().client, cluster.followers()[0]
    load = leader.submit("writes", threads=4, seconds=seconds, keys=keys)
    time.sleep(settings.pick(5.0, 0.2))
    follower.kill()
    time.sleep(absence)
    start = perf_counter()
    follower.start()
    follower.client.greeting.result(120)
    follower.client.call("barrier")
    back = perf_counter() - start
    installed = follower.client.call("status")["snapshots_installed"]
    found = load.result(seconds + 60)
    yield Row("replidict", {"writes": f"{seconds:g} s with a follower away and back", "threads": 4}, latency(found))
    yield Note(f"the follower was level {back:.2f} s after its process started; snapshots installed: {installed}")
    yield from complaints("replidict", found)


def measure(settings: Settings) -> Measured:
    keys = settings.pick(1_000_000, 5_000)
    with settings.cluster() as cluster:
        leader, follower = cluster.leader().client, cluster.followers()[0]
        leader.call("load", keys=FEW, piece=FEW)
        yield from writes(settings, leader, FEW)
        follower.client.call("barrier")
        before = [client.call("status")["rss"] for client in (leader, follower.client)]
        loaded = leader.call("load", keys=keys - FEW, piece=1_000, first=FEW)
        follower.client.call("barrier")
        after = [client.call("status")["rss"] for client in (leader, follower.client)]
        figures = {"load entries per s": loaded["entries per s"]}
        if None not in before + after:
            figures["leader bytes/key"] = (after[0] - before[0]) / (keys - FEW)
            figures["follower bytes/key"] = (after[1] - before[1]) / (keys - FEW)
        yield Row("replidict", {"loaded by update() of": "1,000"}, figures)
        yield from writes(settings, leader, keys)
        yield from minute(settings, cluster, keys)
        follower = cluster.followers()[0]
        follower.kill()
        start = perf_counter()
        follower.start(first_key=FIRST)
        greeting = follower.client.greeting.result(120)
        figures = {"process start to first read s": perf_counter() - start, "in replidict s": greeting["first_read"]}
        yield Row("replidict", {"restarted": "a follower"}, figures)
    yield Note(f"{keys:,} keys, 10-byte values loaded, 100-byte values written to random keys; default options")


BENCHMARK = Benchmark(
    "large",
    "A million keys, three nodes",
    measure,
    compare=("p50 ms", "p99 ms"),
    against=("replidict, 1,000 keys",),
)

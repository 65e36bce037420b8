"""The leader is killed with SIGKILL: how long until a write by way of a survivor is acknowledged."""

from __future__ import annotations

import random
import statistics
import time
from time import perf_counter

from benchmarks.processes import Failed, wait_until
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster, Member

PATIENCE = 30.0


def one_kill(cluster: Cluster) -> float:
    """Seconds from the kill to the acknowledgement; the killed node is back and level afterwards."""
    leader = cluster.leader()
    survivor = cluster.followers()[0]
    time.sleep(random.uniform(0.3, 0.5))  # anywhere between two heartbeats
    since = perf_counter()
    leader.kill()
    found = float(survivor.client.call("first_write", since=since, patience=PATIENCE))
    leader.start()
    leader.client.greeting.result(60)
    wait_until(lambda: level(cluster, leader, survivor), "the killed node is level again")
    return found


def level(cluster: Cluster, back: Member, survivor: Member) -> bool:
    """Whether the node takes part again, so that the next kill finds a whole cluster."""
    try:
        if cluster.system != "stock":
            back.client.call("barrier")
            return True
        here, there = back.client.call("status"), survivor.client.call("status")
    except Failed:
        return False
    return here["leader"] is not None and here["applied_index"] >= there["applied_index"]


def measure(settings: Settings) -> Measured:
    for system in settings.with_peers("etcd", "stock", quick=("etcd",)):
        kills = settings.pick(20 if system == "replidict" else 10, 1)
        times: list[float] = []
        with settings.cluster(system) as cluster:
            for _ in range(kills):
                try:
                    times.append(one_kill(cluster))
                except Failed as error:
                    yield Note(f"{system}: given up after {len(times)} kills: {error}")
                    break
        if times:
            figures = {"median s": statistics.median(times), "worst s": max(times), "best s": min(times)}
            yield Row(system, {"nodes": 3}, figures | {"kills": float(len(times))})
    yield Note(
        "from SIGKILL to the acknowledgement of a write that began after it, through a survivor, default timings"
    )


BENCHMARK = Benchmark(
    "failover",
    "Time without a leader, after kill -9",
    measure,
    compare=("median s", "worst s"),
    against=("etcd", "stock"),
    repeated=False,
)

"""Latency and throughput of single writes, by threads: one node, and three from the leader and from a follower."""

from __future__ import annotations

from typing import Any

from benchmarks import floor
from benchmarks.replicated_floor import replicated
from benchmarks.results import ANY, Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster

NOTHING: dict[str, Any] = {}
FLOOR = "replicated, nothing else"


def by_threads(settings: Settings, cluster: Cluster, name: str, nodes: int) -> Measured:
    """Each number of threads, at each place; of hashicorp/raft a follower takes no writes."""
    seconds = settings.pick(1.0, 0.2)
    for place in ("leader", "follower") if nodes > 1 and name != "raft" else ("leader",):
        client = cluster.at(place)
        client.call("writes", threads=1, seconds=seconds / 4)  # connections, caches and branches warm up
        for threads in settings.pick((1, 4, 16, 64), (1, 16)):
            before = cluster.cpu_seconds()
            found = client.call("writes", threads=threads, seconds=seconds)
            figures = latency(found)
            if found["count"]:
                figures["CPU us"] = (cluster.cpu_seconds() - before) / found["count"] * 1e6
            yield Row(name, {"nodes": nodes, "at": place if nodes > 1 else "alone", "threads": threads}, figures)
            yield from complaints(f"{name}, {threads} threads", found)


def measure(settings: Settings) -> Measured:
    commit = floor.sqlite_commit(settings.directory, settings.pick(1.0, 0.2))
    del commit["per s"]  # of one row at a time: no measure for writes that go many at once
    yield Row("SQLite commit", {"nodes": ANY, "at": ANY, "threads": 1}, commit)
    least = replicated(settings.directory, settings.pick(1.0, 0.2), disk=True)
    yield Row(FLOOR, {"nodes": 3, "at": "leader", "threads": 1}, least)
    with settings.cluster(count=1) as cluster:
        yield from by_threads(settings, cluster, "replidict", 1)
    if "diskcache" in settings.peers:
        for name, config in (("diskcache, not synced", NOTHING), ("diskcache", {"full": True})):
            with settings.cluster("diskcache", 1, **config) as cluster:
                yield from by_threads(settings, cluster, name, 1)
    for system in settings.with_peers("etcd", "raft", "stock", quick=("etcd", "raft", "stock")):
        with settings.cluster(system) as cluster:
            yield from by_threads(settings, cluster, system, 3)
    yield Note("CPU us: user and system time of all nodes for each write, also of the callers where these are in them")


BENCHMARK = Benchmark(
    "writes",
    "Writes of 100 bytes, by threads",
    measure,
    compare=("p50 ms", "per s", "CPU us"),
    against=("etcd", "raft", "stock", "diskcache", "SQLite commit", FLOOR),
)

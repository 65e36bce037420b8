"""What syncing to disk costs: `Options(durability="process")` beside the default `"fsync"`."""

from __future__ import annotations

from benchmarks.results import Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    for nodes in (1, 3):
        systems = [("replidict, fsync", "replidict", "fsync"), ("replidict, process", "replidict", "process")]
        if nodes == 3 and "stock" in settings.with_peers("stock"):
            systems.append(("stock", "stock", ""))
        for name, system, durability in systems:
            config = {"options": {"durability": durability}} if durability else {}
            with settings.cluster(system, nodes, **config) as cluster:
                client = cluster.at("leader")
                client.call("writes", threads=1, seconds=0.2)
                for threads in (1, 64):
                    found = client.call("writes", threads=threads, seconds=settings.pick(1.0, 0.2))
                    yield Row(name, {"nodes": nodes, "threads": threads}, latency(found))
                    yield from complaints(name, found)


BENCHMARK = Benchmark(
    "durability",
    'durability="process" beside "fsync", on the leader',
    measure,
    compare=("p50 ms", "per s"),
    against=("replidict, fsync", "stock"),
)

"""Writes on five nodes; not in the default set, as five processes share few cores."""

from __future__ import annotations

from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark
from benchmarks.suite.writes import by_threads


def measure(settings: Settings) -> Measured:
    for system in settings.with_peers("etcd", "stock"):
        with settings.cluster(system, 5) as cluster:
            yield from by_threads(settings, cluster, system, 5)


BENCHMARK = Benchmark(
    "five",
    "Writes of 100 bytes on five nodes, by threads",
    measure,
    compare=("p50 ms", "per s"),
    against=("etcd", "stock"),
    by_default=False,
)

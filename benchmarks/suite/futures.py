"""Writes from one thread that waits for none of them: futures."""

from __future__ import annotations

from benchmarks.results import Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    seconds = settings.pick(2.0, 0.2)
    for system in settings.with_peers("etcd"):
        with settings.cluster(system) as cluster:
            for place in ("leader", "follower"):
                client = cluster.at(place)
                for under_way in settings.pick((1, 16, 64, 1024), (16,)):
                    found = client.call("submits", under_way=under_way, seconds=seconds)
                    yield Row(system, {"at": place, "under way": under_way}, latency(found))
                    yield from complaints(f"{system}, {under_way} under way", found)


BENCHMARK = Benchmark(
    "futures",
    "Writes of 100 bytes from one thread, by how many are under way",
    measure,
    compare=("p50 ms", "per s"),
    against=("etcd",),
)

"""Writes from coroutines of one event loop, and from threads beside them."""

from __future__ import annotations

from benchmarks.results import Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

THREADS = "64 threads"


def measure(settings: Settings) -> Measured:
    seconds = settings.pick(3.0, 0.2)
    for system in settings.with_peers("etcd"):
        with settings.cluster(system) as cluster:
            for place in ("leader", "follower"):
                client = cluster.at(place)
                client.call("writes", threads=1, seconds=seconds / 4)  # connections, caches and branches warm up
                found = client.call("writes", threads=64, seconds=seconds)
                yield Row(system, {"at": place, "by": THREADS}, latency(found))
                yield from complaints(f"{system}, {THREADS}", found)
                if system != "replidict":
                    continue
                for count in settings.pick((1, 64, 1000), (16,)):
                    found = client.call("coroutines", count=count, seconds=seconds)
                    figures = {**latency(found), "lag p99 ms": found["lag p99 ms"]}
                    yield Row(system, {"at": place, "by": f"{count} coroutines"}, figures)
                    yield from complaints(f"{system}, {count} coroutines", found)


BENCHMARK = Benchmark(
    "aio",
    "Writes of 100 bytes from coroutines of one event loop",
    measure,
    compare=("p50 ms", "per s"),
    against=("etcd",),
)

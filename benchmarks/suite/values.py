"""Writes by the size of the value, on the leader of three nodes."""

from __future__ import annotations

from benchmarks.results import Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

SIZES = {"100 B": 100, "1 KiB": 1024, "64 KiB": 64 * 1024, "1 MiB": 1024 * 1024}


def measure(settings: Settings) -> Measured:
    seconds = settings.pick(1.0, 0.2)
    for system in settings.with_peers("etcd", "stock"):
        with settings.cluster(system) as cluster:
            client = cluster.at("leader")
            for name, size in SIZES.items():
                for threads in settings.pick((1, 16), (1,)):
                    # Few keys: megabytes should load the log and the network, not fill the memory.
                    found = client.call("writes", threads=threads, seconds=seconds, value_bytes=size, keys=32)
                    figures = {**latency(found), "payload MiB/s": found["per s"] * size / 1024**2}
                    yield Row(system, {"value": name, "threads": threads}, figures)
                    yield from complaints(f"{system}, {name}", found)


BENCHMARK = Benchmark(
    "values",
    "Writes by the size of the value, on the leader of three nodes",
    measure,
    compare=("p50 ms", "per s"),
    against=("etcd", "stock"),
)

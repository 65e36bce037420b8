"""`update()` in large pieces: how fast many small entries get in."""

from __future__ import annotations

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    keys = settings.pick(200_000, 5_000)
    for system in settings.with_peers("etcd", "stock"):
        # etcd and stock take about ten times as long per entry: fewer of them tell as much.
        count = keys if system == "replidict" else keys // 5
        for piece in settings.pick((1_000, 10_000), (1_000,)):
            for threads in settings.pick((1, 4), (1,)):
                with settings.cluster(system) as cluster:
                    found = cluster.at("leader").call("load", keys=count, piece=piece, threads=threads)
                figures = {"entries per s": found["entries per s"]}
                yield Row(system, {"entries in one update": piece, "threads": threads}, figures)
    yield Note("entries of a 12-character key and 10 bytes; etcd's update is one transaction, PySyncObj's one command")


BENCHMARK = Benchmark(
    "bulk",
    "Bulk load by update(), on the leader of three nodes",
    measure,
    compare=("entries per s",),
    against=("etcd", "stock"),
)

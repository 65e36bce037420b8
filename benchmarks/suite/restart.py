"""A node starts again: how long until it answers the first local read, by the number of keys."""

from __future__ import annotations

from time import perf_counter

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark

FIRST = "key-00000000"


def measure(settings: Settings) -> Measured:
    for keys in settings.pick((10_000, 100_000, 1_000_000), (2_000,)):
        for system in settings.with_peers("etcd"):
            if system == "etcd" and keys > 100_000:
                continue  # loading etcd takes longer than all the rest here
            with settings.cluster(system, 1) as cluster:
                member = cluster.members[0]
                member.client.call("load", keys=keys, piece=1_000)
                member.kill()
                start = perf_counter()
                member.start(first_key=FIRST)
                greeting = member.client.greeting.result(120)
                figures = {"first read s": perf_counter() - start}
                if system == "replidict":
                    figures |= {"constructor s": greeting["opened"], "of them in replidict s": greeting["first_read"]}
            yield Row(system, {"keys": keys}, figures)
    yield Note(
        "killed with SIGKILL; from starting the process, with Python's own start and imports, to the first value"
    )


BENCHMARK = Benchmark(
    "restart",
    "Restart to the first local read, one node",
    measure,
    compare=("first read s",),
    against=("etcd",),
)

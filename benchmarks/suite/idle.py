"""What a cluster costs that does nothing: CPU of each node."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import ExitStack

from benchmarks.processes import cpu_seconds
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    if sys.platform != "linux":
        yield Note("needs /proc: Linux only")
        return
    seconds = settings.pick(30.0, 1.0)
    with ExitStack() as stack:
        # All at once: a process's CPU time is its own, and idle ones leave each other alone.
        systems = settings.with_peers("etcd", "stock")
        clusters = [stack.enter_context(settings.cluster(system)) for system in systems]
        time.sleep(settings.pick(3.0, 0.3))
        nodes = {cluster.system: [member.node_pid for member in cluster.members] for cluster in clusters}
        before = {pid: cpu_seconds(pid) for pids in nodes.values() for pid in pids}
        start = time.perf_counter()
        time.sleep(seconds)
        took = time.perf_counter() - start
        for system, pids in nodes.items():
            shares = sorted((cpu_seconds(pid) - before[pid]) / took * 100 for pid in pids)
            figures = {"median % of a core": statistics.median(shares), "most % of a core": shares[-1]}
            yield Row(system, {"nodes": 3}, figures)
    yield Note(f"per node, user and system time over {seconds:g} s")


BENCHMARK = Benchmark(
    "idle",
    "CPU of an idle cluster, per node",
    measure,
    compare=("median % of a core",),
    against=("etcd", "stock"),
)

"""Where the time of one write goes, phase by phase, on the leader of three nodes."""

from __future__ import annotations

from benchmarks.anatomy import PHASES
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark


def measure(settings: Settings) -> Measured:
    with settings.cluster() as cluster:
        client = cluster.at("leader")
        client.call("writes", threads=1, seconds=settings.pick(1.0, 0.2))
        found = client.call("anatomy", seconds=settings.pick(3.0, 0.3))
    for name, what in {**PHASES, "whole": "the whole"}.items():
        yield Row("replidict", {"phase": what}, {"p50 us": found[name]})
    yield Note("one thread writes 100 bytes; medians of each phase, which need not add up to the median of the whole")


BENCHMARK = Benchmark("anatomy", "Where the time of one write goes", measure)

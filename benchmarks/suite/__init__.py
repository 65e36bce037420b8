"""The benchmarks, in the order in which they run; each module measures one thing."""

from __future__ import annotations

from benchmarks.suite import (
    aio,
    anatomy,
    bulk,
    catchup,
    durability,
    failover,
    five,
    floors,
    futures,
    hog,
    idle,
    join,
    large,
    locks,
    modes,
    reads,
    restart,
    snapshot,
    transactions,
    values,
    watch,
    writes,
)
from benchmarks.suite.benchmark import Benchmark

BENCHMARKS: tuple[Benchmark, ...] = (
    floors.BENCHMARK,
    writes.BENCHMARK,
    futures.BENCHMARK,
    aio.BENCHMARK,
    watch.BENCHMARK,
    locks.BENCHMARK,
    transactions.BENCHMARK,
    anatomy.BENCHMARK,
    values.BENCHMARK,
    reads.BENCHMARK,
    bulk.BENCHMARK,
    failover.BENCHMARK,
    restart.BENCHMARK,
    catchup.BENCHMARK,
    snapshot.BENCHMARK,
    join.BENCHMARK,
    large.BENCHMARK,
    idle.BENCHMARK,
    durability.BENCHMARK,
    modes.BENCHMARK,
    hog.BENCHMARK,
    five.BENCHMARK,
)

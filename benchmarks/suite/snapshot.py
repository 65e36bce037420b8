"""A follower too far behind for the log gets a snapshot, by the number of keys, while writes go on."""

from __future__ import annotations

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints
from benchmarks.suite.behind import come_back
from benchmarks.suite.benchmark import Benchmark

RETAIN = 200


def measure(settings: Settings) -> Measured:
    entries = settings.pick(10, 3) * RETAIN
    for keys in settings.pick((10_000, 100_000, 1_000_000), (2_000,)):
        with settings.cluster(options={"log_retain": RETAIN}) as cluster:
            cluster.at("leader").call("load", keys=keys, piece=1_000)
            figures, load = come_back(
                cluster,
                lambda clients: clients[0].call("advance", entries=entries, threads=4, seconds=20),
                threads=1,
                seconds=settings.pick(5.0, 0.5),
            )
        if not figures["snapshots"]:
            yield Note(f"with {keys:,} keys no snapshot was needed: the figures are of catching up from the log")
        figures |= {"write p50 ms meanwhile": load["p50 ms"], "p99 ms": load["p99 ms"], "worst ms": load["max ms"]}
        yield Row("replidict", {"keys": keys}, figures)
        yield from complaints("replidict", load)
    yield Note(f"Options(log_retain={RETAIN}), so that a short absence is enough; 1 thread writes on the leader")


BENCHMARK = Benchmark("snapshot", "A follower gets a snapshot", measure)

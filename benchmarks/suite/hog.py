"""Two pure-Python busy loops in the leader's process: does it stay leader, and what do writes take meanwhile?"""

from __future__ import annotations

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

HOGS = 2


def measure(settings: Settings) -> Measured:
    for system in settings.with_peers("stock"):
        seconds = settings.pick(60.0 if system == "replidict" else 15.0, 1.5)
        with settings.cluster(system) as cluster:
            leader = cluster.leader()
            follower = cluster.followers()[0]
            places = {"leader": leader.client, "follower": follower.client}
            for hogs in (0, HOGS):
                # With the hogs, one half at each place: the leader's own clients, and those of a quiet process.
                span = seconds / 2 if hogs else settings.pick(4.0, 0.3)
                before = leader.client.call("status")
                leader.client.call("hog", threads=hogs)
                for place, client in places.items():
                    found = client.call("writes", threads=1, seconds=span)
                    yield Row(system, {"busy loops": hogs, "writes at": place}, latency(found))
                    yield from complaints(system, found)
                leader.client.call("calm")
            after = leader.client.call("status")
            kept = "kept" if after["is_leader"] and after["term"] == before["term"] else "LOST"
            yield Note(
                f"{system}: {HOGS} busy loops for {seconds:g} s: leadership {kept} "
                f"(term {before['term']} before, {after['term']} after)"
            )


BENCHMARK = Benchmark(
    "hog",
    "Busy loops in the leader's process",
    measure,
    compare=("p50 ms", "p99 ms"),
    against=("stock",),
    repeated=False,
)

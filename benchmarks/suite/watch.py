"""Watching: how soon a follower tells what the leader writes, what watchers cost a write, how fast one reads."""

from __future__ import annotations

from benchmarks.results import ANY, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

WATCHERS = (0, 1, 100, 10_000)


def measure(settings: Settings) -> Measured:
    for system in settings.with_peers("etcd", quick=("etcd",)):
        with settings.cluster(system) as cluster:
            leader, follower = cluster.at("leader"), cluster.at("follower")
            told = follower.submit("told")
            follower.call("following")
            leader.call("stamp", seconds=settings.pick(5.0, 0.3))
            case: dict[str, str | int] = {"what": "set on the leader to event on a follower", "watchers": 1}
            yield Row(system, case, latency(told.result(60)))
    with settings.cluster() as cluster:
        leader = cluster.at("leader")
        leader.call("writes", threads=1, seconds=settings.pick(1.0, 0.1))
        for count in WATCHERS:
            leader.call("watchers", count=count)
            found = leader.call("writes", threads=1, seconds=settings.pick(3.0, 0.3))
            yield Row("replidict", {"what": "a write, watchers of other keys", "watchers": count}, latency(found))
            yield from complaints(f"replidict, {count} watchers", found)
        leader.call("watchers", count=0)
        rate = leader.call("drain", keys=settings.pick(50_000, 2_000))
        yield Row("replidict", {"what": "changes through one watcher", "watchers": ANY}, {"per s": rate})


BENCHMARK = Benchmark(
    "watch",
    "Watching: latency, cost, throughput",
    measure,
    compare=("p50 ms", "p99 ms"),
    against=("etcd",),
)

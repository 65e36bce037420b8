"""Watching: how soon a follower tells what the leader writes, what watchers cost a write, how fast one reads, and what
one that never reads costs its node in memory."""

from __future__ import annotations

from benchmarks.results import ANY, Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

WATCHERS = (0, 1, 100, 10_000)
KEYS = 10_000
MiB = 2**20


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
    for count in (0, 1):
        yield from memory(settings, count)
    yield Note("memory: of a follower, before and after the leader wrote four times what its history may take")


def memory(settings: Settings, watchers: int) -> Measured:
    """Of a follower, with so many watchers that never read, while the leader writes the same keys again and again."""
    with settings.cluster() as cluster:
        leader, follower = cluster.at("leader"), cluster.at("follower")
        leader.call("load", keys=KEYS, piece=100, value_bytes=1000)
        follower.call("barrier")
        for _ in range(watchers):
            follower.call("never_read")
        before = follower.call("status")["rss"]
        for _ in range(settings.pick(26, 1)):
            leader.call("load", keys=KEYS, piece=100, value_bytes=1000)
        follower.call("barrier")
        figures = {"MiB before": before / MiB, "MiB after": follower.call("status")["rss"] / MiB}
        yield Row("replidict", {"what": "memory, none of them reads", "watchers": watchers}, figures)


BENCHMARK = Benchmark(
    "watch",
    "Watching: latency, cost, throughput, memory",
    measure,
    compare=("p50 ms", "p99 ms"),
    against=("etcd",),
)

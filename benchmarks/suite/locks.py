"""Locks: from a release to the next holder on another node, and a hundred that wait for one lock."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from benchmarks.measure import summary
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, latency
from benchmarks.suite.benchmark import Benchmark

HAND_OVER = "release to the next holder on another node"


def between(holders: Iterable[list[tuple[float, float]]]) -> list[float]:
    """Seconds from each release to when the next one, in another process, had the lock."""
    turns = sorted((had, released, number) for number, holder in enumerate(holders) for had, released in holder)
    return [then[0] - turn[1] for turn, then in pairwise(turns) if turn[2] != then[2]]


def measure(settings: Settings) -> Measured:
    for system in settings.with_peers("etcd", quick=("etcd",)):
        with settings.cluster(system) as cluster:
            leader = cluster.at("leader")
            leader.call("writes", threads=1, seconds=settings.pick(1.0, 0.1))
            write = latency(leader.call("writes", threads=1, seconds=settings.pick(3.0, 0.3)))
            yield Row(system, {"what": "a write, by the leader", "waiters": 0}, write)
            clients = [leader, *(member.client for member in cluster.followers())][:2]
            rounds = settings.pick(500, 20)
            holding = [client.submit("hand_overs", rounds=rounds, hold=0.01) for client in clients]
            took = between(each.result(240) for each in holding)
            found = summary(took, sum(took))
            figures = {name: found[name] for name in ("p50 ms", "p99 ms", "max ms")}
            figures["p50 / write"] = found["p50 ms"] / write["p50 ms"]
            yield Row(system, {"what": HAND_OVER, "waiters": 1}, figures)
            waiters = settings.pick(100, 10)
            figures = cluster.at("follower").call("queue", waiters=waiters)
            yield Row(system, {"what": "one after the other, all at a follower", "waiters": waiters}, figures)
    yield Note("etcd: its own lock service by gRPC (v3lock), each client with a lease of its own")


BENCHMARK = Benchmark(
    "locks",
    "Locks: hand-over, waiters",
    measure,
    compare=("p50 ms", "p99 ms", "ms a hand-over"),
    against=("etcd",),
)

"""Transactions of two keys beside writes of one: alone, on hot keys, on many; increments of one number."""

from __future__ import annotations

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints, latency
from benchmarks.suite.benchmark import Benchmark

CASES = ((1, (1000,)), (64, (8, 1000, 100_000)))
"""Threads, and how many keys they draw from in one case and the next."""


def measure(settings: Settings) -> Measured:
    seconds = settings.pick(5.0, 0.3)
    for system in settings.with_peers("etcd", quick=("etcd",)):
        with settings.cluster(system) as cluster:
            client = cluster.at("leader")
            client.call("writes", threads=1, seconds=seconds / 4)
            for threads, numbers in CASES:
                found = client.call("writes", threads=threads, seconds=seconds, value_bytes=10)
                yield Row(system, {"what": "set", "threads": threads, "keys": 1000}, latency(found))
                yield from complaints(f"{system}, set, {threads} threads", found)
                for keys in numbers:
                    client.call("clear_numbers", keys=keys)
                    found = client.call("transactions", threads=threads, seconds=seconds, keys=keys)
                    figures = {**latency(found), "conflicts %": found["conflicts %"]}
                    yield Row(system, {"what": "transaction of two keys", "threads": threads, "keys": keys}, figures)
                    yield from complaints(f"{system}, transactions, {threads} threads on {keys} keys", found)
            if system == "replidict":
                found = client.call("increments", threads=64, seconds=seconds)
                yield Row(system, {"what": "increment", "threads": 64, "keys": 1}, latency(found))
                yield from complaints("replidict, increments", found)
    yield Note("the slowest call is the longest that a caller waited, all runs of its body and its pauses included")
    yield Note(
        "etcd: read in one transaction from the member's copy, write in one that compares revisions, again if not"
    )


BENCHMARK = Benchmark(
    "transactions",
    "Transactions of two keys, and increments",
    measure,
    compare=("p50 ms", "max ms", "per s"),
    against=("etcd",),
)

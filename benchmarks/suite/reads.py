"""Reads of a short string: local and linearizable, on the leader and on a follower, and with the leader's lease."""

from __future__ import annotations

from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings, complaints, in_microseconds, latency
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster

LEASE = "replidict, lease_reads=True"


def of(settings: Settings, cluster: Cluster, name: str, kinds: list[tuple[str, int]]) -> Measured:
    """The kinds of read, with so many threads, at each place."""
    seconds = settings.pick(0.7, 0.15)
    for place in ("leader",) if name in (LEASE, "raft") else ("leader", "follower"):
        client = cluster.at(place)
        for kind, threads in kinds:
            found = client.call("reads", threads=threads, seconds=seconds, kind=kind)
            figures = in_microseconds(latency(found))
            if kind == "local" and name == "replidict":
                figures["mean in a loop us"] = client.call("mean_get")
            yield Row(name, {"read": kind, "at": place, "threads": threads}, figures)
            yield from complaints(f"{name}, {kind} reads", found)


def measure(settings: Settings) -> Measured:
    strong = [("linearizable", threads) for threads in (1, 16)]
    kinds = {"raft": strong, "stock": [("local", 1)]}
    for system in settings.with_peers("etcd", "raft", "stock", quick=("etcd", "raft")):
        with settings.cluster(system) as cluster:
            cluster.at("leader").call("fill")
            yield from of(settings, cluster, system, kinds.get(system, [("local", 1), *strong]))
    with settings.cluster(options={"lease_reads": True}) as cluster:
        cluster.at("leader").call("fill")
        yield from of(settings, cluster, LEASE, strong)
    yield Note(
        "stock PySyncObj has no linearizable read; etcd's local read is its serializable one, and hashicorp/raft's "
        "linearizable one is `VerifyLeader` and a look into the leader's map. `p50` of a local read "
        "includes reading the clock (see `floor`), `mean in a loop` does not."
    )


BENCHMARK = Benchmark(
    "reads",
    "Reads of a short string among 1,000 keys, three nodes",
    measure,
    compare=("p50 us",),
    against=("etcd", "raft", "stock"),
)

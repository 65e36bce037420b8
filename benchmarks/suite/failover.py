"""The leader is killed with SIGKILL: how long until a write by way of a survivor is acknowledged. It is stopped for a
while: that must make no difference to who leads."""

from __future__ import annotations

import random
import signal
import statistics
import time
from time import perf_counter

from benchmarks.processes import Failed, wait_until
from benchmarks.results import Note, Row
from benchmarks.settings import Measured, Settings
from benchmarks.suite.benchmark import Benchmark
from benchmarks.systems import Cluster, Member
from replidict import Options

PATIENCE = 30.0


def one_kill(cluster: Cluster) -> float:
    """Seconds from the kill to the acknowledgement; the killed node is back and level afterwards."""
    leader = cluster.leader()
    survivor = cluster.followers()[0]
    time.sleep(random.uniform(0.3, 0.5))  # anywhere between two heartbeats
    since = perf_counter()
    leader.kill()
    found = float(survivor.client.call("first_write", since=since, patience=PATIENCE))
    leader.start()
    leader.client.greeting.result(60)
    wait_until(lambda: level(cluster, leader, survivor), "the killed node is level again")
    return found


def level(cluster: Cluster, back: Member, survivor: Member) -> bool:
    """Whether the node takes part again, so that the next kill finds a whole cluster."""
    try:
        if cluster.system != "stock":
            back.client.call("barrier")
            return True
        here, there = back.client.call("status"), survivor.client.call("status")
    except Failed:
        return False
    return here["leader"] is not None and here["applied_index"] >= there["applied_index"]


def one_pause(cluster: Cluster) -> bool:
    """Stop the leader's process for half of an election timeout; whether there was an election."""
    leader = cluster.leader()
    term = leader.client.call("status")["term"]
    time.sleep(random.uniform(0.3, 0.5))
    leader.signal(signal.SIGSTOP)
    time.sleep(Options().election_timeout / 2)
    leader.signal(signal.SIGCONT)
    survivor = next(member for member in cluster.members if member is not leader)
    survivor.client.call("writes", threads=1, seconds=0.05)  # whoever leads now is known to have a majority
    return bool(survivor.client.call("status")["term"] != term)


def measure(settings: Settings) -> Measured:
    pauses = settings.pick(20, 1)
    with settings.cluster() as cluster:
        elections = [one_pause(cluster) for _ in range(pauses)]
    yield Row("replidict", {"the leader is": "stopped"}, {"pauses": float(pauses), "elections": float(sum(elections))})
    for system in settings.with_peers("etcd", "stock", quick=("etcd",)):
        kills = settings.pick(20 if system == "replidict" else 10, 1)
        times: list[float] = []
        with settings.cluster(system) as cluster:
            for _ in range(kills):
                try:
                    times.append(one_kill(cluster))
                except Failed as error:
                    yield Note(f"{system}: given up after {len(times)} kills: {error}")
                    break
        if times:
            figures = {"median s": statistics.median(times), "worst s": max(times), "best s": min(times)}
            yield Row(system, {"the leader is": "killed"}, figures | {"kills": float(len(times))})
    yield Note("stopped: by SIGSTOP, for half of an election timeout")
    yield Note(
        "from SIGKILL to the acknowledgement of a write that began after it, through a survivor, default timings"
    )


BENCHMARK = Benchmark(
    "failover",
    "Time without a leader, after kill -9; elections, after a pause",
    measure,
    compare=("median s", "worst s"),
    against=("etcd", "stock"),
    repeated=False,
)

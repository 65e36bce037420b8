"""A follower that was away comes back: how long until it is level, while the others go on writing."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from benchmarks.processes import Child
from benchmarks.systems import Cluster


def come_back(
    cluster: Cluster, meanwhile: Callable[[list[Child]], Any], *, threads: int, seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Kill a follower, have the others do something, start it again under load, and wait until it is level.

    Returns the figures, and those of the leader's writes from the restart on, for so many seconds.
    """
    leader = cluster.leader().client
    follower = cluster.followers()[0]
    follower.kill()
    meanwhile([leader, *(member.client for member in cluster.followers())])
    load = leader.submit("writes", threads=threads, seconds=seconds)
    start = perf_counter()
    follower.start()
    opened = follower.client.greeting.result(120)["opened"]
    there = perf_counter()
    # A barrier passes once this node's copy includes all that was acknowledged anywhere before it.
    follower.client.call("barrier")
    level = perf_counter()
    installed = float(follower.client.call("status")["snapshots_installed"])
    figures = {
        "constructor to level s": level - there + opened,
        "process start to level s": level - start,
        "snapshots": installed,
    }
    return figures, load.result(seconds + 60)

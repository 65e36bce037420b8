"""Stories of watchers, told by hand (see `scenarios`)."""

from __future__ import annotations

import random

from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.node.proposals import Write
from replidict.node.waiters import Interest
from tests.simulator.cluster import Cluster
from tests.simulator.scenarios import a_leader, until
from tests.simulator.watchers import LAGS, Watcher


def watchers_are_told_all(cluster: Cluster) -> None:
    """Writes come in bursts, so that many are applied together, some of them to several keys; watchers of all keys and
    of one, quick and slow, are told each of them on every node."""
    cluster.start()
    leader = a_leader(cluster)
    watchers: list[Watcher] = []
    for machine in cluster.machines.values():
        for interest in (Interest(), Interest(prefix="a"), Interest(key=frozenset(("b",)))):
            name = f"story {len(watchers)}"
            watcher = Watcher(name, cluster, interest, LAGS[len(watchers) % 3], random.Random(name))
            watcher.attend(machine)
            watchers.append(watcher)
    assert leader.node is not None
    proposals, values = leader.node.proposals, iter(range(1 << 20))

    def pair(key: str) -> tuple[bytes, bytes]:
        return encode_key(key), encode(f"value {next(values)}")

    for _ in range(10):
        operations: list[cmd.Operation] = [
            cmd.Update([pair("a"), pair("b"), pair("ab"), pair("a")]),
            cmd.Put(*pair("a")),
            cmd.Delete(encode_key("b")),
            cmd.Put(*pair("b")),
            cmd.PopItem(),
        ]
        writes = [Write(operation, 100, lambda: None) for operation in operations]
        for write in writes:
            proposals.submit(write)
        until(cluster, lambda last=writes[-1]: last.result is not None, "all is written")  # type: ignore[misc]
    cluster.loop.run_until(cluster.loop.now + 2)
    for watcher in watchers:
        watcher.settle()

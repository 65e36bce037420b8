"""Stories of large values: each is in a file once, for as long as a row of the log or of the state needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from replidict.storage import large_values, state_table, store
from replidict.testing.simulator.disk import Fault
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator import limits
from tests.simulator.cluster import Cluster
from tests.simulator.scenarios import _around, a_leader, put, until


@contextmanager
def _running(cluster: Cluster, retain_bytes: int) -> Iterator[Machine]:
    """A leader of nodes that store values of 300 bytes apart, and keep so many bytes of their logs."""
    short = [
        (large_values, "LARGE_BYTES", 255), (store, "LOG_RETAIN_BYTES", retain_bytes),
        (state_table, "GATHER_ENTRIES", 2),
    ]  # fmt: skip
    with limits.in_force(short):
        cluster.start()
        first = a_leader(cluster)
        until(cluster, lambda: all(m.disk.format >= 2 for m in cluster.machines.values()), "the level is raised")
        yield first


def _write(cluster: Cluster, machine: Machine, *keys: str, large: bool) -> None:
    for number, key in enumerate(keys):
        write = put(machine, number, f" of {key} at {cluster.loop.now} {'x' * 300 if large else ''}", key)
        until(cluster, lambda write=write: write.answered, "it is written")  # type: ignore[misc]


def _restarted(cluster: Cluster) -> None:
    """Each node loses its power, and reads its disk."""
    for machine in cluster.machines.values():
        machine.crash()
        machine.start()
        a_leader(cluster)


def a_large_value_outlives_its_entry(cluster: Cluster) -> None:
    """The log is compacted, and keys have what its entries brought."""
    with _running(cluster, 1_000) as first:
        _write(cluster, first, "a", "b", large=True)
        _write(cluster, first, *"cdef" * 10, large=False)
        if any(machine.disk.shadow.start.index < 20 for machine in cluster.machines.values()):
            raise Violation("scenario", "the log is as long as it was")
        _restarted(cluster)


def a_large_value_outlives_its_key(cluster: Cluster) -> None:
    """Keys are written again, and the log has what they had before."""
    with _running(cluster, 1 << 20) as first:
        _write(cluster, first, *"abab" * 3, large=True)
        _write(cluster, first, *"cdef" * 3, large=False)
        _restarted(cluster)


def a_large_value_is_cut_off(cluster: Cluster) -> None:
    """A leader that was cut off has large values in entries that another leader's take the place of."""
    with _running(cluster, 1 << 20) as first:
        _write(cluster, first, "a", large=True)
        cluster.network.block(_around(cluster, first.address))
        for number in range(5):
            put(first, number, "x" * 300, f"mine {number}")
        cluster.loop.run_until(cluster.loop.now + 3)
        second = next(
            m for m in cluster.machines.values() if m.node is not None and m.node.engine.is_leader and m is not first
        )
        _write(cluster, second, *"bcdefg", large=True)
        cluster.network.heal()
        a_leader(cluster)
        _restarted(cluster)


def a_node_dies_beside_a_large_value(cluster: Cluster) -> None:
    """A follower's process ends where a transaction begins, one after the other."""
    with _running(cluster, 1_000) as first:
        for skip in range(4):
            victim = next(m for m in cluster.machines.values() if m is not first)
            victim.disk.fault = Fault("begin", skip, crash=True)
            _write(cluster, first, *"abab", large=True)
            until(cluster, lambda victim=victim: victim.node is None, "it dies")  # type: ignore[misc]
            victim.start()
            first = a_leader(cluster)

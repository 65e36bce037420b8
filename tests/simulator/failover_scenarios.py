"""Stories told by hand about leaders whose processes end, or seem to."""

from __future__ import annotations

from dataclasses import replace

from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.cluster import Cluster
from tests.simulator.scenarios import a_leader, leader, until


def _a_leader_without_lease(cluster: Cluster) -> Machine:
    cluster.options = replace(cluster.options, lease_reads=False)
    cluster.start()
    return a_leader(cluster)


def _term(machine: Machine) -> int:
    assert machine.node is not None
    return machine.node.engine.term


def _refusing(cluster: Cluster, machine: Machine, *others: Machine) -> list[frozenset[str]]:
    """Have a device refuse between a machine and others."""
    pairs = [frozenset((machine.address, other.address)) for other in others]
    cluster.network.refuse_between(pairs)
    return pairs


def _leads_on(cluster: Cluster, first: Machine, term: int) -> None:
    if leader(cluster) is not first or _term(first) != term:
        raise Violation("manners", f"{first.address} lived, and leads term {term} no longer")


def a_killed_leader_is_replaced_at_once(cluster: Cluster) -> None:
    """The others need not wait for an election timeout when the leader's process is killed."""
    killed = _a_leader_without_lease(cluster)
    killed.crash()
    until(cluster, lambda: leader(cluster) is not None, "another leader", cluster.options.election_timeout / 2)


def a_leader_without_power_is_missed_in_time(cluster: Cluster) -> None:
    """A machine that loses its power closes no connection and refuses no call: only its silence tells."""
    lost = _a_leader_without_lease(cluster)
    lost.crash(silently=True)
    patience = cluster.options.election_timeout - cluster.options.heartbeat
    cluster.loop.run_until(cluster.loop.now + patience - 0.05)
    if leader(cluster) is not None:
        raise Violation("manners", f"{lost.address} is given up before its election timeout was over")
    until(cluster, lambda: leader(cluster) is not None, "another leader")


def a_leader_that_loses_its_connections_leads_on(cluster: Cluster) -> None:
    """A leader whose connections are closed, again and again, while its process lives and listens."""
    first = _a_leader_without_lease(cluster)
    term = _term(first)
    for _ in range(20):
        for connection in list(cluster.network._connections.values()):
            if first.address in connection.ends:
                cluster.network.cut(connection)
        cluster.loop.run_until(cluster.loop.now + cluster.options.election_timeout)
        _leads_on(cluster, first, term)


def who_alone_is_refused_disturbs_nobody(cluster: Cluster) -> None:
    """To one follower it looks as if the leader's process had ended; the other one hears the leader."""
    first = _a_leader_without_lease(cluster)
    term = _term(first)
    other = next(machine for machine in cluster.machines.values() if machine is not first)
    pairs = _refusing(cluster, first, other)
    cluster.loop.run_until(cluster.loop.now + 5)
    _leads_on(cluster, first, term)
    cluster.network.let_through(pairs)
    cluster.loop.run_until(cluster.loop.now + 5)
    _leads_on(cluster, first, term)


def a_leader_with_a_lease_seems_to_have_ended(cluster: Cluster) -> None:
    """To both followers it looks so, and it lives, and may read under its lease."""
    cluster.start()
    first = a_leader(cluster)
    _refusing(cluster, first, *(machine for machine in cluster.machines.values() if machine is not first))
    until(cluster, lambda: leader(cluster) not in (None, first), "another leader")

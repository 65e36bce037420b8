"""Stories told by hand about nodes of several releases."""

from __future__ import annotations

from replidict.protocol.peer_messages import AppendEntries, Message
from replidict.release import FIRST, THIS
from replidict.testing.simulator.machine import Machine
from tests.simulator.cluster import Cluster
from tests.simulator.scenarios import a_leader, until


def _about_to_rise(cluster: Cluster) -> tuple[Machine, Machine, Machine]:
    """A leader and a follower that know level 2, and one that does not yet."""
    third = next(iter(cluster.machines.values()))
    third.release = FIRST
    cluster.start()
    first = a_leader(cluster)
    if first is third:
        second = next(machine for machine in cluster.machines.values() if machine is not first)
        assert first.node is not None
        first.node.engine.transfer.begin(second.address)
        first.wake()
        until(cluster, lambda: second.node is not None and second.node.engine.is_leader, "the second one leads")
        first = a_leader(cluster)
    second = next(machine for machine in cluster.machines.values() if machine not in (first, third))
    return first, second, third


def _install(machine: Machine, *, older: bool = False) -> None:
    machine.crash()
    machine.release = FIRST if older else THIS
    machine.start()


def _no_entries_to(cluster: Cluster, *deaf: Machine) -> None:
    """Nothing that raises the level reaches these."""
    addresses = {machine.address for machine in deaf}

    def arrives(sender: str, receiver: str, message: Message) -> bool:
        return receiver not in addresses or not (isinstance(message, AppendEntries) and message.entries)

    cluster.network.filter = arrives


def _raised(cluster: Cluster) -> bool:
    return all(m.node is not None and m.node.machine.level == 2 for m in cluster.machines.values())


def an_older_release_is_put_back_too_late(cluster: Cluster) -> None:
    """A node answers that it knows the level, goes down before it hears that it was raised, and comes back with the
    older release: it is given nothing that it can't read, and takes part again when it is upgraded."""
    first, second, third = _about_to_rise(cluster)
    assert first.node is not None and second.node is not None
    _no_entries_to(cluster, third)
    _install(third)
    until(cluster, lambda: first.node.machine.level == second.node.machine.level == 2, "raised on two of three")  # type: ignore[union-attr]
    _install(third, older=True)
    cluster.network.filter = None
    cluster.loop.run_until(cluster.loop.now + 10)
    _install(third)
    until(cluster, lambda: _raised(cluster), "raised on all three")


def the_next_leader_has_an_older_follower(cluster: Cluster) -> None:
    """The entry that raises the level reaches a follower that is connected to a node with an older release, and that
    follower is to lead then: it parts from that node before it could send it the entry."""
    first, second, third = _about_to_rise(cluster)
    assert first.node is not None and second.node is not None
    _no_entries_to(cluster, second, third)
    _install(third)
    until(cluster, lambda: first.disk.format >= 2, "the entry is on the leader's disk")
    _install(third, older=True)
    link = second.node.engine.peers[third.address]
    until(cluster, lambda: link.connected and link.release == FIRST, "the second one is connected to the old third")
    _no_entries_to(cluster, third)
    until(cluster, lambda: second.disk.format >= 2, "the entry is on the second one's disk")
    first.crash()
    cluster.network.filter = None
    cluster.loop.run_until(cluster.loop.now + 10)
    first.start()
    _install(third)
    until(cluster, lambda: _raised(cluster), "raised on all three")


def the_level_rises_when_everybody_knows_it(cluster: Cluster) -> None:
    """As long as one member has an older release the level stays, and then it rises by itself."""
    _, _, third = _about_to_rise(cluster)
    cluster.loop.run_until(cluster.loop.now + 5)
    _install(third)
    until(cluster, lambda: _raised(cluster), "raised on all three")

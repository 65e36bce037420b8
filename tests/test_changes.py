"""Changes of the members on the engine, on a simulated network (thesis chapter 4; E8)."""

from __future__ import annotations

import pytest

from replidict.errors import RemovedError
from replidict.options import Options
from replidict.protocol.peer_messages import AddMember, AppendEntries, MembersAre, Message, RemoveMember
from replidict.testing.simulator.machine import Machine
from tests.simulator.cluster import Cluster
from tests.simulator.member_scenarios import change
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import a_leader, until


def mute(cluster: Cluster) -> None:
    """Nobody gets entries from now on; heartbeats pass."""

    def without_entries(sender: str, receiver: str, message: Message) -> bool:
        return not (isinstance(message, AppendEntries) and message.entries)

    cluster.network.filter = without_entries


def test_one_change_at_a_time() -> None:
    """The next change waits until the last one is committed: two are never in force at once (4.1)."""
    with new_cluster(1, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        assert leader.node is not None
        engine = leader.node.engine
        mute(cluster)
        first, second = change(leader, AddMember("n8:7000", False)), change(leader, AddMember("n9:7000", False))
        until(cluster, lambda: bool(second), "the second one is answered")
        assert second == [("later", "another change of the members is under way")]
        assert first == []
        assert engine.members.learners == {"n8:7000"}
        cluster.network.filter = None
        until(cluster, lambda: bool(first), "the first one is committed", 30)
        again = change(a_leader(cluster), AddMember("n9:7000", False))
        until(cluster, lambda: bool(again), "the second one is made")
        assert first[0][0] in ("done", "lost")
        assert again == [("done", "")]


def test_a_new_leader_changes_nothing_at_first() -> None:
    """A leader makes no change before an entry of its own term is committed (the correction of 2015 to 4.1)."""
    with new_cluster(2, 3, Options()) as cluster:
        cluster.start()
        first = a_leader(cluster)
        assert first.node is not None
        mute(cluster)
        assert first.node.engine.transfer.begin()
        first.wake()
        others = [machine for machine in cluster.machines.values() if machine is not first]

        def new_leader() -> Machine | None:
            return next((m for m in others if m.node is not None and m.node.engine.is_leader), None)

        until(cluster, lambda: new_leader() is not None, "another one leads")
        leader = new_leader()
        assert leader is not None
        said = change(leader, RemoveMember(first.address))
        until(cluster, lambda: bool(said), "it answers")
        assert said == [("later", "the leader has only just been elected")]


def test_a_change_that_is_not_committed_is_in_force_after_a_restart() -> None:
    """A configuration in the log is in force again when the node starts, before it says anything (4.1)."""
    with new_cluster(3, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        assert leader.node is not None
        mute(cluster)
        change(leader, AddMember("n9:7000", False))
        engine = leader.node.engine
        until(cluster, lambda: "n9:7000" in engine.members.learners and not leader.node.store.pending, "it is on disk")  # type: ignore[union-attr]
        leader.crash()
        leader.start()
        assert leader.node is not None
        assert leader.node.engine.commit_index < leader.node.engine.members.index
        assert leader.node.engine.members.learners == {"n9:7000"}


def test_who_has_a_leader_believes_no_stranger() -> None:
    """Of who is in the cluster a node hears from its members, as long as it has a leader; only who was left alone
    listens to a proven caller that is no member (4.1)."""
    with new_cluster(6, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        follower = next(machine for machine in cluster.machines.values() if machine is not leader)
        assert leader.node is not None and follower.node is not None
        lie = MembersAre(1, 10**6, ["n9:7000"], [], {}, [])
        for engine in (leader.node.engine, follower.node.engine):
            before = engine.members
            engine.hear_from_non_member(lie)
            assert engine.members == before
        alone = follower.node.engine
        for machine in cluster.machines.values():
            if machine is not follower:
                machine.crash()
        until(cluster, lambda: not alone.elections.leader_is_alive(), "it has no leader")
        with pytest.raises(RemovedError):
            alone.hear_from_non_member(lie)


def test_a_change_is_taken_back_with_its_entry() -> None:
    """A configuration that another leader's entries replace is in force no longer (4.1)."""
    with new_cluster(4, 3, Options()) as cluster:
        cluster.start()
        first = a_leader(cluster)
        assert first.node is not None
        engine = first.node.engine
        others = [machine for machine in cluster.machines.values() if machine is not first]
        cluster.network.block(
            [(a, b) for o in others for a, b in ((first.address, o.address), (o.address, first.address))]
        )
        said = change(first, AddMember("n9:7000", False))
        until(cluster, lambda: "n9:7000" in engine.members.learners, "it is in force")
        until(cluster, lambda: any(o.node is not None and o.node.engine.is_leader for o in others), "another one leads")
        cluster.network.heal()
        until(cluster, lambda: "n9:7000" not in engine.members.learners, "it is taken back", 30)
        until(cluster, lambda: bool(said), "it is answered")
        assert said[0][0] == "lost"

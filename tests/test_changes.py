"""Changes of the members on the engine, on a simulated network (thesis chapter 4; section 6, E8)."""

from __future__ import annotations

import pytest
from pysyncobj.node import Node

from replidict.options import Options
from replidict.raft.messages import (
    AddMember,
    AppendEntries,
    ChangeReply,
    MembersReply,
    Message,
    RemoveMember,
    Verdict,
)
from tests.simulator.cluster import Cluster, Machine
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import a_leader, until

Said = list[tuple[Verdict, str]]


def change(machine: Machine, wanted: AddMember | RemoveMember) -> Said:
    """Ask a node for a change; the list gets its answer."""
    said: Said = []
    assert machine.node is not None
    engine = machine.node.engine
    machine.node.call(lambda: engine.changes.ask(wanted, lambda *answer: said.append(answer)))
    return said


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


@pytest.mark.parametrize("address", ["garbage", "", "n9", "n9:0", "n9:99999", "n 9:1", "0.0.0.0:7000", "::1:7000"])
def test_what_is_no_address_never_joins(address: str) -> None:
    """A member that nobody could ever call is not let in, whoever asks for it; the answer shows what an address is."""
    with new_cluster(4, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        follower = next(machine for machine in cluster.machines.values() if machine is not leader)
        until(
            cluster, lambda: follower.node is not None and follower.node.engine.leading_peer is not None, "it follows"
        )
        for asked in (leader, follower):
            said = change(asked, AddMember(address, True))
            until(cluster, lambda said=said: bool(said), "it is answered")  # type: ignore[misc]
            assert said[0][0] == "never" and "as in '10.0.0.1:7000'" in said[0][1]
        assert leader.node is not None and leader.node.engine.members.learners == set()


def test_only_who_was_asked_answers() -> None:
    """What another member says of a change, or of how far all are, is no answer to what the leader was asked."""
    with new_cluster(5, 3, Options()) as cluster:
        cluster.start()
        leader = a_leader(cluster)
        asker, other = (machine for machine in cluster.machines.values() if machine is not leader)
        assert asker.node is not None
        engine = asker.node.engine
        until(cluster, lambda: engine.leading_peer is not None, "it follows")
        progress: list[object] = []
        said = change(asker, RemoveMember("n9:7000"))
        asker.node.call(lambda: engine.changes.ask_progress(progress.append))
        cluster.network.filter = lambda sender, receiver, message: not isinstance(message, (ChangeReply, MembersReply))
        until(cluster, lambda: len(engine.changes._asked_progress) == 1, "both are asked")
        for number in (1, 2):
            for answer in (ChangeReply(engine.term, number, "done", ""), MembersReply(engine.term, number, {})):
                engine._SyncObj__onMessageReceived(Node(other.address), answer)
        assert said == [] and progress == []
        for number in (1, 2):
            for answer in (ChangeReply(engine.term, number, "absent", ""), MembersReply(engine.term, number, {})):
                engine._SyncObj__onMessageReceived(Node(leader.address), answer)
        assert said == [("absent", "")] and progress == [{}]

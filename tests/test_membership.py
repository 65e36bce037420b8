"""The life of a cluster: members come, go and take over, from any node (Raft thesis, chapters 3.10 and 4)."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from replidict import NotCommitted, OutcomeUnknown, ReplicatedDict, ReplidictError
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, open_member, wait_for_leader, wait_until


def addresses(nodes: list[Dict]) -> list[str]:
    return [str(node.status().address) for node in nodes]


def open_alone(tmp_path: Path, **arguments: Any) -> Dict:
    return ReplicatedDict(tmp_path / "alone", **arguments)


def follower_of(nodes: list[Dict]) -> Dict:
    leader = leader_of(nodes)
    return next(node for node in nodes if node is not leader)


def test_members_from_any_node(tmp_path: Path) -> None:
    """Every node tells who belongs to the cluster, who leads, and how far the leader knows everybody to be."""
    with cluster(tmp_path) as nodes:
        nodes[0]["key"] = "value"
        leader = leader_of(nodes).status()
        for node in nodes:
            node.barrier()
            members = node.members()
            assert [member.address for member in members] == sorted(addresses(nodes))
            assert all(member.voter for member in members)
            assert [member.address for member in members if member.is_leader] == [leader.address]
            assert all(member.match_index and member.last_contact is not None for member in members)


def test_members_without_a_leader(tmp_path: Path) -> None:
    """A node that is alone still tells who the members are, and that it does not know how far they are."""
    with cluster(tmp_path) as nodes:
        nodes[1].close()
        nodes[2].close()
        wait_until(lambda: nodes[0].status().leader is None, "it knows of no leader")
        members = nodes[0].members()
        assert len(members) == 3
        assert all(member.match_index is None and not member.is_leader for member in members)


def test_hand_over(tmp_path: Path) -> None:
    """Leadership goes to the voter that is named, from whatever node that is asked for, and writes go on."""
    with cluster(tmp_path, timeout=120) as nodes:
        leader_of(nodes)
        wait_for_leader(nodes)
        for asked in nodes:
            for to in addresses(nodes):
                asked.transfer_leadership(to)
                assert asked.status().leader == to
                asked["leader"] = to
        before = leader_of(nodes).status().address
        nodes[0].transfer_leadership()
        assert leader_of(nodes).status().address != before


def test_hand_over_to_nobody(tmp_path: Path) -> None:
    """Handing over to who is no voter, or alone, is refused at once, and says who the voters are."""
    with cluster(tmp_path) as nodes, pytest.raises(ReplidictError, match=r"no voter; the voters are 127\.0\.0\.1"):
        nodes[0].transfer_leadership("127.0.0.1:1")
    with open_alone(tmp_path) as alone, pytest.raises(ReplidictError, match="nobody to hand over to"):
        alone.transfer_leadership()


def test_a_member_leaves(tmp_path: Path) -> None:
    """A removed node stops by itself and says why; those that are left need it for nothing any more."""
    with cluster(tmp_path) as nodes:
        nodes[0]["key"] = "value"
        leaver = follower_of(nodes)
        left = [node for node in nodes if node is not leaver]
        gone = str(leaver.status().address)
        left[0].remove_peer(gone)
        assert gone not in [member.address for member in left[0].members()]
        leader_of(left)["key"] = "another"
        for node in left:
            assert node.get("key", linearizable=True) == "another"
            assert gone not in node.status().peers


def test_nobody_leaves_twice(tmp_path: Path) -> None:
    """Removing who is no member is an error that names the members, not a success."""
    with cluster(tmp_path) as nodes, pytest.raises(ReplidictError, match="is no member; the members are"):
        nodes[0].remove_peer("127.0.0.1:1")


def test_the_leader_leaves(tmp_path: Path) -> None:
    """A leader that is removed, by itself or by another, hands over first; the others go on at once."""
    with cluster(tmp_path) as nodes:
        leader = leader_of(nodes)
        left = [node for node in nodes if node is not leader]
        left[0].remove_peer(str(leader.status().address))
        left[0]["key"] = "value"
        assert [member.address for member in left[1].members()] == sorted(addresses(left))


def test_the_last_voter_stays(tmp_path: Path) -> None:
    """A cluster can't lose its only voter."""
    (address,) = free_addresses(1)
    with open_alone(tmp_path, address=address) as alone:
        with pytest.raises(ReplidictError, match="only voter"):
            alone.remove_peer(address)
        alone["key"] = "value"


def test_no_majority_would_be_left(tmp_path: Path) -> None:
    """With one of three down, another is not removed: the error names the one that is missing, and what force costs.
    Forced, nothing can be written, until that one is back."""
    with cluster(tmp_path) as nodes, ExitStack() as stack:
        where = addresses(nodes)
        leader = leader_of(nodes)
        down, up = (node for node in nodes if node is not leader)
        missing = str(down.status().address)
        down.close()
        wait_until(lambda: missing not in leader.status().connected, "it is known to be gone")
        with pytest.raises(NotCommitted, match=f"no majority: {missing} can't be reached, .* until they are back"):
            leader.remove_peer(str(up.status().address), timeout=5)
        assert len(leader.members()) == 3
        leader["key"] = "still here"
        with pytest.raises(OutcomeUnknown):
            leader.remove_peer(str(up.status().address), force=True, timeout=5)
        with pytest.raises(ReplidictError):
            leader.set("key", "no majority", timeout=1)
        back = stack.enter_context(open_member(tmp_path, where, where.index(missing)))
        back.set("key", "goes on", timeout=60)
        stays = {*addresses([leader, back])}
        assert {member.address for member in back.members()} in (stays, stays | {str(up.status().address)})


def test_changes_without_a_majority(tmp_path: Path) -> None:
    """Without a leader, a change surely is not made, and the error says so in time."""
    with cluster(tmp_path) as nodes:
        nodes[1].close()
        nodes[2].close()
        wait_until(lambda: nodes[0].status().leader is None, "it knows of no leader")
        with pytest.raises(NotCommitted, match="no leader"):
            host_of(nodes[0]).cluster.admit("127.0.0.1:1", "a disk", True, 0.5)


def test_joining_twice(tmp_path: Path) -> None:
    """The same node may ask again; another disk under its address is refused until the old one is removed."""
    with cluster(tmp_path) as nodes:
        (address,) = free_addresses(1)
        first = host_of(nodes[0]).cluster.admit(address, "one disk", False, 30)
        assert host_of(nodes[1]).cluster.admit(address, "one disk", False, 30) == first
        with pytest.raises(ReplidictError, match="a member already, with another disk"):
            host_of(nodes[2]).cluster.admit(address, "another disk", False, 30)
        nodes[2].remove_peer(address)
        assert host_of(nodes[2]).cluster.admit(address, "another disk", False, 30).node_ids[address] == "another disk"


def test_the_configuration_says_who_is_at_an_address(tmp_path: Path) -> None:
    """Whose identity is in the configuration is let in under its address, and no other, whoever was met there before;
    of an address of which it says nothing, it is the one met first."""

    def let_in(node: Dict, node_id: str) -> str | None:
        engine = host_of(node).node.engine
        return host_of(node).node.call(lambda: engine.admit(address, node_id)).result(30)

    with cluster(tmp_path) as nodes:
        (address,) = free_addresses(1)
        assert let_in(nodes[0], "first") is None
        assert "was first and is now second" in str(let_in(nodes[0], "second"))
        host_of(nodes[0]).cluster.admit(address, "second", False, 30)
        for node in nodes:
            node.barrier()
            assert let_in(node, "second") is None
            assert "was second and is now first" in str(let_in(node, "first"))
            assert "was second and is now third" in str(let_in(node, "third"))
            assert let_in(node, "second") is None


def test_members_after_a_restart(tmp_path: Path) -> None:
    """A removed member stays removed when all are started again, whatever peers= says; the difference is logged."""
    with cluster(tmp_path) as nodes:
        where = addresses(nodes)
        leaver = where.index(str(follower_of(nodes).status().address))
        stays = [number for number in range(3) if number != leaver]
        nodes[stays[0]].remove_peer(where[leaver])
        for number in stays:
            nodes[number].barrier()
    with ExitStack() as stack:
        again = [stack.enter_context(open_member(tmp_path, where, number)) for number in stays]
        again[0]["key"] = "value"
        assert [member.address for member in again[1].members()] == sorted(where[number] for number in stays)

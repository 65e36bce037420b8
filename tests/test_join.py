"""How a cluster grows, and how a node that was removed hears of it: real nodes, over their own wire, in every mode."""

from __future__ import annotations

import queue
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict import (
    NotCommitted,
    Options,
    OutcomeUnknown,
    RemovedError,
    ReplicatedDict,
    ReplidictError,
    SecurityError,
    StorageError,
)
from replidict.client.join import enter
from replidict.protocol.peer_messages import Change, Verdict
from replidict.security import Mode
from replidict.storage import state_table
from replidict.storage.directory import Directory
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, open_member, wait_until, wire_of
from tests.wire_support import MODES, SECRET, Certificates, given


def address_of(node: Dict) -> str:
    return str(node.status().address)


def joining(root: Path, address: str, asked: Dict | str, **how: Any) -> Dict:
    """A new node, let in by one that is asked."""
    member = asked if isinstance(asked, str) else address_of(asked)
    return ReplicatedDict(root / address.rpartition(":")[2], address=address, join=member, **{"timeout": 30, **how})


def voters(node: Dict) -> list[str]:
    return [member.address for member in node.members() if member.voter]


def settled(nodes: list[Dict]) -> None:
    """All are voters, and equal."""
    addresses = sorted(address_of(node) for node in nodes)
    wait_until(lambda: voters(nodes[0]) == addresses, "all of them are voters")
    wait_until(lambda: all(len(node.status().peers) == len(nodes) - 1 for node in nodes), "all know all")
    for node in nodes:
        node.barrier(timeout=30)
    assert all(list(node.items()) == list(nodes[0].items()) for node in nodes)


# -- coming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_one_becomes_three(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """One node grows into a cluster of three, let in by whichever member is asked, and then does without the first."""
    how = given(mode, certificates)
    one, two, three = free_addresses(3)
    with ExitStack() as stack:
        nodes = [stack.enter_context(ReplicatedDict[Any, Any](tmp_path / "first", address=one, timeout=30, **how))]
        nodes[0].update(dict.fromkeys(range(1000), "x" * 100))
        for address in (two, three):
            nodes.append(stack.enter_context(joining(tmp_path, address, nodes[-1], **how)))
            nodes[-1][address] = "written where it joined"
            settled(nodes)
        assert len({node.status().cluster_id for node in nodes}) == 1
        nodes[0].close()
        nodes[1]["without"] = "the first"
        assert nodes[2].get("without", linearizable=True) == "the first"
        assert nodes[2].get(three, linearizable=True) == "written where it joined"


def test_joining_by_snapshot_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that joins when the log no longer goes back gets a snapshot, while writes go on, and misses nothing."""
    monkeypatch.setattr(state_table, "GATHER_ENTRIES", 8)
    with cluster(tmp_path, options=Options(log_retain=10)) as nodes, ExitStack() as stack:
        for number in range(40):
            nodes[number % 3].set(number, bytes(40_000), timeout=30)
        wait_until(lambda: all(node.status().log_entries < 30 for node in nodes), "the log is compacted")
        stop, written = threading.Event(), 0

        def write() -> None:
            nonlocal written
            while not stop.is_set():
                nodes[1].set("written", written + 1, timeout=30)
                written += 1

        writer = threading.Thread(target=write)
        writer.start()
        stack.callback(writer.join)
        stack.callback(stop.set)
        (address,) = free_addresses(1)
        new = stack.enter_context(joining(tmp_path, address, nodes[2], options=Options(log_retain=10)))
        wait_until(lambda: address in voters(nodes[0]), "it is a voter")
        assert host_of(new).node.engine.snapshots.installed >= 1
        stop.set()
        writer.join()
        assert new.get("written", linearizable=True, timeout=30) == written > 0
        settled([*nodes, new])


def test_many_join_at_once(tmp_path: Path) -> None:
    """Nodes that join at the same time, by way of different members, are let in one after the other."""
    addresses = free_addresses(4)
    with cluster(tmp_path, 2) as nodes, ExitStack() as stack:
        nodes[0]["key"] = "value"
        found: dict[str, Dict] = {}

        def come(number: int) -> None:
            found[addresses[number]] = joining(tmp_path, addresses[number], nodes[number % 2], timeout=60)

        threads = [threading.Thread(target=come, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for node in found.values():
            stack.enter_context(node)
        assert len(found) == 4
        settled([*nodes, *found.values()])


@pytest.mark.parametrize("mode", MODES)
def test_a_replica_and_its_vote(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """With voter=False a node gets everything, takes writes for the leader, and stays a learner until it is added."""
    how = given(mode, certificates)
    (address,) = free_addresses(1)
    with cluster(tmp_path, 2, **how) as nodes, joining(tmp_path, address, nodes[1], voter=False, **how) as replica:
        replica["by"] = "the replica"
        nodes[0]["by"] = "another"
        assert replica.get("by", linearizable=True) == "another"
        assert replica.status().role == "learner"
        assert address not in voters(nodes[0])
        replica.add_peer(address)
        settled([*nodes, replica])
        with pytest.raises(ReplidictError, match=f"{address} is a voter: remove it first"):
            nodes[0].add_peer(address, voter=False)


def test_room_made_beforehand(tmp_path: Path) -> None:
    """add_peer makes room for a node that is not there yet: it counts for nothing, until it joins."""
    (address,) = free_addresses(1)
    with cluster(tmp_path) as nodes:
        nodes[0].add_peer(address)
        nodes[1].add_peer(address)
        nodes[0]["key"] = "value"
        nodes[2].barrier()
        assert [member.address for member in nodes[2].members() if not member.voter] == [address]
        with joining(tmp_path, address, nodes[2]) as new:
            settled([*nodes, new])


def test_what_can_not_be_added(tmp_path: Path) -> None:
    """Nobody is added off loopback in plain mode, nor to a dict without a network, nor under what is no address."""
    with cluster(tmp_path, 1) as nodes:
        with pytest.raises(SecurityError, match="not a loopback address"):
            nodes[0].add_peer("192.0.2.1:7000")
        with pytest.raises(ValueError, match="must end in a port"):
            nodes[0].add_peer("127.0.0.1")
        assert len(nodes[0].members()) == 1
    with ReplicatedDict[Any, Any](tmp_path / "alone") as alone, pytest.raises(ReplidictError, match="no network"):
        alone.add_peer("127.0.0.1:7000")


def test_another_spelling_of_a_member(tmp_path: Path) -> None:
    """An address that stands for a member is not added beside it: nobody becomes a second member, least of all the node
    that is asked."""
    (address,) = free_addresses(1)
    port = address.rpartition(":")[2]
    spelled = f"localhost:{port}"
    with ReplicatedDict[Any, Any](tmp_path / "d", address=spelled, timeout=30) as node:
        for another in (address, f"[::1]:{port}", f"[0:0:0:0:0:0:0:1]:{port}"):
            with pytest.raises(ReplidictError, match=rf"is the member {spelled}, spelled in another way"):
                node.add_peer(another)
        node.add_peer(spelled.upper())  # the same one: there is nothing to do
        assert [member.address for member in node.members()] == [spelled]


# -- coming again -----------------------------------------------------------------------------------------------------


def test_join_is_for_the_first_time(tmp_path: Path) -> None:
    """A directory that holds a node is opened as it is, whatever join= says."""
    first, second = free_addresses(2)
    with cluster(tmp_path, 1) as nodes:
        with joining(tmp_path, first, nodes[0]) as new:
            settled([nodes[0], new])
            identity = new.status().node_id
        with joining(tmp_path, first, second) as again:
            settled([nodes[0], again])
            assert again.status().node_id == identity


def test_an_interrupted_join(tmp_path: Path) -> None:
    """A node that died after it was let in, and before it knew, is the same one when it tries again."""
    (address,) = free_addresses(1)
    with cluster(tmp_path, 1) as nodes:
        directory = Directory(tmp_path / address.rpartition(":")[2])
        identity = directory.new_identity()
        security = wire_of(nodes[0])._security
        enter(identity, address=address, voter=True, member=address_of(nodes[0]), security=security, seconds=30)
        directory.close()
        with joining(tmp_path, address, nodes[0]) as new:
            settled([nodes[0], new])
            assert new.status().node_id == identity


@pytest.mark.parametrize("left", [b"", b"0123", bytes(32), b"\xff" * 32])
def test_an_identity_that_was_being_written(tmp_path: Path, left: bytes) -> None:
    """A node whose power went before the identity it would join with was on disk takes another one, and joins."""
    (address,) = free_addresses(1)
    directory = tmp_path / address.rpartition(":")[2]
    directory.mkdir()
    (directory / "joining").write_bytes(left)
    with cluster(tmp_path, 1) as nodes, joining(tmp_path, address, nodes[0]) as new:
        settled([nodes[0], new])


def test_a_lost_disk(tmp_path: Path) -> None:
    """A node that lost its disk is refused, and told what to do: remove it, then let it join anew."""
    (address,) = free_addresses(1)
    with cluster(tmp_path) as nodes:
        with joining(tmp_path, address, nodes[0]) as new:
            settled([*nodes, new])
        shutil.rmtree(tmp_path / address.rpartition(":")[2])
        with pytest.raises(ReplidictError, match=r"another disk than this node's: remove it .* then let it join anew"):
            joining(tmp_path, address, nodes[1])
        nodes[1].remove_peer(address, timeout=30)
        with joining(tmp_path, address, nodes[1]) as new:
            settled([*nodes, new])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [0, -1])
def test_a_cluster_is_founded_once(tmp_path: Path, mode: Mode, rank: int, certificates: Certificates) -> None:
    """A founder that lost its disk and is started as for the first time stops, and says how to come back; nobody
    can join what it would have founded, and the others go on."""
    how = given(mode, certificates)
    addresses = sorted(free_addresses(4))
    founder, newcomer = addresses.pop(rank), addresses.pop()
    with ExitStack() as stack:
        nodes = [stack.enter_context(ReplicatedDict[Any, Any](tmp_path / "first", address=founder, timeout=30, **how))]
        for address in addresses:
            nodes.append(stack.enter_context(joining(tmp_path, address, nodes[0], **how)))
        settled(nodes)
        nodes.pop(0).close()
        nodes[0].set("key", "value", timeout=30)
        for _ in range(2):  # to start it again changes nothing
            with ReplicatedDict[Any, Any](tmp_path / "empty", address=founder, **how) as second:
                wait_until(lambda: second.status().role == "stopped", "it has heard of the others")
                with pytest.raises(StorageError, match=f"remove {founder} from the cluster, by way of .* and join="):
                    second["key"] = "another"
                with pytest.raises(NotCommitted, match="could not join"):
                    joining(tmp_path, newcomer, second, timeout=1, **how)
        nodes[0].remove_peer(founder, timeout=30)
        nodes.append(stack.enter_context(joining(tmp_path, founder, nodes[1], **how)))
        settled(nodes)
        assert nodes[-1]["key"] == "value"


@pytest.mark.parametrize("mode", MODES)
def test_who_was_away_stops_nobody(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """A founder that lost its disk and was let in anew, and is now alone, goes on when somebody comes back who was
    removed meanwhile, and knows only the node that was there before."""
    how = given(mode, certificates)
    founder, other, away = sorted(free_addresses(3))
    with ExitStack() as stack:
        first = stack.enter_context(ReplicatedDict[Any, Any](tmp_path / "first", address=founder, timeout=30, **how))
        nodes = [first, *(stack.enter_context(joining(tmp_path, each, first, **how)) for each in (other, away))]
        settled(nodes)
        nodes[2].close()
        nodes[0].remove_peer(away, timeout=30)
        nodes[1].remove_peer(founder, timeout=30)
        nodes[0].close()
        anew = stack.enter_context(joining(tmp_path, founder, nodes[1], **how))
        settled([nodes[1], anew])
        anew.remove_peer(other, timeout=30)
        wait_until(lambda: voters(anew) == [founder], "it is alone")
        denied: list[str] = []
        transport = wire_of(anew)
        hear, transport._denied = transport._denied, denied.append
        with joining(tmp_path, away, anew, **how):
            wait_until(lambda: away in denied, "it has been told so")
        hear(away)
        anew.set("key", "goes on", timeout=30)


def test_a_founder_does_not_join(tmp_path: Path) -> None:
    """A node that comes under the address of a founder that was never seen, or of the leader, is not taken for it."""
    addresses = free_addresses(3)
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses, number)) for number in (0, 1)]
        leader = leader_of(nodes)
        for address in (addresses[2], address_of(leader)):
            with pytest.raises(ReplidictError, match="is a founding member"):
                host_of(nodes[0]).cluster.admit(address, "0" * 32, True, 30)
        with pytest.raises(ReplidictError, match="with peers=, or remove it from the cluster first"):
            joining(tmp_path, addresses[2], nodes[0])
        nodes.append(stack.enter_context(open_member(tmp_path, addresses, 2)))
        settled(nodes)


# -- those who are not let in -----------------------------------------------------------------------------------------


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    """join= needs an address of its own, and no founders; nothing is touched before that is clear."""
    one, two = free_addresses(2)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"join": one}, "join= needs address="),
        ({"join": one, "address": one}, "own address"),
        ({"join": one.replace("127.0.0.1", "localhost"), "address": one}, "own address"),
        ({"join": one, "address": two, "peers": ["127.0.0.1:9"]}, "give one of them"),
        ({"join": "127.0.0.1", "address": two}, "join: bad address"),
        ({"join": 7000, "address": two}, "join: 7000 is not an address"),
        ({"voter": False, "address": two}, "give join="),
        ({"voter": 1, "join": one, "address": two}, "must be True or False"),
    ]
    for arguments, why in wrong:
        with pytest.raises(ValueError, match=why):
            ReplicatedDict(tmp_path / "d", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
def test_other_credentials(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """A node with another secret, or in another mode, is told at once what must be the same."""
    (address,) = free_addresses(1)
    with cluster(tmp_path, 1, **given(mode, certificates)) as nodes:
        for other in MODES:
            if other != mode:
                with pytest.raises(SecurityError, match="give every node the same tls= or secret="):
                    joining(tmp_path, address, nodes[0], **given(other, certificates))
        if mode == "secret":
            with pytest.raises(SecurityError, match="different secrets"):
                joining(tmp_path, address, nodes[0], secret=SECRET + "!")
        assert len(nodes[0].members()) == 1


@contextmanager
def answering(words: bytes | None) -> Iterator[str]:
    """Somebody who is no node, and says the same to all who call, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as calls:

        def answer() -> None:
            try:
                while True:
                    call = calls.enter_context(listener.accept()[0])
                    call.sendall(words or b"")
            except OSError:
                pass

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nobody_to_ask(tmp_path: Path) -> None:
    """Where nobody listens, or says anything, a node tries until its timeout; another protocol is told at once."""
    one, two = free_addresses(2)
    with pytest.raises(NotCommitted, match=rf"could not join the cluster of {two} within 1 s: no connection to {two}"):
        joining(tmp_path, one, two, timeout=1)
    with answering(None) as silent, pytest.raises(NotCommitted, match="nothing heard within"):
        joining(tmp_path, one, silent, timeout=1)
    http = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with answering(http) as other, pytest.raises(ReplidictError, match="is not a replidict node"):
        joining(tmp_path, one, other)


def test_an_address_that_can_not_be_had(tmp_path: Path) -> None:
    """A node whose own address is taken is not let in."""
    with cluster(tmp_path, 1) as nodes, socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ReplidictError, match="another process listens there"):
            joining(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}", nodes[0])
        assert len(nodes[0].members()) == 1


def test_no_quorum_to_let_it_in(tmp_path: Path) -> None:
    """Without a leader nobody is let in, in time; once there is one, the same directory goes on."""
    addresses = free_addresses(4)
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses[:3], number)) for number in range(3)]
        leader_of(nodes)
        for node in nodes[1:]:
            node.close()
        wait_until(lambda: nodes[0].status().leader is None, "it knows of no leader")
        with pytest.raises(NotCommitted, match="no leader could be reached"):
            joining(tmp_path, addresses[3], nodes[0], timeout=1)
        found: list[Dict] = []
        coming = threading.Thread(target=lambda: found.append(joining(tmp_path, addresses[3], nodes[0], timeout=60)))
        coming.start()
        nodes[1:] = [stack.enter_context(open_member(tmp_path, addresses[:3], number)) for number in (1, 2)]
        coming.join()
        nodes.append(stack.enter_context(found[0]))
        settled(nodes)


# -- going ------------------------------------------------------------------------------------------------------------


def gone(node: Dict) -> None:
    """It has stopped by itself, and says so from now on."""
    wait_until(lambda: node.status().role == "removed", "it has heard of it")
    assert not node.status().is_leader
    with pytest.raises(RemovedError, match="was removed from its cluster"):
        node["key"] = "value"
    with pytest.raises(RemovedError):
        node.get("key")
    with pytest.raises(RemovedError):
        node.members()
    node.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [0, 2])
def test_removed_while_it_is_there(tmp_path: Path, mode: Mode, rank: int, certificates: Certificates) -> None:
    """A node that is removed hears of it at once and stops by itself, whether it leads or not; so it stays."""
    with cluster(tmp_path, **given(mode, certificates)) as nodes:
        leader = leader_of(nodes)
        nodes.sort(key=lambda node: (node is not leader, address_of(node)))
        leaver, left = nodes[rank], [node for node in nodes if node is not nodes[rank]]
        address, path = address_of(leaver), host_of(leaver).directory.path
        told: queue.Queue[ReplidictError] = queue.Queue()
        leaver.on_stop(told.put)
        left[0].remove_peer(address, timeout=30)
        assert isinstance(told.get(timeout=30), RemovedError)
        gone(leaver)
        left[1].set("key", "goes on", timeout=30)
        for join in (None, address_of(left[0])):
            with pytest.raises(RemovedError, match="empty directory and join="):
                ReplicatedDict(path, address=address, join=join, **given(mode, certificates))
        settled(left)


def lose_what_is_done(node: Dict) -> None:
    """From now on the node hears no answer that says that a change of the members is made."""
    changes = host_of(node).node.engine.reconfiguration
    ask = changes.ask

    def ask_and_lose(change: Change, answer: Callable[[Verdict, str], None]) -> None:
        ask(change, lambda verdict, why: None if verdict == "done" else answer(verdict, why))

    changes.ask = ask_and_lose  # type: ignore[method-assign]


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_who_removes_itself(tmp_path: Path, leads: bool, answered: bool) -> None:
    """A node can ask for its own removal, the leader too: the call returns, whether it hears first that it is gone or
    that this is done, and then the node stops."""
    with cluster(tmp_path) as nodes:
        leader = leader_of(nodes)
        leaver = leader if leads else next(node for node in nodes if node is not leader)
        left = [node for node in nodes if node is not leaver]
        if not answered:
            lose_what_is_done(leaver)
        leaver.remove_peer(address_of(leaver), timeout=60)
        gone(leaver)
        with pytest.raises(RemovedError):
            leaver.remove_peer(address_of(leaver))
        settled(left)


@pytest.mark.parametrize("removed", [True, False])
def test_stopped_while_it_changes_the_members(tmp_path: Path, removed: bool) -> None:
    """A node that is removed, or closed, before it hears what became of a change, does not say that it was not made."""
    (newcomer,) = free_addresses(1)
    with cluster(tmp_path) as nodes, ThreadPoolExecutor() as threads:
        leader = leader_of(nodes)
        asked = next(node for node in nodes if node is not leader)
        lose_what_is_done(asked)
        change = threads.submit(asked.add_peer, newcomer, timeout=60)
        wait_until(lambda: newcomer in [member.address for member in leader.members()], "it is made")
        if removed:
            leader.remove_peer(address_of(asked), timeout=30)
        else:
            asked.close()
        with pytest.raises(OutcomeUnknown, match=f"adding {newcomer}: this node stopped .* may or may not be made"):
            change.result(60)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", [0, -1])
def test_removed_while_it_was_down(tmp_path: Path, mode: Mode, which: int, certificates: Certificates) -> None:
    """A node that was removed while it was down hears of it when it comes back, disturbs nobody, and stops."""
    how = given(mode, certificates)
    addresses = sorted(free_addresses(3))
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses, number, **how)) for number in range(3)]
        nodes[0].set("key", "value", timeout=30)
        down = nodes.pop(which)
        number = addresses.index(address_of(down))
        down.close()
        nodes[0].remove_peer(addresses[number], timeout=30)
        settled(nodes)
        before = leader_of(nodes).status().term
        gone(open_member(tmp_path, addresses, number, **how))
        assert leader_of(nodes).status().term == before


def test_removed_while_it_was_cut_off(tmp_path: Path) -> None:
    """A node that hears nothing, is removed meanwhile and then hears again, stops; what it was asked is not done."""
    with cluster(tmp_path) as nodes:
        leader = leader_of(nodes)
        away, other = (node for node in nodes if node is not leader)
        heard = threading.Event()
        host_of(away).node.call(heard.wait)  # as if the machine stood still
        try:
            wait_until(lambda: address_of(away) not in leader.status().connected, "it is missed")
            other.remove_peer(address_of(away), timeout=30)
            other.set("key", "goes on", timeout=30)
        finally:
            heard.set()
        gone(away)
        settled([leader, other])


def test_a_removed_replica(tmp_path: Path) -> None:
    """A read replica that is removed stops as well."""
    (address,) = free_addresses(1)
    with cluster(tmp_path, 1) as nodes, joining(tmp_path, address, nodes[0], voter=False) as replica:
        nodes[0]["key"] = "value"
        replica.barrier(timeout=30)
        nodes[0].remove_peer(address)
        gone(replica)


def test_time_to_join_is_bounded(tmp_path: Path) -> None:
    """A node that asks one that hangs gives up in time, and can be closed at once."""
    (address,) = free_addresses(1)
    with cluster(tmp_path, 1) as nodes:
        heard = threading.Event()
        host_of(nodes[0]).node.call(heard.wait)
        begun = time.monotonic()
        try:
            with pytest.raises(ReplidictError, match="could not join"):
                joining(tmp_path, address, nodes[0], timeout=1)
        finally:
            heard.set()
        assert time.monotonic() - begun < 30

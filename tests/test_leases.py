"""Leases on real nodes: kept alive by the node's own thread, ended once, and known to be lost when they are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replidict import ClosedError, LeaseLost, NotCommitted, ReplicatedDict
from tests.clusters import Dict, cluster, leader_of, wait_until


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dict]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


def test_a_lease_lives_as_long_as_its_process(nodes: list[Dict]) -> None:
    """A lease is renewed for many times its ttl, also while the program does nothing but compute; `remaining` is never
    above nine tenths of its ttl."""
    d = nodes[0]
    with d.lease(4) as lease:
        d.set("here", 1, lease=lease)
        until = time.monotonic() + 6
        while time.monotonic() < until:  # a busy loop
            assert lease.remaining <= 0.9 * 4
        lease.check()
        assert d.get("here", linearizable=True) == 1
        assert d.ttl("here") is not None


def test_renewing_is_one_command_for_all(nodes: list[Dict]) -> None:
    """However many leases there are, a renewal is one command, with a `Tick` before it; it changes no revision."""
    d = nodes[1]
    leases = [d.lease(60 + number) for number in range(20)]
    revision = d.revision
    node = d._host.node
    renewed = []

    def renew() -> None:
        held = list(node.leases._held.values())
        renewed.append(len(held))
        node.leases._renew(held, node.engine.clock())

    d.barrier()
    before = node.engine.last_applied
    node.call(renew).result()
    wait_until(lambda: not node.leases._renewing, "it is acknowledged")
    assert renewed == [20]
    assert node.engine.last_applied <= before + 2
    assert d.revision == revision
    for lease in leases:
        lease.revoke()


def test_leaving_a_lease_takes_its_keys_along(nodes: list[Dict]) -> None:
    """The end of a `with` block, or `revoke`, removes all keys of the lease as one change; then `check` raises."""
    d = nodes[0]
    with d.lease() as lease:
        for number in range(5):
            d.set(f"leased {number}", number, lease=lease)
        d.set("leased 0", 0)  # not any more
        before = d.revision
    assert [key for key in d if str(key).startswith("leased")] == ["leased 0"]
    assert d.revision == before + 1
    assert lease.lost.is_set()
    assert lease.remaining == 0
    with pytest.raises(LeaseLost, match="revoked"):
        lease.check()
    with pytest.raises(LeaseLost):
        d.set("late", 1, lease=lease)
    with pytest.raises(NotCommitted):
        d.set("late", 1, lease=lease)
    assert "late" not in d
    lease.revoke()  # again: no harm


def test_a_lease_is_lost_when_nobody_can_be_reached(tmp_path: Path) -> None:
    """Cut off from all others, a holder sees its lease as lost before its ttl is over, without anybody's help; and what
    is lost stays lost."""
    with cluster(tmp_path, 3) as (one, two, three):
        lease = one.lease(1.0)
        begun = time.monotonic()
        two.close()
        three.close()
        assert lease.lost.wait(60)
        assert time.monotonic() - begun < 60
        with pytest.raises(LeaseLost, match="no renewal was acknowledged in time"):
            lease.check()


def test_a_lease_ends_in_the_cluster_when_its_node_is_gone(tmp_path: Path) -> None:
    """What is attached to a lease goes when its process is gone, and not before its ttl is over."""
    with cluster(tmp_path, 3) as nodes:
        leader = leader_of(nodes)
        gone = next(node for node in nodes if node is not leader)
        lease = gone.lease(1.0)
        gone.set("service", "here", lease=lease)
        leader.barrier()
        node = gone._host.node
        node.call(lambda: setattr(node.leases, "step", lambda: None)).result()  # as a process that was killed
        begun = time.monotonic()
        assert leader["service"] == "here"
        wait_until(lambda: "service" not in leader, "the key is gone")
        assert time.monotonic() - begun > 0.3
        wait_until(lease.lost.is_set, "the log says so")
        with pytest.raises(LeaseLost, match="says the log"):
            lease.check()


def test_closing_the_dict_gives_leases_back(tmp_path: Path) -> None:
    """`close` ends the leases of this process at once, whatever their ttl; who holds one sees it as lost."""
    with cluster(tmp_path, 3) as (one, two, _):
        lease = one.lease(600)
        one.set("service", 1, lease=lease)
        assert one.lock("x", ttl=600).acquire()
        lock = one.lock("y", ttl=600)
        assert lock.acquire()
        held = lock.held
        assert held is not None
        one.close()
        two.barrier()
        assert "service" not in two
        assert two.locks() == ()
        assert two.status().leases == 0
        assert lease.lost.is_set()
        assert held.lost.is_set()
        with pytest.raises(LeaseLost, match="closed"):
            lease.check()
        with pytest.raises(ClosedError):
            one.lease()


def test_after_a_fork_leases_are_the_parents(tmp_path: Path) -> None:
    """A child of `fork` has no lease and no lock: `check` raises there, and the parent keeps both."""
    with ReplicatedDict[str, int](tmp_path / "n") as d, d.lease() as lease, d.lock("x") as held:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            said = []
            for each in (lease, held):
                try:
                    each.check()
                except LeaseLost as error:
                    said.append("forked" in str(error) and each.lost.is_set())
            os.write(write, str(said).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"[True, True]"
        os.close(read)
        os.close(write)
        lease.check()
        held.check()


def test_a_renewal_counts_from_when_it_was_sent(tmp_path: Path) -> None:
    """An answer that takes long does not make a lease live longer: what counts is when the renewal was sent."""
    with ReplicatedDict[str, int](tmp_path / "n") as d:
        lease = d.lease(100)
        node = d._host.node
        entered, leave = threading.Event(), threading.Event()

        def hold_up() -> None:
            node.leases._renew(list(node.leases._held.values()), node.engine.clock())
            entered.set()
            leave.wait()

        sent = time.monotonic()
        node.call(hold_up)
        entered.wait()
        while time.monotonic() < sent + 0.5:
            time.sleep(0.01)
        leave.set()
        wait_until(lambda: not node.leases._renewing, "it is acknowledged")
        assert lease.remaining <= 90 - 0.5 + 0.01

"""Tests as a user of replidict writes them, of a small program that keeps orders in a `ReplicatedDict`.

`test_testing.py` copies this file to an empty directory and runs it there, as a user would. Nothing but replidict and
pytest is imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from replidict import LeaseLost, LockLost, NotCommitted, OutcomeUnknown, ReplicatedDict
from replidict.testing import Cluster, fail_next

Dict = ReplicatedDict[str, Any]


# -- the program -------------------------------------------------------------------------------------------------------


def place(d: Dict, order: str) -> bool:
    """Place an order once, however often this is called. Returns whether it was new."""
    try:
        return d.add(f"order/{order}", "placed")
    except OutcomeUnknown:
        return d.add(f"order/{order}", "placed")


def remember(d: Dict, user: str) -> None:
    """Remember who is logged in, for half an hour."""
    d.set(f"session/{user}", True, ttl=1800)


def ship(d: Dict, order: str, fence: Any) -> None:
    """Ship an order, while the lock of the shipping department is held."""
    d.set(f"order/{order}", "shipped", fence=fence)


# -- its tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor stays behind."""
    threads, descriptors = set(threading.enumerate()), os.listdir("/dev/fd")
    yield
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/dev/fd")) <= len(descriptors)


def test_an_order_is_placed_once(replidict_dict: Dict) -> None:
    assert place(replidict_dict, "1")
    assert not place(replidict_dict, "1")


def test_an_order_that_nobody_knows_of_is_placed_once(replidict_dict: Dict) -> None:
    fail_next(replidict_dict, OutcomeUnknown, applied=True)
    assert not place(replidict_dict, "1")  # it was placed by the first attempt
    fail_next(replidict_dict, OutcomeUnknown, applied=False)
    assert place(replidict_dict, "2")
    assert set(replidict_dict) == {"order/1", "order/2"}


def test_no_order_without_an_answer(replidict_dict: Dict) -> None:
    fail_next(replidict_dict, NotCommitted)
    with pytest.raises(NotCommitted):
        place(replidict_dict, "1")
    assert len(replidict_dict) == 0
    assert place(replidict_dict, "1")


def test_orders_survive_the_leader(replidict_cluster: Cluster) -> None:
    leader = replidict_cluster.leader()
    assert leader is not None
    assert place(replidict_cluster[leader], "1")
    replidict_cluster.kill(leader)
    other = replidict_cluster.leader()
    assert other not in (None, leader)
    assert not place(replidict_cluster[other], "1")
    assert place(replidict_cluster[other], "2")
    replidict_cluster.restart(leader)
    assert set(replidict_cluster[leader]) == {"order/1", "order/2"}


def test_a_minority_takes_no_orders(replidict_cluster: Cluster) -> None:
    replidict_cluster.partition({0}, {1, 2})
    with pytest.raises(NotCommitted):
        replidict_cluster[0].set("order/1", "placed", timeout=0.1)
    assert place(replidict_cluster[1], "2")
    assert "order/2" not in replidict_cluster[0]
    replidict_cluster.heal()
    assert set(replidict_cluster[0]) == {"order/2"}


def test_sessions_end_after_half_an_hour(replidict_cluster: Cluster) -> None:
    remember(replidict_cluster[0], "ada")
    replidict_cluster.clock.advance(1700)
    assert "session/ada" in replidict_cluster[1]
    replidict_cluster.clock.advance(101)
    assert all("session/ada" not in d for d in replidict_cluster)


def test_who_lost_the_lock_ships_nothing(replidict_cluster: Cluster) -> None:
    place(replidict_cluster[0], "1")
    with pytest.raises(LockLost), replidict_cluster[1].lock("shipping", ttl=10) as held:
        replidict_cluster.pause(1)
        replidict_cluster.clock.advance(11)
        with replidict_cluster[0].lock("shipping") as later:
            assert later.token > held.token
        replidict_cluster.resume(1)
        assert held.lost.is_set()
        ship(replidict_cluster[1], "1", held)
    assert replidict_cluster[1]["order/1"] == "placed"


def test_a_stolen_lock_is_noticed(replidict_cluster: Cluster) -> None:
    lock = replidict_cluster[0].lock("shipping")
    assert lock.acquire()
    assert lock.held is not None
    assert replidict_cluster.steal_lock("shipping") == 1
    assert lock.held is None or lock.held.lost.is_set()
    with pytest.raises(LockLost):
        lock.release()


def test_a_worker_that_died_is_no_longer_listed(replidict_cluster: Cluster) -> None:
    lease = replidict_cluster[2].lease(ttl=10)
    replidict_cluster[2].set("workers/2", "here", lease=lease)
    replidict_cluster.kill(2)
    assert "workers/2" in replidict_cluster[0]
    replidict_cluster.clock.advance(11)
    assert "workers/2" not in replidict_cluster[0]
    with pytest.raises(LeaseLost):
        lease.check()


def test_five_nodes_bear_the_loss_of_two() -> None:
    with Cluster(5) as cluster:
        cluster.kill(0)
        cluster.kill(1)
        assert place(cluster[4], "1")
        cluster.kill(2)
        assert cluster.leader() is None
        cluster.restart(0)
        assert cluster[0]["order/1"] == "placed"

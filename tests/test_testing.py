"""`replidict.testing`: what a test does to a cluster has happened when the call returns, and nothing else has."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replidict import ClosedError, LockLost, NotCommitted, OutcomeUnknown, ReadTimeout, ReplidictError
from replidict.testing import Cluster, fail_next, steal_lock
from tests.clusters import Dict, wait_until
from tests.test_docs import python_blocks

USER_TESTS = Path(__file__).with_name("user_tests.py")
PAGE = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()


@pytest.fixture
def c() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def leader_and_others(c: Cluster) -> tuple[int, list[int]]:
    leader = c.leader()
    assert leader is not None
    return leader, [i for i in range(len(c)) if i != leader]


@pytest.mark.parametrize("processes", [0, 2])
def test_the_tests_of_a_user_pass(tmp_path: Path, processes: int) -> None:
    """The tests of a user's, and those on the page, run in a directory of their own, in one process or by pytest-xdist
    in two at once, with the fixtures that pytest finds by itself, and leave no file behind."""
    here, temporary = tmp_path / "project", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    shutil.copy(USER_TESTS, here / "test_shop.py")
    (here / "test_page.py").write_text("\n".join(each for _, each in python_blocks(PAGE) if "def test_" in each))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(here)]
    command += ["-n", str(processes)] if processes else ["-p", "no:xdist"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONWARN"))}
    ran = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "base"), "test_shop.py", "test_page.py"],
        cwd=here,
        env={**kept, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert re.search(r"^13 passed", ran.stdout, re.MULTILINE), ran.stdout + ran.stderr
    assert ran.returncode == 0
    assert sorted(os.listdir(here)) == ["test_page.py", "test_shop.py"]
    assert os.listdir(temporary) == []


def test_nodes_are_numbered(c: Cluster) -> None:
    """A cluster has as many dicts as nodes, in order, and says which one leads."""
    assert len(c) == 3
    assert list(c) == [c[0], c[1], c[2]]
    leader, _ = leader_and_others(c)
    assert c[leader].status().is_leader
    assert f"3 nodes, leader: {leader}" in repr(c)


def test_a_killed_node_says_goodbye_to_nobody(c: Cluster) -> None:
    """Its dict is closed, and its leases go on until they run out. Restarted, it is another dict, with what was written
    meanwhile."""
    _, (i, other) = leader_and_others(c)
    dead = c[i]
    lock = dead.lock("x", ttl=60)
    assert lock.acquire()
    c.kill(i)
    with pytest.raises(ClosedError):
        dead["k"]
    with pytest.raises(ValueError, match="restart"):
        c.kill(i)
    assert len(c[other].locks()) == 1
    c[other]["k"] = 1
    c.restart(i)
    assert c[i] is not dead
    assert c[i]["k"] == 1
    with pytest.raises(ValueError, match="kill"):
        c.restart(i)
    c[i].close()
    c.restart(i)
    assert c[i]["k"] == 1
    c.clock.advance(61)
    assert c[i].locks() == ()


def test_a_cut_network_lets_nothing_through(c: Cluster) -> None:
    """Whoever is cut off from the majority has no leader and takes no write; the others go on. Then the cut is
    elsewhere, then nobody reaches anybody, then it is healed and all are equal."""
    old, others = leader_and_others(c)
    c.partition({old}, set(others))
    assert c.leader() in others
    with pytest.raises((NotCommitted, OutcomeUnknown)):
        c[old].set("lost", 1, timeout=0.05)
    with pytest.raises(ReadTimeout):
        c[old].barrier(timeout=0.05)
    c[others[0]]["k"] = 1
    assert "k" not in c[old]
    assert c[old].status().connected == ()
    c.partition([old, others[0]])
    assert c.leader() in (old, others[0])
    assert c[old]["k"] == 1
    assert c[others[1]].status().connected == ()
    c.partition()
    assert c.leader() is None
    c.heal()
    assert c.leader() is not None
    assert c[0] == c[1] == c[2]
    for wrong in (({0}, {0, 1}), ({3},)):
        with pytest.raises(ValueError, match="node"):
            c.partition(*wrong)


def test_a_paused_node_stands_still(c: Cluster) -> None:
    """The others have another leader; its own dict answers plain reads as before. Its clock stands still: a lock of its
    process is not lost there until it goes on, though another one has it."""
    old, others = leader_and_others(c)
    c[old]["k"] = 1
    lock = c[old].lock("x", ttl=10)
    assert lock.acquire()
    held = lock.held
    assert held is not None
    c.pause(old)
    with pytest.raises(ValueError, match="paused"):
        c.pause(old)
    assert c.leader() in others
    c[others[0]]["k"] = 2
    c.clock.advance(11)
    assert c[old]["k"] == 1
    held.check()
    with c[others[0]].lock("x") as later:
        assert later.token > held.token
        c.resume(old)
        with pytest.raises(LockLost):
            held.check()
        assert c[old]["k"] == 2
    with pytest.raises(ValueError, match="paused"):
        c.resume(old)
    c.pause(old)
    c.kill(old)
    c.restart(old)
    assert c[old]["k"] == 2
    c.pause(old)  # and so it is when the cluster ends


def test_time_passes_at_once(c: Cluster) -> None:
    """Keys, leases and locks that end within it have ended on all nodes, as expired; those that do not have so much
    less left. The leader goes on to lead."""
    d = c[0]
    term = d.status().term
    leases = [c[i].lease(ttl=20) for i in range(3)]
    d.set("leased", 1, lease=leases[1])
    d.set("short", 1, ttl=15)
    d.set("long", 1, ttl=100)
    c[2].barrier()
    watch = c[2].watch()
    c.clock.advance(14)
    assert set(d) == {"leased", "short", "long"}
    c.clock.advance(1)
    assert all(set(each) == {"leased", "long"} for each in c)
    for lease in leases:
        lease.check()  # it was renewed when the clock stood at 14
    c.clock.advance(21)
    assert all(set(each) == {"long"} for each in c)
    assert all(lease.lost.is_set() for lease in leases)
    assert 60 < (c[1].ttl("long") or 0) < 65
    changes = [watch.next(timeout=60), watch.next(timeout=60)]
    assert [[(e.kind, e.key) for e in change.events] for change in changes if change] == [
        [("expire", "short")],
        [("expire", "leased")],
    ]
    watch.close()
    assert d.status().term == term
    for wrong in (-1, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="seconds="):
            c.clock.advance(wrong)  # type: ignore[arg-type]


def test_who_was_cut_off_loses_its_lease_too(c: Cluster) -> None:
    """The time of a process that reaches nobody passes as well."""
    c.partition({0, 1})
    c.heal()
    lease = c[2].lease(ttl=10)
    c.partition({0, 1})
    c.clock.advance(5)
    lease.check()
    c.clock.advance(5)
    assert lease.lost.is_set()


def test_calls_run_out_of_time_at_once(c: Cluster) -> None:
    """Writes, linearizable reads, locks and watches that wait for longer than is left give up when the clock is
    advanced, and not when it is advanced by less."""
    c.partition()
    d = c[0]
    watch = d.watch()
    calls: list[Callable[[], object]] = [
        lambda: d.set("k", 1, timeout=500),
        lambda: d.barrier(timeout=500),
        lambda: d.lock("x").acquire(timeout=500),
        lambda: watch.next(timeout=500),
    ]
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(each) for each in calls]
        proposals = d._host.node.proposals
        wait_until(lambda: len(proposals._queue) >= 3, "they wait")
        c.clock.advance(400)
        assert not any(each.done() for each in done)
        c.clock.advance(200)
        assert isinstance(done[0].exception(60), NotCommitted)
        assert isinstance(done[1].exception(60), ReadTimeout)
        assert done[2].result(60) is False
        assert done[3].result(60) is None
    watch.close()


def test_the_next_write_fails(c: Cluster) -> None:
    """As it was asked for: not committed, or nobody knows, and then it is applied or is not. Only one write fails, on
    whichever node comes first, and neither leases nor locks are touched."""
    c.fail_next(NotCommitted)
    with c[1].lock("x"), c[2].lease():
        with pytest.raises(NotCommitted, match="fail_next"):
            c[0]["k"] = 1
        c[1]["k"] = 2
    c.fail_next(OutcomeUnknown, applied=True, node=2)
    c[1]["k"] = 3
    with pytest.raises(OutcomeUnknown):
        c[2].increment("k")
    assert c[2]["k"] == 4
    fail_next(c[0], OutcomeUnknown("by lightning"))
    assert isinstance(c[0].submit("k", 5).exception(), OutcomeUnknown)
    c[0].barrier()
    with c[0].transaction() as t:
        t["k"] = t["k"] + 1
    assert c[0].get("k", linearizable=True) == 5
    fail_next(c[0], NotCommitted)
    with pytest.raises(NotCommitted), c[0].transaction() as t:
        t["k"] = 0
    for error, applied in ((NotCommitted, True), (ValueError, False), (LookupError(), False)):
        with pytest.raises(ValueError, match=r"applied=|error="):
            fail_next(c[0], error, applied=applied)  # type: ignore[arg-type]


def test_a_lock_is_stolen(c: Cluster) -> None:
    """All holders hear of it at once, and the next in line has it."""
    shared = [c[i].lock("x", shared=True) for i in range(2)]
    assert all(lock.acquire() for lock in shared)
    assert c.steal_lock("x") == 2
    for lock in shared:
        with pytest.raises(LockLost):
            lock.release()
    assert steal_lock(c[0], "x") == 0
    c.partition()
    with pytest.raises(ReplidictError, match="no leader"):
        c.steal_lock("x")


def test_one_node_is_a_cluster_too() -> None:
    """With one node all works that makes sense. Its port is kept for it while it is down."""
    with Cluster(1) as c:
        assert c.leader() == 0
        c[0].set("k", 1, ttl=5)
        c[0]["permanent"] = 1
        c.clock.advance(6)
        assert set(c[0]) == {"permanent"}
        host, port = str(c[0].status().address).split(":")
        c.kill(0)
        assert c.leader() is None
        with socket.socket() as other, pytest.raises(OSError):
            other.bind((host, int(port)))
        c.restart(0)
        assert set(c[0]) == {"permanent"}
    assert c.leader() is None
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="n="):
            Cluster(wrong)  # type: ignore[arg-type]


def test_a_port_that_is_taken_costs_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process takes a port between the search and the start, the cluster is founded anew elsewhere."""
    from replidict.testing import cluster, ports

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answers = [[*ports.free_addresses(2), f"127.0.0.1:{taken.getsockname()[1]}"], ports.free_addresses(3)]
        monkeypatch.setattr(cluster, "free_addresses", lambda count: answers.pop(0))
        with Cluster(3) as c:
            assert c.leader() is not None
    assert answers == []


def test_threads_may_use_it_meanwhile(c: Cluster) -> None:
    """Writers on every node survive kills, cuts and pauses of others: what was acknowledged is there at the end."""
    acknowledged: list[int] = []
    stop = threading.Event()

    def write(d: Dict) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                d["mine", number] = number
            except ReplidictError:
                continue
            acknowledged.append(number)

    _, (i, j) = leader_and_others(c)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, c[i])
        c.kill(j)
        c.restart(j)
        c.pause(j)
        c.resume(j)
        c.partition({i, 3 - i - j})
        c.heal()
        stop.set()
        writing.result(60)
    assert acknowledged
    assert all(c[j].get(("mine", number), linearizable=True) == number for number in acknowledged[-100:])

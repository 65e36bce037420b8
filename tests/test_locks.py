"""Locks, semaphores and leaders on real nodes: one holder, in turn, and whoever lost one hears of it (promise 12)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from replidict import ClosedError, Held, LockLost, LockTimeout, NotCommitted, Options, ReplicatedDict, ReplidictError
from replidict.testing import Cluster
from tests.clusters import Dict, cluster, wait_until
from tests.line_interrupts import interrupted


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Dict]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        for node in nodes:
            node.submit("thread", 0).result()  # the thread for futures is there as long as the node
        yield nodes


@pytest.fixture(scope="module")
def d(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path_factory.mktemp("alone") / "n") as opened:
        yield opened


def waiters(d: Dict, name: str) -> int:
    return max((each.waiters for each in d.locks() if each.name == name), default=0)


def test_whoever_is_interrupted_anywhere_leaves_no_lock_behind(tmp_path: Path) -> None:
    """Ctrl-C at any line of taking and giving back a lock, whose lease is used elsewhere, too: nobody holds it."""
    with ReplicatedDict[str, int](tmp_path, options=Options(durability="process")) as d, d.lock("another"):

        def work() -> None:
            with d.lock("report"):
                pass

        points = 0
        while interrupted(points, work):
            wait_until(
                lambda: [each.name for each in d.locks()] == ["another"], f"nobody holds it, after line {points}"
            )
            points += 1
        assert points > 50


def test_one_holder_at_a_time(nodes: list[Dict]) -> None:
    """Threads of three nodes that count up with a read and a write, each under the lock, lose no count."""
    nodes[0]["count"] = 0

    def work(number: int) -> list[int]:
        d = nodes[number % 3]
        tokens = []
        for _ in range(8):
            with d.lock("counter") as held:
                d.barrier()
                d.set("count", d["count"] + 1, fence=held)
                tokens.append(held.token)
        return tokens

    with ThreadPoolExecutor(6) as pool:
        tokens = list(pool.map(work, range(6)))
    nodes[0].barrier()
    assert nodes[0]["count"] == 48
    assert len({token for each in tokens for token in each}) == 48
    assert all(each == sorted(each) for each in tokens)
    assert nodes[0].locks() == ()


def test_first_come_first_served(nodes: list[Dict]) -> None:
    """Waiters get the lock in the order in which they came, on whichever node; each hand-over is one command."""
    order: list[int] = []
    first = nodes[0].lock("line")
    assert first.acquire()

    def wait(number: int) -> None:
        with nodes[number % 3].lock("line"):
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(9)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda n=number: waiters(nodes[0], "line") == n + 1, "it is in line")  # type: ignore[misc]
    before = nodes[0].status().applied_index
    first.release()
    for thread in threads:
        thread.join()
    assert order == list(range(9))
    nodes[0].barrier()
    assert nodes[0].status().applied_index - before <= 10 + 2  # ten releases; nobody asked twice


def test_readers_share(nodes: list[Dict]) -> None:
    """Several hold a shared lock, on several nodes; a writer waits for all of them, later readers for it."""
    one, two = nodes[0].lock("rw", shared=True), nodes[1].lock("rw", shared=True)
    assert one.acquire()
    assert two.acquire(timeout=60)
    assert not nodes[2].lock("rw").acquire(blocking=False)
    writer = nodes[2].lock("rw")
    with ThreadPoolExecutor(1) as pool:
        wrote = pool.submit(writer.acquire, timeout=60)
        wait_until(lambda: waiters(nodes[0], "rw") == 1, "the writer waits")
        assert not nodes[0].lock("rw", shared=True).acquire(blocking=False)
        assert len(nodes[0].locks()) == 2
        one.release()
        two.release()
        assert wrote.result(60)
    writer.release()


def test_a_lock_has_a_face(d: Dict) -> None:
    """`locks` tells name, holder, info, token, since and waiters; `locked`, `held` and `repr` tell the same."""
    lock = d.lock("face", info="nightly")
    assert not lock.locked()
    assert lock.held is None
    begun = time.time()
    with lock as held:
        assert lock.locked()
        assert d.lock("face").locked()
        assert lock.held is held
        (info,) = d.locks()
        assert (info.name, info.info, info.token, info.waiters) == ("face", "nightly", held.token, 0)
        assert "process" in info.holder
        assert abs(info.since - begun) < 60
        assert str(held.token) in repr(held)
        assert d.status().locks == 1
    assert d.locks() == ()
    with pytest.raises(RuntimeError):
        lock.release()
    with pytest.raises(LockLost, match="released"):
        held.check()


def test_with_never_enters_without_the_lock(tmp_path: Path) -> None:
    """When the lock is not obtained within the dict's timeout, `with` raises `LockTimeout`, which says who has it, and
    nothing is left in line; also when no majority can be reached."""
    with ReplicatedDict[str, int](tmp_path / "n", timeout=0.3) as d:
        with d.lock("x", info="backup of the night"):
            with pytest.raises(LockTimeout, match="backup of the night"):
                d.lock("x").__enter__()
            wait_until(lambda: waiters(d, "x") == 0, "it left the line")
        assert issubclass(LockTimeout, TimeoutError)
    with cluster(tmp_path, 3, timeout=1.0) as (one, two, three):
        two.close()
        three.close()
        with pytest.raises(LockTimeout, match="no majority"):
            one.lock("x").__enter__()
        assert not one.lock("x").acquire(blocking=False)


def test_who_gives_up_leaves_no_ghost(nodes: list[Dict]) -> None:
    """A waiter that gave up is not in line, and one that was granted the lock meanwhile has given it back."""
    for round_ in range(20):
        lock, other = nodes[0].lock("ghost"), nodes[1].lock("ghost")
        assert lock.acquire(timeout=60)
        threading.Timer(0.01 * (round_ % 4), lock.release).start()
        if other.acquire(timeout=0.01 * (round_ % 3)):
            other.release()
    wait_until(lambda: nodes[2].locks() == (), "the lock is free")
    with nodes[2].lock("ghost"):
        pass


def test_ctrl_c_leaves_the_line(d: Dict) -> None:
    """An interrupted `acquire` raises `KeyboardInterrupt`, and the request is withdrawn."""
    lock = d.lock("interrupted")
    assert lock.acquire()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: waiters(d, "interrupted") == 1, "it waits")
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        d.lock("interrupted").acquire()
    thread.join()
    wait_until(lambda: waiters(d, "interrupted") == 0, "it left the line")
    lock.release()
    assert not lock.locked()


def test_what_nobody_refers_to_is_given_back(d: Dict) -> None:
    """A lock that was obtained and forgotten does not stay locked for ever."""
    assert d.lock("forgotten").acquire()
    wait_until(lambda: not d.lock("forgotten").locked(), "it is free")


def test_a_fence_is_decided_in_the_log(nodes: list[Dict]) -> None:
    """Each kind of write with `fence=held` is applied while the lock is held, and refused as `LockLost`, which is a
    `NotCommitted`, afterwards, whatever the holder believes."""
    one, two = nodes[0], nodes[1]
    with one.lock("fence") as held:
        revision = one.set("f", 1, fence=held)
        assert one.compare_and_set("f", 1, 2, fence=held)
        revision = one.set("f", 3, fence=held, ttl=900)
        assert one.ttl("f") is not None
        assert one.replace("f", 4, revision=revision, fence=held)
        assert one.add("g", 1, fence=held)
        assert isinstance(one.submit("f", 5, fence=held).result(), int)
    one.barrier()
    revision = one.revision
    with two.lock("fence"):
        calls: list[Callable[[], object]] = [
            lambda: one.set("f", 9, fence=held),
            lambda: one.add("h", 9, fence=held),
            lambda: one.compare_and_set("f", 5, 9, fence=held),
            lambda: one.replace("f", 9, revision=revision, fence=held),
            lambda: one.submit("f", 9, fence=held).result(),
        ]
        for call in calls:
            with pytest.raises(LockLost, match="token") as caught:
                call()
            assert isinstance(caught.value, NotCommitted)
    assert one.revision == revision
    assert one["f"] == 5


def test_a_broken_lock_is_seen_as_lost(nodes: list[Dict]) -> None:
    """`break_lock` takes the lock from the holder with that token, and from no other: it hears of it at once, its
    callbacks run once, in a thread that may use the dict, and the block ends with `LockLost`."""
    one, two = nodes[0], nodes[1]
    told: list[int] = []
    ran = threading.Event()
    with pytest.raises(LockLost, match="break_lock"), one.lock("broken") as held:
        held.on_lost(lambda: told.append(one.set("told", 1)))
        held.on_lost(ran.set)
        held.on_lost(lambda: 1 / 0)
        assert not two.break_lock("broken", token=held.token + 1)
        held.check()
        assert two.break_lock("broken", token=held.token)
        assert held.lost.wait(60)
        with two.lock("broken") as later:
            assert later.token > held.token
            with pytest.raises(LockLost):
                held.check()
    assert ran.wait(60)
    assert len(told) == 1
    late = threading.Event()
    held.on_lost(late.set)  # it is lost already
    assert late.wait(60)
    with pytest.raises(ZeroDivisionError), one.lock("broken") as held:
        two.break_lock("broken", token=held.token)
        held.lost.wait(60)
        raise ZeroDivisionError  # an error of the body's own is not hidden


def test_a_lost_lock_can_be_acquired_again(d: Dict) -> None:
    """`release` of a lost lock raises `LockLost`, and then it is an ordinary lock again."""
    lock = d.lock("again")
    assert lock.acquire()
    assert lock.held is not None
    assert d.break_lock("again", token=lock.held.token)
    assert lock.held.lost.wait(60)
    with pytest.raises(LockLost):
        lock.release()
    assert lock.acquire()
    lock.release()


def test_a_semaphore_has_so_many_holders(nodes: list[Dict]) -> None:
    """Never more than `permits` are inside, over all nodes, and all of them get in."""
    inside, most = [0], [0]
    mutex = threading.Lock()

    def work(number: int) -> None:
        for _ in range(3):
            with nodes[number % 3].semaphore("three", 3):
                with mutex:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                nodes[0].barrier()
                with mutex:
                    inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 2 <= most[0] <= 3
    with nodes[0].semaphore("three", 3), pytest.raises(ReplidictError, match="semaphore with permits=3"):
        nodes[1].lock("three").acquire()


def test_a_lost_lock_is_told_without_the_cluster() -> None:
    """Cut off from all others, the holder of a lock hears that it is lost: `lost` is set, callbacks run, `check` and
    `release` raise."""
    with Cluster(3) as c:
        lock = c[0].lock("cut", ttl=10)
        assert lock.acquire()
        held = lock.held
        assert held is not None
        told = threading.Event()
        held.on_lost(told.set)
        c.partition({0}, {1, 2})
        c.clock.advance(9)
        assert held.lost.is_set()
        assert told.wait(60)
        with pytest.raises(LockLost):
            held.check()
        with pytest.raises(LockLost):
            lock.release()


def test_a_dead_holder_makes_room() -> None:
    """When the process of a holder is silent for as long as its lease lasts, the next one has the lock, and what the
    silent one still sends with its token is refused."""
    with Cluster(3) as c, pytest.raises(LockLost), c[0].lock("dead", ttl=10) as held:
        c.pause(0)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(c[1].lock("dead").acquire, timeout=60)
            wait_until(lambda: waiters(c[2], "dead") == 1, "it waits")
            c.clock.advance(11)
            assert waiting.result(60)
        c.resume(0)
        with pytest.raises(LockLost):
            held.check()
        with pytest.raises(LockLost):
            c[0].set("k", 1, fence=held)


def test_work_runs_in_one_process_at_a_time(nodes: list[Dict]) -> None:
    """All nodes stand, one leads; when it stops, another one does; `leader` says who."""
    running: list[int] = []
    led = []

    def work(number: int) -> object:
        def run(held: Held) -> None:
            running.append(number)
            assert len(running) == 1
            led.append(held.token)
            held.lost.wait()
            running.remove(number)

        return nodes[number].run_as_leader("boss", run, info=f"candidate {number}")

    candidates = [work(number) for number in range(3)]
    for _ in range(3):
        wait_until(lambda: any(each.is_leader for each in candidates), "one leads")  # type: ignore[attr-defined]
        (number,) = [n for n, each in enumerate(candidates) if each.is_leader]  # type: ignore[attr-defined]
        wait_until(lambda n=number: running == [n], "its work runs")  # type: ignore[misc]
        nodes[0].barrier()
        info = nodes[0].leader("boss")
        assert info is not None
        assert info.info == f"candidate {number}"
        candidates[number].stop()  # type: ignore[attr-defined]
        assert not candidates[number].is_leader  # type: ignore[attr-defined]
    assert led == sorted(set(led))
    assert len(led) == 3
    wait_until(lambda: nodes[0].leader("boss") is None, "nobody leads")


def test_work_that_fails_is_reported_and_tried_again(d: Dict, caplog: pytest.LogCaptureFixture) -> None:
    """An exception of the work is logged and kept, the leadership goes, and after a pause the work is tried again. Work
    that returns is done."""
    attempts: list[int] = []

    def work(held: Held) -> None:
        attempts.append(held.token)
        if len(attempts) < 3:
            raise RuntimeError(f"attempt {len(attempts)}")

    candidate = d.run_as_leader("failing", work)
    wait_until(lambda: len(attempts) == 3, "it was tried three times")
    candidate.stop()
    assert str(candidate.error) == "attempt 2"
    assert "attempt 1" in caplog.text
    assert attempts == sorted(set(attempts))
    assert d.leader("failing") is None


def test_lost_leadership_is_told_and_taken_up_again(d: Dict) -> None:
    """When the lock is taken away, the work is told by `held.lost`, and the candidate stands again."""
    tokens: list[int] = []

    def work(held: Held) -> None:
        tokens.append(held.token)
        held.lost.wait()

    candidate = d.run_as_leader("taken", work)
    wait_until(lambda: len(tokens) == 1, "it leads")
    assert d.break_lock("taken", token=tokens[0])
    wait_until(lambda: len(tokens) == 2, "it leads again")
    candidate.stop()


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {"name": 5}, {"name": "x" * 2000}, {"name": "\ud800"}, {"info": 5}, {"shared": 1}, {"ttl": -1}],
)
def test_what_is_no_lock(d: Dict, wrong: dict[str, object]) -> None:
    """A wrong argument is a `ValueError` that names it."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        d.lock(**{"name": "x", **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="permits="):
        d.semaphore("x", 0)
    with pytest.raises(ValueError, match="token="):
        d.break_lock("x", token=-1)
    with pytest.raises(ValueError, match="work="):
        d.run_as_leader("x", 5)  # type: ignore[arg-type]


def test_a_closed_dict_has_no_locks(tmp_path: Path) -> None:
    """On a closed dict, whatever waits for a lock is told so, and nothing can be asked for."""
    with ReplicatedDict[str, int](tmp_path / "n") as d:
        lock = d.lock("x")
        assert lock.acquire()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(d.lock("x").acquire, timeout=60)
            wait_until(lambda: waiters(d, "x") == 1, "it waits")
            candidate = d.run_as_leader("y", lambda held: held.lost.wait())
            wait_until(lambda: candidate.is_leader, "it leads")
            d.close()
            with pytest.raises(ClosedError):
                waiting.result(60)
    with pytest.raises(LockLost):
        lock.release()
    for call in (d.locks, lambda: d.lock("x").acquire(), lambda: d.run_as_leader("x", print), lambda: d.leader("y")):
        with pytest.raises(ClosedError):
            call()


def test_tokens_grow_across_restore(tmp_path: Path) -> None:
    """A backup does not know the locks that were granted after it: the restored cluster's tokens are larger than theirs
    all the same. What was held is held until its lease ends, and a ttl goes on with what was left of it."""
    with ReplicatedDict[str, int](tmp_path / "n") as d:
        d.set("mortal", 1, ttl=900)
        lock = d.lock("held", ttl=900, info="before")
        assert lock.acquire()
        d.backup(tmp_path / "backup")
        for _ in range(5):
            with d.lock("later") as held:
                last = held.token
        lock.release()
    for number in range(2):
        ReplicatedDict.restore(tmp_path / "backup", tmp_path / f"restored {number}")
        with ReplicatedDict[str, int](tmp_path / f"restored {number}") as d:
            assert 800 < (d.ttl("mortal") or 0) <= 900.1
            assert [each.info for each in d.locks()] == ["before"]
            with d.lock("later") as held:
                assert held.token > last

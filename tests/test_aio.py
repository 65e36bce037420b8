"""The dict for coroutines: what it gives, that it needs no threads, and what becomes of calls whose loop ends."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from replidict import (
    Change,
    ClosedError,
    Held,
    HistoryLost,
    LockLost,
    LockTimeout,
    Member,
    NotCommitted,
    Options,
    ReadTimeout,
    ReplicatedDict,
    TransactionConflict,
    aio,
)
from replidict.aio import AsyncDict
from tests.clusters import Dict, cluster, free_addresses, leader_of, open_member, wait_until

Async = AsyncDict[Any, Any]


@pytest.fixture
def d(tmp_path: Path) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path / "alone", timeout=60.0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """All that runs here does so in asyncio's debug mode, and asyncio has nothing to say about it."""
    yield
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert not [text for text in said if "took" not in text]  # that a machine is busy is nobody's fault


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main, debug=True)


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


OPERATIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("set", ("a", 1), {}),
    ("set", ("b", [2]), {"ttl": 1000}),
    ("set", ("b", {1, 2}), {"ttl": 0}),
    ("set", ([], 1), {}),
    ("set", ("a", object()), {}),
    ("set", ("a", 1), {"lease": 5}),
    ("set", ("a", 1), {"fence": 5}),
    ("set", ("a", 1), {"timeout": -1}),
    ("add", ("a", 2), {}),
    ("add", ("c", 3), {}),
    ("compare_and_set", ("c", 3, 4), {}),
    ("compare_and_set", ("c", 3, 5), {}),
    ("replace", ("c", 6), {"revision": 4}),
    ("replace", ("c", 6), {"revision": "4"}),
    ("expire", ("c", 1000), {}),
    ("expire", ("x", 1000), {}),
    ("increment", ("n",), {}),
    ("increment", ("n", Decimal("1.5")), {}),
    ("increment", ("b",), {}),
    ("increment", ("m", 1), {"default": 0.5}),
    ("get", ("n",), {"linearizable": True}),
    ("get", ("x", 7), {"max_staleness": 5}),
    ("get", ("x",), {"max_staleness": -1}),
    ("versioned", ("c",), {"linearizable": True}),
    ("setdefault", ("a", 9), {}),
    ("setdefault", ("s",), {}),
    ("update", ({"u": 1},), {"v": 2}),
    ("update", ([("w", 1), ("z", 2)],), {}),
    ("update", (), {"timeout": 1}),
    ("delete", ("u",), {}),
    ("delete", ("u",), {}),
    ("pop", ("v",), {}),
    ("pop", ("v",), {}),
    ("pop", ("v", 5), {}),
    ("popitem", (), {}),
    ("snapshot", (), {}),
    ("break_lock", ("x",), {"token": 1}),
    ("break_lock", ("x",), {"token": "1"}),
    ("members", (), {}),
    ("remove_peer", ("127.0.0.1:1",), {}),
    ("add_peer", ("127.0.0.1:1",), {}),
    ("transfer_leadership", ("127.0.0.1:1",), {}),
    ("backup", ("/nowhere/at/all",), {}),
    ("barrier", (), {}),
    ("wait_ready", (), {}),
    ("clear", (), {}),
    ("popitem", (), {}),
]
"""Calls in order: method, arguments."""


def test_it_does_what_the_methods_for_threads_do(tmp_path: Path) -> None:
    """Each method gives the same result, or raises the same error with the same text."""

    def outcome(call: Callable[[], Any]) -> object:
        try:
            found = call()
        except Exception as error:  # noqa: BLE001 -- whatever it is
            return type(error), str(error)
        if isinstance(found, tuple) and found and isinstance(found[0], Member):
            return tuple(replace(member, digest="", digest_index=0) for member in found)  # made now and then
        return found

    async def call(a: Async, name: str, args: Any, kwargs: Any) -> Any:
        result = getattr(a, name)(*args, **kwargs)
        assert inspect.isawaitable(result)
        return await result

    with (
        ReplicatedDict[Any, Any](tmp_path / "one") as one,
        ReplicatedDict[Any, Any](tmp_path / "two") as two,
        asyncio.Runner(debug=True) as runner,
    ):
        for name, args, kwargs in OPERATIONS:
            expected = outcome(lambda: getattr(one, name)(*args, **kwargs))  # noqa: B023
            found = outcome(lambda: runner.run(call(two.aio, name, args, kwargs)))  # noqa: B023
            assert found == expected, (name, args)
            assert two.snapshot() == one.snapshot()


def test_no_method_is_missing() -> None:
    """All that `ReplicatedDict` has is there, with the same parameters; what may wait is a coroutine."""
    without = {"aio", "copy", "restore", "submit"}
    plain = {
        "items", "keys", "leader", "lease", "lock", "locks", "on_stop", "revision", "run_as_leader", "scan",
        "semaphore", "status", "transaction", "ttl", "values", "watch",
    }  # fmt: skip
    names = {name for name in dir(ReplicatedDict) if not name.startswith("_")} - without
    assert {name for name in dir(AsyncDict) if not name.startswith("_")} == names
    assert {name for name in names if not inspect.iscoroutinefunction(getattr(AsyncDict, name))} == plain
    for name in names - {"revision"}:
        theirs, ours = (inspect.signature(getattr(kind, name)).parameters for kind in (ReplicatedDict, AsyncDict))
        assert [(p.name, p.kind, p.default) for p in ours.values() if p.name != "default"] == [
            (p.name, p.kind, p.default) for p in theirs.values() if p.name != "default"
        ], name
    assert inspect.signature(aio.open).parameters == inspect.signature(ReplicatedDict).parameters


def test_reads_of_memory_need_no_await(d: Dict) -> None:
    """Plain reads are those of the dict, `d.aio` is always the same object, and `sync` is the dict."""
    d.update({"a": 1, "b": 2})
    a = d.aio
    assert a is d.aio and a.sync is d
    assert a["a"] == 1 and "b" in a and "c" not in a and len(a) == 2
    assert list(a) == ["a", "b"] and list(reversed(a)) == ["b", "a"] and dict(a) == {"a": 1, "b": 2}
    assert list(a.keys()) == ["a", "b"] and list(a.values()) == [1, 2] and list(a.items()) == [("a", 1), ("b", 2)]
    assert a.scan(limit=1) == [("a", 1)] and a.ttl("a") is None and a.locks() == () and a.leader("x") is None
    assert a.revision == d.revision and a.status().keys == 2 and "2 keys" in repr(a)
    with pytest.raises(KeyError):
        a["c"]


def test_opened_and_closed_without_holding_up_the_loop(tmp_path: Path) -> None:
    """`aio.open` opens and closes in the background, and raises what `ReplicatedDict` does."""

    async def main() -> None:
        async with aio.open(tmp_path / "d", timeout=60.0) as a:
            assert await a.set("x", 1) == 1
            assert a.sync["x"] == 1
        with pytest.raises(ClosedError):
            await a.set("x", 2)
        with pytest.raises(ValueError, match="peers= needs address="):
            async with aio.open(tmp_path / "e", peers=["127.0.0.1:1"]):
                pass

    run(main())


def test_answers_of_a_step_come_together(d: Dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop is woken once for all that a step of the node answers, and no thread was started."""
    node, a = d._host.node, d.aio
    gate = threading.Event()
    woken: list[int] = []

    async def main() -> None:
        await a.set("x", 0)  # the session is open
        await a.barrier()
        loop = asyncio.get_running_loop()
        [inbox] = a._calls._inboxes.values()
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
            woken.append(len(inbox._rung))
            return wake(*args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        node.call(gate.wait)
        threads = threading.active_count()
        writes = [asyncio.ensure_future(a.set(f"k{number}", number)) for number in range(200)]
        await asyncio.sleep(0)
        assert threading.active_count() == threads
        gate.set()
        assert len(set(await asyncio.gather(*writes))) == 200
        assert woken == [200]

    run(main())


def test_any_number_of_loops(d: Dict) -> None:
    """Loops in several threads use one dict at the same time, and none of them is kept after its end."""
    a = d.aio

    async def write(name: str) -> None:
        await asyncio.gather(*(a.set(f"{name}/{number}", number) for number in range(50)))
        async with a.lock("one for all"):
            assert await a.get(f"{name}/7", linearizable=True) == 7

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: run(write(name)), "abcd"))
    assert len(d) == 200
    gc.collect()
    assert len(a._calls._inboxes) == 0


def test_a_loop_that_is_closed_with_calls_under_way(d: Dict) -> None:
    """What was under way in a loop that is just closed leaves no lock, no waiter and no watch, and harms nobody."""
    a = d.aio
    gate = threading.Event()

    async def hold() -> None:
        async with a.lock("x"):
            await a.set("y", 1)

    async def look() -> None:
        await a.watch(snapshot=True).next()

    async def begin() -> list[asyncio.Task[Any]]:
        d._host.node.call(gate.wait)
        calls = [hold(), look(), a.set("z", 1), a.barrier(), a.transact(lambda t: t.setdefault("v", 1))]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        return tasks

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(begin())
    loop.close()
    gate.set()
    d["w"] = 1
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # of the test, and not of what is tested
    del tasks, task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    wait_until(lambda: d.locks() == () and not d._host.node.locks._requests, "the lock is given back")
    assert d["z"] == 1 and "y" not in d
    assert d.status().watchers == 0


def test_there_is_no_leader(tmp_path: Path) -> None:
    """What can't be done in time says so, as for threads. A write that was cancelled is not taken back, but is given up
    when its time is over."""
    addresses = free_addresses(2)

    async def main(a: Async) -> None:
        with pytest.raises(NotCommitted, match=r"no leader could be reached within 0\.05 s"):
            await a.set("x", 1, timeout=0.05)
        with pytest.raises(ReadTimeout, match=r"within 0\.05 s"):
            await a.get("x", linearizable=True, timeout=0.05)
        assert not await a.wait_ready(0.05)
        assert not await a.lock("l").acquire(timeout=0.05)
        with pytest.raises(LockTimeout, match="no majority"):
            async with a.lock("l"):
                pass
        with pytest.raises(NotCommitted, match="no majority granted a lease"):
            await a.lease()
        for name, timeout in (("given up", 0.05), ("written", 600.0)):
            task = asyncio.ensure_future(a.set(name, 1, timeout=timeout))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: len(a.sync._host.node.proposals._left) == 1, "one write is given up")

    with open_member(tmp_path, addresses, 0, timeout=0.3) as one:
        run(main(one.aio))
        with open_member(tmp_path, addresses, 1):
            assert one.wait_ready(60)
            wait_until(lambda: "written" in one, "the cancelled write is applied")
            one.barrier(timeout=60)
            assert list(one) == ["written"]


def test_closed_while_something_is_awaited(tmp_path: Path) -> None:
    """Everybody who waits when the dict is closed gets `ClosedError`, and iteration ends with it."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        a = d.aio

        async def iterate() -> None:
            async for _ in a.watch():
                pass

        async def main() -> None:
            async with a.lock("x"):
                waiting: list[Awaitable[Any]] = [a.lock("x").acquire(), a.watch().next(), iterate()]
                tasks = [asyncio.ensure_future(each) for each in waiting]
                candidacy = a.run_as_leader("x", lambda held: asyncio.sleep(0))
                await until(lambda: a.locks()[0].waiters == 2 and a.status().watchers == 2, "all of them wait")
                await a.close()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [ClosedError] * 3
                await candidacy.wait()
                with pytest.raises(ClosedError):
                    await a.lock("y").acquire()
                with pytest.raises(ClosedError):
                    await a.barrier()
                with pytest.raises(ClosedError):
                    a.watch()
                raise KeyError("the block ends with this, and not with LockLost")

        with pytest.raises(KeyError, match="the block"):
            run(main())


def test_locks(d: Dict) -> None:
    """One task at a time holds a lock, in order, also through one object; who lost it hears so; permits are counted."""
    a = d.aio
    inside: list[int] = []

    async def enter(lock: aio.Lock, number: int) -> None:
        async with lock as held:
            assert lock.held is held and lock.locked()
            inside.append(number)
            await asyncio.sleep(0)
            assert inside[-1] == number
            held.check()

    async def main() -> None:
        lock = a.lock("x", info="me")
        await asyncio.gather(*(enter(lock, number) for number in range(8)))
        assert inside == list(range(8)) and not lock.locked() and lock.held is None and "unlocked" in repr(lock)
        with pytest.raises(RuntimeError, match="which is not held"):
            await lock.release()
        assert await lock.acquire() and not await a.lock("x").acquire(blocking=False)
        with pytest.raises(ValueError, match="non-blocking"):
            await lock.acquire(blocking=False, timeout=1)
        await lock.release()
        with pytest.raises(LockLost):
            async with lock as held:
                assert await a.break_lock("x", token=held.token)
                with pytest.raises(LockLost):
                    await a.set("fenced", 1, fence=held)
        permits = a.semaphore("s", 2)
        assert await permits.acquire() and await permits.acquire() and not await permits.acquire(timeout=0.01)
        await permits.release()
        await permits.release()
        async with a.lock("r", shared=True) as one, a.lock("r", shared=True) as two:
            assert len(a.locks()) == 2 and one.token < two.token

    run(main())
    assert "fenced" not in d


def test_leases(d: Dict) -> None:
    """A lease lives while its block runs, and takes its keys with it; it can be used by both faces."""

    async def main(a: Async) -> None:
        async with a.lease(ttl=30) as lease:
            await a.set("one", 1, lease=lease)
            d.set("two", 2, lease=lease)
            lease.check()
            assert 0 < lease.remaining <= 30 and lease.ttl == 30 and len(a) == 2
        assert len(a) == 0 and lease.lost.is_set() and "lost" in repr(lease)
        async with await a.lease() as lease:
            pass
        assert lease.lost.is_set() and a.status().leases == 0

    run(main(d.aio))


def test_watching(tmp_path: Path) -> None:
    """A watch tells each change once, in order; begins with a state if it is to; and says what it has lost."""

    async def main(a: Async) -> None:
        await a.set("x", 0)
        async with a.watch(snapshot=True) as watch, a.watch("k1") as one:
            state = await watch.next(0)
            assert state is not None and (state.kind, len(state.events)) == ("snapshot", 1)
            assert await watch.next(0) is None and await watch.next(0.01) is None
            waiting = asyncio.ensure_future(watch.next())
            await asyncio.sleep(0)
            writes = asyncio.gather(*(a.set(f"k{number}", number) for number in range(5)))
            found = [await waiting, *[await watch.next() for _ in range(4)]]
            assert [change.events[0].key for change in found if change] == [f"k{number}" for number in range(5)]
            await writes
            alone = await one.next()
            assert alone is not None and alone.events[0].value == 1 and await one.next(0) is None
            assert one.revision == a.revision
            for number in range(50):
                await a.set(f"k{number}", 0)
            with pytest.raises(HistoryLost) as lost:
                await watch.next()
        with pytest.raises(ClosedError):
            await watch.next()
        assert [change async for change in watch] == []
        with pytest.raises(HistoryLost):
            a.watch(after=1)
        resumed: list[Change[Any, Any]] = []
        async for change in a.watch(after=1, resync=True):
            resumed.append(change)
            break
        assert resumed[0].kind == "snapshot" and resumed[0].revision == a.revision
        assert len(resumed[0].events) == 51 and lost.value.current == a.revision
        gc.collect()
        assert a.status().watchers == 0

    with ReplicatedDict[Any, Any](tmp_path / "d", options=Options(history_entries=10)) as d:
        run(main(d.aio))


def test_who_reads_much_lets_others_go_on(d: Dict) -> None:
    """A task that goes through many changes which are there already does not keep the loop from other tasks."""

    async def main(a: Async) -> None:
        async with a.watch() as watch:
            for number in range(100):
                await a.set("x", number)
            turns = 0

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            other = asyncio.ensure_future(others())
            assert len([await watch.next(0) for _ in range(100)]) == 100
            other.cancel()
            assert turns > 1

    run(main(d.aio))


def test_transactions(d: Dict) -> None:
    """Bodies that others get in the way of run again, or say so; their writes are applied once and all at once."""

    async def main(a: Async) -> None:
        await a.update({"a": 100, "b": 0})

        async def move(t: Any) -> int:
            t["a"] -= 1
            await asyncio.sleep(0)
            t["b"] += 1
            return int(t["b"])

        assert sorted(await asyncio.gather(*(a.transact(move) for _ in range(20)))) == list(range(1, 21))
        assert (a["a"], a["b"]) == (80, 20)
        assert await a.transact(lambda t, by: t["b"] + by, 5) == 25
        async with a.transaction(linearizable=True) as t:
            t["b"] = 0
        assert t.revision == a.revision
        with pytest.raises(TransactionConflict, match="'a' changed") as conflict:
            async with a.transaction() as t:
                t["b"] = t["a"]
                await a.set("a", 7)
        assert conflict.value.keys == ("a",) and a["b"] == 0
        with pytest.raises(TransactionConflict, match="in all 3 attempts"):

            async def in_vain(t: Any) -> None:
                t["b"] = t["a"]
                await a.increment("a")

            await a.transact(in_vain, attempts=3)
        with pytest.raises(ZeroDivisionError):
            async with a.transaction() as t:
                t["b"] = 1 / 0
        assert (a["a"], a["b"]) == (10, 0)

        async def in_a_group(t: Any) -> None:
            async with asyncio.TaskGroup() as group:
                t["b"] = t["a"] if t["a"] > 10 else await a.increment("a") and t["c"]
                group.create_task(asyncio.sleep(0))

        assert await a.transact(in_a_group) is None and a["b"] == 11

    run(main(d.aio))


def test_one_leads(tmp_path: Path) -> None:
    """One candidate does the work. It is cancelled when the lock is lost, goes on elsewhere when its candidate stops,
    and is done again after it has failed."""

    async def main(one: Async, two: Async) -> None:
        leading: list[str] = []

        def work(name: str) -> Callable[[Held], Awaitable[None]]:
            async def lead(held: Held) -> None:
                leading.append(name)
                try:
                    if len(leading) == 1:
                        raise OSError("the first time it fails")
                    await asyncio.Event().wait()
                finally:
                    leading.append(f"{name} ends")

            return lead

        async with one.run_as_leader("work", work("one")) as first:
            await until(lambda: leading == ["one", "one ends", "one"], "it is tried again")
            assert first.is_leader and "leads" in repr(first) and isinstance(first.error, OSError)
            leader = one.leader("work")
            assert leader is not None
            async with two.run_as_leader("work", work("two")) as second:
                await until(lambda: one.locks()[0].waiters == 1, "the other one stands, too")
                assert not second.is_leader
                assert await two.break_lock("work", token=leader.token)
                await until(lambda: sorted(leading[3:]) == ["one ends", "two"], "it was lost, and is led elsewhere")
                await until(lambda: second.is_leader and not first.is_leader, "and both know")
            await until(lambda: leading[5:] == ["two ends", "one"], "it comes back")
        assert leading[7:] == ["one ends"] and "over" in repr(first)
        done = one.run_as_leader("work", lambda held: asyncio.sleep(0))
        await done.wait()
        assert done.error is None and one.locks() == ()
        with pytest.raises(ValueError, match="must be a coroutine function"):
            one.run_as_leader("work", 5)  # type: ignore[arg-type]

    with cluster(tmp_path, 2) as nodes:
        run(main(nodes[0].aio, nodes[1].aio))


def test_a_cluster_is_written_by_many_coroutines(tmp_path: Path) -> None:
    """Writes of many coroutines on leader and follower are each done once, and read back at once."""

    async def main(nodes: list[Async]) -> None:
        tickets = await asyncio.gather(*(nodes[number % 3].increment("tickets") for number in range(300)))
        assert sorted(tickets) == list(range(1, 301))
        assert [await node.get("tickets", linearizable=True) for node in nodes] == [300] * 3

    with cluster(tmp_path) as opened:
        leader_of(opened)
        run(main([node.aio for node in opened]))

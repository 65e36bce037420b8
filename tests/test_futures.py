"""Many writes under way from one thread (`submit`): in order, each with its answer, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict import ClosedError, EncodingError, NotCommitted, Options, OutcomeUnknown, ReplicatedDict, ReplidictError
from tests.clusters import Dict, cluster, leader_of, wait_until

PATIENCE = 60.0  # seconds


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path / "alone", timeout=PATIENCE) as opened:
        yield opened


def test_writes_of_one_thread_keep_their_order(alone: Dict) -> None:
    """Each future gives the revision of its write, in the order of the calls, and what is resolved can be read."""
    under_way = [alone.submit(number % 10, number) for number in range(3_000)]
    assert [future.result(PATIENCE) for future in under_way] == list(range(1, 3_001))
    assert alone == {number % 10: number for number in range(2_990, 3_000)}
    alone["after"] = 1
    assert alone.submit("after", 2).result(PATIENCE) == 3_002
    assert alone["after"] == 2


def test_from_any_node_and_many_threads(tmp_path: Path) -> None:
    """Followers take them too, and whoever submits, all nodes have everything in the end (promise 1)."""
    with cluster(tmp_path, timeout=PATIENCE) as nodes:
        found: list[Future[int]] = []

        def write(node: Dict, name: int) -> None:
            found.extend([node.submit((name, number), number) for number in range(100)])

        threads = [threading.Thread(target=write, args=(node, number)) for number, node in enumerate(nodes * 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(future.result(PATIENCE) for future in found) == list(range(1, 601))
        for node in nodes:
            node.barrier()
        assert nodes[0] == nodes[1] == nodes[2]
        assert len(nodes[0]) == 600


def test_what_cannot_be_kept_is_refused_at_once(alone: Dict) -> None:
    """A key or value of a wrong type is the caller's error, as with `set`: nothing is submitted."""
    with pytest.raises(EncodingError):
        alone.submit(["no", "key"], 1)
    with pytest.raises(EncodingError):
        alone.submit("key", object())
    assert alone.revision == 0


def test_nobody_waits_for_ever_without_a_majority(tmp_path: Path) -> None:
    """Without a majority each future gets `NotCommitted` or `OutcomeUnknown`, and says truly which (promise 6)."""
    with cluster(tmp_path, timeout=1.0, options=Options(election_timeout=0.5)) as nodes:
        leader = leader_of(nodes)
        for node in nodes:
            if node is not leader:
                node.close()
        under_way = [leader.submit(number, number) for number in range(500)]
        failures = [future.exception(PATIENCE) for future in under_way]
        assert {type(failure) for failure in failures} <= {NotCommitted, OutcomeUnknown}
        wait_until(lambda: not leader.status().is_leader, "the leader notices that it is alone")
        late = [leader.submit("late", number) for number in range(500)]
        assert {type(future.exception(PATIENCE)) for future in late} == {NotCommitted}
        with pytest.raises(NotCommitted, match="no leader could be reached within 1 s"):
            late[0].result()
        assert len(leader) == 0


def test_closing_resolves_all(tmp_path: Path) -> None:
    """When a dict is closed every future has its answer, and what was acknowledged is there afterwards (promise 1)."""
    opened = ReplicatedDict[int, int](tmp_path / "n", timeout=PATIENCE)
    under_way = [opened.submit(number, number) for number in range(2_000)]
    opened.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("replidict")]
    outcomes = [future.exception(PATIENCE) for future in under_way]
    assert {type(outcome) for outcome in outcomes} <= {type(None), ClosedError, OutcomeUnknown}
    with pytest.raises(ClosedError):
        opened.submit(1, 1)
    with ReplicatedDict[int, int](tmp_path / "n", timeout=PATIENCE) as again:
        for number, outcome in enumerate(outcomes):
            if outcome is None:
                assert again[number] == number
            if isinstance(outcome, ClosedError):
                assert number not in again


@contextmanager
def paused(opened: Dict) -> Iterator[None]:
    """While this lasts the node does nothing, so that no future is resolved."""
    go_on = threading.Event()
    done = opened._host.node.call(lambda: go_on.wait(PATIENCE))
    try:
        yield
    finally:
        go_on.set()
    assert done.result(PATIENCE)


def test_a_callback_may_write_and_wait(alone: Dict) -> None:
    """A callback may use the dict, and take its time: the node goes on meanwhile, and then the other futures do."""
    holding, release = threading.Event(), threading.Event()
    written: list[int] = []

    def write(future: Future[int]) -> None:
        written.append(alone.set("by a callback", future.result()))
        holding.set()
        assert release.wait(PATIENCE)

    with paused(alone):
        alone.submit("a", 1).add_done_callback(write)
        behind = alone.submit("b", 2)
    assert holding.wait(PATIENCE)
    assert written == [3]
    assert alone.set("meanwhile", 3) == 4
    assert not behind.done()
    release.set()
    assert behind.result(PATIENCE) == 2


def test_a_callback_that_leaves_ends_nothing(alone: Dict, caplog: pytest.LogCaptureFixture) -> None:
    """`SystemExit` in a callback is logged, and the futures behind it are resolved."""

    def leave(future: Future[int]) -> None:
        raise SystemExit

    with paused(alone):
        alone.submit("a", 1).add_done_callback(leave)
        behind = alone.submit("b", 2)
    assert behind.result(PATIENCE) == 2
    wait_until(lambda: "a callback of a future failed" in caplog.text, "it is logged")


def test_a_callback_may_close_the_dict(tmp_path: Path) -> None:
    """A callback that closes the dict does not wait for itself."""
    opened = ReplicatedDict[str, int](tmp_path / "n", timeout=PATIENCE)
    opened.submit("a", 1).add_done_callback(lambda future: opened.close())
    wait_until(lambda: opened.status().role == "stopped", "it is closed")
    with pytest.raises(ClosedError):
        opened["a"]
    opened.close()


def test_it_cannot_be_cancelled(alone: Dict) -> None:
    """What is submitted may be sent at any moment: `cancel` says no, and the write goes on."""
    future = alone.submit("a", 1)
    assert future.cancel() is False
    assert future.result(PATIENCE) == 1


def test_from_asyncio(alone: Dict) -> None:
    """A coroutine can await a write, and many of them at a time."""

    async def write() -> list[int]:
        return await asyncio.gather(*(asyncio.wrap_future(alone.submit(number, "x")) for number in range(100)))

    assert asyncio.run(write()) == list(range(1, 101))


def test_failures_do_not_share_a_traceback(tmp_path: Path) -> None:
    """Each future that fails for the same reason has an error of its own."""
    opened = ReplicatedDict[int, int](tmp_path / "n", timeout=PATIENCE)
    under_way = [opened.submit(number, number) for number in range(5_000)]
    opened.close()
    wait(under_way, PATIENCE)
    failures = [failure for future in under_way if (failure := future.exception()) is not None]
    assert all(isinstance(failure, ReplidictError) for failure in failures)
    assert len({id(failure) for failure in failures}) == len(failures)


def test_a_child_process_is_told(alone: Dict) -> None:
    """After a fork the dict belongs to the parent: the child is told so, the parent's futures are resolved."""
    alone.submit("a", 1).result(PATIENCE)
    under_way = [alone.submit(number, number) for number in range(500)]
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            alone.submit("b", 2)
        except ClosedError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [future.result(PATIENCE) for future in under_way] == list(range(2, 502))

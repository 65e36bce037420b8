"""`replidict.testing.simulate`: it finds what is wrong with a program, passes what is right, and replays."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from replidict import NotCommitted, OutcomeUnknown, ReplicatedDict, ReplidictError
from replidict.testing import FAULTS, SimulationFailed, simulate
from tests.simulated_programs import RIGHT, Counting, LockOfAdd, count, in_one_command, read_and_write

SEEDS = range(20)
"""Within these a fault of a program is found."""

A_FEW = range(3)
"""So many of those are tried for programs without one."""


def first_failure(run: Callable[[int], object]) -> SimulationFailed:
    for seed in SEEDS:
        try:
            run(seed)
        except SimulationFailed as failure:
            return failure
    raise AssertionError("nothing was found")


def test_a_lost_update_is_found_and_replayed() -> None:
    """A read and a write lose an update; the same seed loses it again, with the same trace."""
    failure = first_failure(lambda seed: count(seed, read_and_write))
    assert isinstance(failure.__cause__, AssertionError)
    assert f"seed {failure.seed}: check: AssertionError" in str(failure)
    assert "program 1" in str(failure)
    with pytest.raises(SimulationFailed) as again:
        count(failure.seed, read_and_write)
    assert again.value.trace == failure.trace


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name: str) -> None:
    """One command, a transaction, a comparison of revisions lose no update; a lock of the dict has one holder."""
    for seed in A_FEW:
        RIGHT[name](seed)


def test_a_double_holder_is_found() -> None:
    """A lock made of `add` has two holders when one is held up for longer than its key lives."""
    failure = first_failure(lambda seed: simulate(LockOfAdd(), seed=seed))
    assert "AssertionError" in failure.why
    assert failure.why.startswith("program ")


RUN = """
import asyncio
from replidict.testing import simulate

async def program(d, node, random):
    for number in range(5):
        await asyncio.sleep(random.random())
        async with d.lock("lock", ttl=3) as held:
            await d.set({"set", "of", "texts"} and f"key {node}", {"x", "y", "z"}, fence=held)
        async with d.lease(2) as lease:
            await d.set(("mortal", node), number, lease=lease)
        await asyncio.gather(d.increment("count"), d.update(a=node, b=number))

result = simulate(program, seed=5, seconds=20)
print(result.digest, sorted(result.faults.items()))
"""


def test_a_seed_gives_the_same_run() -> None:
    """The same seed gives the same trace in another process, whatever its hash seed."""
    runs = {
        subprocess.run(
            [sys.executable, "-c", RUN], env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert len(runs.pop()) > 40


def test_it_runs_on_every_node_and_again_after_a_crash() -> None:
    """Each machine runs the workload with its number; after a crash it begins anew, and its process is gone."""
    runs: list[int] = []
    alive: set[int] = set()

    async def program(d: Any, node: int, random: random.Random) -> None:
        assert node not in alive
        runs.append(node)
        alive.add(node)
        try:
            await asyncio.Event().wait()
        finally:
            alive.remove(node)

    result = simulate(program, nodes=5, seconds=30, faults=["crash"])
    assert set(runs) == set(range(5))
    assert len(runs) > 5
    assert set(result.faults) <= set(FAULTS["crash"])
    assert alive == set()


def test_a_paused_program_stands_still() -> None:
    """While its machine is paused a program does nothing, and finds afterwards that time has passed."""
    gaps: list[float] = []

    async def program(d: Any, node: int, random: random.Random) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.1)
            gaps.append(loop.time() - began)

    for seed in range(2):
        simulate(program, seed=seed, faults=["pause"], seconds=20)
    assert max(gaps) > 0.5
    assert min(gaps) > 0.09


def test_without_faults_all_is_as_in_a_dict() -> None:
    """Nothing goes wrong with `faults=()`; each method does for coroutines what that of `ReplicatedDict` does."""
    ended: list[int] = []

    async def program(d: Any, node: int, random: random.Random) -> None:
        began = asyncio.get_running_loop().time()
        mine = f"{node}/"
        watch = d.watch(prefix=mine)
        assert await d.set(mine + "a", 1) <= d.revision
        assert d[mine + "a"] == 1 == await d.get(mine + "a")
        assert not await d.add(mine + "a", 2)
        assert await d.compare_and_set(mine + "a", 1, 3)
        assert await d.setdefault(mine + "a", 4) == 3
        assert await d.increment(mine + "a", 2) == 5
        await d.update({mine + "b": 6})
        assert await d.pop(mine + "b") == 6
        assert await d.pop(mine + "b", None) is None
        assert await d.delete(mine + "a")
        with pytest.raises(KeyError):
            await d.pop(mine + "a")
        assert await d.set(mine + "c", 1, ttl=30)
        assert 29 < d.ttl(mine + "c") < 31
        assert await d.expire(mine + "c", None)
        assert d.ttl(mine + "c") is None
        async with d.lease(5) as lease:
            await d.set(mine + "d", 1, lease=lease)
            await asyncio.sleep(20)
            lease.check()
        assert mine + "d" not in d
        async with d.semaphore("two", 2) as held:
            await asyncio.sleep(1)
            held.check()
        kinds = [event.kind async for change in until_deleted(watch, mine + "d") for event in change.events]
        assert kinds == ["set"] * 4 + ["delete", "delete", "set", "set", "delete"]
        assert asyncio.get_running_loop().time() - began > 20
        assert d.scan(mine) == [(mine + "c", 1)]
        assert await d.snapshot() == dict(d.items())
        with pytest.raises(RuntimeError, match="not simulated"):
            await d.members()
        ended.append(node)

    async def check(dicts: list[Any]) -> None:
        assert await dicts[0].get("0/c", linearizable=True) == 1
        assert [len(d) for d in dicts] == [3, 3, 3]

    result = simulate(program, faults=(), check=check)
    assert not result.faults
    assert sorted(ended) == [0, 1, 2]


def test_what_would_wait_in_real_time_is_refused() -> None:
    """Each method of `d.sync` that waits, and of `ReplicatedDict` those are all that are not named here, is refused
    before it does anything: it would wait for what only simulated time can bring."""
    reads = "aio copy get items keys leader locks on_stop restore revision scan snapshot status ttl values versioned"
    writes = {name for name in dir(ReplicatedDict) if not name.startswith("_")} - set(reads.split())
    arguments: dict[str, tuple[Any, ...]] = {
        "barrier": (), "clear": (), "close": (), "lease": (), "members": (), "popitem": (), "transaction": (),
        "transfer_leadership": (), "wait_ready": (), "watch": (), "increment": ("n",), "delete": ("k",), "pop": ("k",),
        "lock": ("name",), "transact": (len,), "update": ({"k": 1},), "add_peer": ("n9:1",),
        "backup": ("file",), "break_lock": ("name",), "compare_and_set": ("k", 1, 2), "semaphore": ("name", 1),
        "run_as_leader": ("name", print), "remove_peer": ("n0:7000",),
    }  # fmt: skip
    named = {"break_lock": {"token": 1}, "replace": {"revision": 1}}
    refused: list[str] = []

    async def program(d: Any, node: int, random: random.Random) -> None:
        await d.set("k", 1)
        before = d.revision
        for name in sorted(writes):
            with pytest.raises(RuntimeError, match="coroutines"):
                getattr(d.sync, name)(*arguments.get(name, ("k", 1)), **named.get(name, {}))
            refused.append(name)
        with pytest.raises(RuntimeError, match="coroutines"):
            d.sync["k"] = 2
        await d.barrier()
        assert d.revision == before

    simulate(program, nodes=1, faults=())
    assert len(refused) == len(writes) > 25


async def until_deleted(watch: Any, key: str) -> Any:
    async for change in watch:
        yield change
        if any((event.kind, event.key) == ("delete", key) for event in change.events):
            return


def test_whatever_goes_wrong_is_told() -> None:
    """An error of workload or check that is none of the dict's ends the run, with its cause; a program that goes round
    and round is found, too. Errors of the dict have it begin again."""
    times: list[str] = []

    async def broken(d: Any, node: int, random: random.Random) -> None:
        raise ZeroDivisionError("by zero")

    async def busy(d: Any, node: int, random: random.Random) -> None:
        while True:
            await asyncio.sleep(0)

    async def refused(d: Any, node: int, random: random.Random) -> None:
        times.append("begun")
        if len(times) < 5:
            raise NotCommitted("on purpose")

    def check(dicts: list[Any]) -> None:
        raise ValueError("no good")

    with pytest.raises(SimulationFailed, match="ZeroDivisionError: by zero") as failed:
        simulate(broken, seconds=5, faults=())
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    with pytest.raises(SimulationFailed, match="without letting time pass"):
        simulate(busy, seconds=5, faults=())
    with pytest.raises(SimulationFailed, match="check: ValueError: no good"):
        simulate(refused, seconds=5, faults=(), check=check)
    assert len(times) == 7


def test_a_cut_cluster_gives_the_errors_of_a_cut_cluster() -> None:
    """Programs meet NotCommitted and OutcomeUnknown, within the timeouts that they give, in simulated time."""
    met: set[type] = set()

    async def program(d: Any, node: int, random: random.Random) -> None:
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await d.set("k", node, timeout=0.5)
            except ReplidictError as error:
                met.add(type(error))
            assert asyncio.get_running_loop().time() - began < 15  # it may have been paused
            await asyncio.sleep(0.2)

    for seed in range(4):
        simulate(program, seed=seed, faults=["partition"], seconds=20)
    assert met >= {NotCommitted, OutcomeUnknown}


@pytest.mark.parametrize(
    "wrong",
    [{"workload": print}, {"nodes": 0}, {"nodes": True}, {"seconds": 0}, {"faults": ["fire"]}, {"faults": "crash"}],
)
def test_what_is_no_simulation(wrong: dict[str, Any]) -> None:
    """A wrong argument is a `ValueError` that names it."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        simulate(**{"workload": Counting(in_one_command), **wrong})

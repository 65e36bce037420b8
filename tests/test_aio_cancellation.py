"""Coroutines are cancelled wherever they wait, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import pytest

from replidict import Held, ReplicatedDict, aio
from replidict.aio import AsyncDict
from tests.clusters import Dict

Async = AsyncDict[Any, Any]

How = Literal["at once", "late", "again and again"]
"""When a task is cancelled that waits: as soon as it does; when what it waits for is there, and the task has not gone
on yet; or each time that it waits from then on, as the scopes of anyio do."""


class Cancelling:
    """Awaits a coroutine, and has its task cancelled when it waits for the `number`-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int, how: How) -> None:
        self._coroutine, self._number, self._how = coroutine, number, how
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        steps, error = self._coroutine.__await__(), None
        while True:
            try:
                waited_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits == self._number or (self.waits > self._number and self._how == "again and again"):
                if self._how == "late" and isinstance(waited_for, asyncio.Future):
                    waited_for.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            error = None
            try:
                yield waited_for
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 -- the coroutine's
                error = thrown


@pytest.fixture(scope="module")
def d(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path_factory.mktemp("cancelled") / "d", timeout=60.0) as opened:
        opened["counter"] = 0
        yield opened


def nothing_is_left(d: Dict) -> bool:
    """Whether nobody holds, waits for or watches anything: here, and in the state of the cluster."""
    node = d._host.node
    users = [lease for lease in list(node.leases._held.values()) if lease.users]
    return not (d.locks() or node.locks._requests or users or d.status().watchers or node.reads._waiting)


async def cancel_everywhere(
    how: How,
    scenario: Callable[[], Coroutine[Any, Any, None]],
    least: int,
    is_clean: Callable[[], bool],
    around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> None:
    """Run a scenario again and again, cancelled where it waits for the first time, the second, and so on, until it is
    over before; it must have waited `least` times. After each run nothing is left."""
    async with around():
        await scenario()
    await until(is_clean)
    threads, files = threading.active_count(), len(os.listdir("/dev/fd"))
    number, runs = 1, 0
    while True:
        runs += 1
        assert runs < 1000, f"it never waited {least} times"
        cancelling = Cancelling(scenario(), number, how)

        async def run(cancelling: Cancelling = cancelling) -> None:
            await cancelling

        async with around(), asyncio.timeout(60):
            [outcome] = await asyncio.gather(run(), return_exceptions=True)
        over = cancelling.waits < number
        assert outcome is None if over else isinstance(outcome, asyncio.CancelledError)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await until(lambda: is_clean() and threading.active_count() <= threads)
        assert len(os.listdir("/dev/fd")) == files
        if not over:
            number += 1
        elif number > least:  # else some answers were there before they were waited for: once more
            return


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def held_by_another(d: Dict, name: str) -> AsyncIterator[None]:
    """Somebody else has the lock, and gives it back when somebody waits, or at the end."""
    holder = d.lock(name)
    assert holder.acquire()

    async def release() -> None:
        with suppress(asyncio.CancelledError):
            await until(lambda: any(info.waiters for info in d.locks()))
        holder.release()

    releasing = asyncio.ensure_future(release())
    await asyncio.sleep(0)
    yield
    releasing.cancel()
    await releasing


async def lock_and_release(a: Async) -> None:
    lock = a.lock("x")
    assert await lock.acquire()
    await lock.release()


async def lock_in_a_block(a: Async) -> None:
    async with a.lock("x", shared=True) as held:
        await a.set("x", 1, fence=held)


async def permit(a: Async) -> None:
    async with a.semaphore("s", 2), a.semaphore("s", 2):
        pass


async def lease(a: Async) -> None:
    async with a.lease() as lease:
        await a.set("x", 1, lease=lease)
    await (await a.lease()).revoke()


async def transact(a: Async) -> None:
    runs = 0

    async def body(t: Any) -> None:
        nonlocal runs
        runs += 1
        t["x"] = t["counter"]
        if runs == 1:
            await a.increment("counter")

    await a.transact(body)
    async with a.transaction(linearizable=True) as t:
        t["x"] = 2


async def write_and_read(a: Async) -> None:
    await a.set("x", 1)
    await a.update(a=1, b=2)
    await a.pop("x")
    await a.get("x", linearizable=True)
    await a.snapshot()


async def watch(a: Async) -> None:
    async with a.watch("y", snapshot=True, resync=True) as changes:
        await changes.next()
        asyncio.get_running_loop().call_soon(a.sync.__setitem__, "y", 1)
        async for _ in changes:
            break


async def lead(a: Async) -> None:
    begun = asyncio.Event()

    async def work(held: Held) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.002)

    async with a.run_as_leader("x", work):
        await begun.wait()


SCENARIOS: list[tuple[Callable[[Async], Coroutine[Any, Any, None]], int]] = [
    (lock_and_release, 2), (lock_in_a_block, 3), (permit, 4), (lease, 4), (transact, 4), (write_and_read, 4),
    (watch, 2), (lead, 2),
]  # fmt: skip
"""What is cancelled wherever it waits, and how often it waits at least."""


EACH_HOW = pytest.mark.parametrize("how", ["at once", "late", "again and again"])


@EACH_HOW
@pytest.mark.parametrize(("scenario", "least"), SCENARIOS, ids=lambda value: getattr(value, "__name__", ""))
def test_cancelled_wherever_it_waits(
    d: Dict, how: How, scenario: Callable[[Async], Coroutine[Any, Any, None]], least: int
) -> None:
    """Whatever is cancelled, and where: `CancelledError` passes, and no lock, waiter, lease, watch, task, thread or
    file is left."""
    asyncio.run(cancel_everywhere(how, lambda: scenario(d.aio), least, lambda: nothing_is_left(d)), debug=True)


@EACH_HOW
@pytest.mark.parametrize("scenario", [lock_and_release, lead], ids=["acquire", "candidate"])
def test_cancelled_while_it_stands_in_line(
    d: Dict, how: How, scenario: Callable[[Async], Coroutine[Any, Any, None]]
) -> None:
    """A cancelled waiter for a lock leaves the queue, or releases the lock if it was granted meanwhile."""
    asyncio.run(
        cancel_everywhere(how, lambda: scenario(d.aio), 2, lambda: nothing_is_left(d), lambda: held_by_another(d, "x")),
        debug=True,
    )


@EACH_HOW
def test_a_candidate_is_cancelled_wherever_it_waits(d: Dict, how: How) -> None:
    """The task of a candidate that is cancelled by others, as at the end of its loop, gives back the lock, and its work
    has ended before."""

    async def candidate() -> None:
        works: list[str] = []

        async def work(held: Held) -> None:
            works.append("begins")
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            finally:
                await asyncio.sleep(0.002)
                works.append("ends")

        standing = d.aio.run_as_leader("x", work)
        standing._task.cancel()  # before it has begun; `_stand` is what is looked at
        await asyncio.wait([standing._task])
        await standing._stand()
        assert works == ["begins", "ends"]

    asyncio.run(cancel_everywhere(how, candidate, 3, lambda: nothing_is_left(d)), debug=True)


@EACH_HOW
def test_opening_is_cancelled_wherever_it_waits(tmp_path: Path, how: How) -> None:
    """An opening, or a closing, that is cancelled has closed the dict when `CancelledError` passes."""

    async def open_and_close() -> None:
        async with aio.open(tmp_path / "d") as a:
            assert len(a) == 0

    asyncio.run(cancel_everywhere(how, open_and_close, 2, lambda: True), debug=True)


def test_stopped_twice(d: Dict) -> None:
    """A second caller that stops a candidate waits for the same end of the work, which has the lock until then;
    what it raises then is kept."""

    async def main() -> None:
        begun = asyncio.Event()
        held_to_the_end = False

        async def work(held: Held) -> None:
            nonlocal held_to_the_end
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.05)  # in which it would be given back
                held_to_the_end = bool(d.locks())
                raise OSError("it could not end well")

        async with d.aio.run_as_leader("x", work) as standing:
            await begun.wait()
            first = asyncio.ensure_future(standing.stop())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await standing.stop()
            assert held_to_the_end and isinstance(standing.error, OSError)
            await first
        await until(lambda: nothing_is_left(d))

    asyncio.run(main(), debug=True)


def test_answered_writes_that_were_left(d: Dict) -> None:
    """A write that was cancelled is forgotten when it is answered, and not kept until its time is over."""

    async def main() -> None:
        writes = [asyncio.create_task(d.aio.set("left", number, timeout=3600)) for number in range(100)]
        await asyncio.sleep(0)
        for write in writes:
            write.cancel()
        await asyncio.gather(*writes, return_exceptions=True)
        assert d._host.node.proposals._left
        await d.aio.set("after", 1)
        d._host.node.call_and_wait(d._host.node.proposals.step)
        assert not d._host.node.proposals._left

    asyncio.run(main(), debug=True)


def test_what_was_heard_already_wakes_nobody(d: Dict) -> None:
    """A coroutine that has seen that its bell rang, before its loop could tell, waits for the next time."""

    async def main() -> None:
        bell = d.aio._calls.bell()
        bell.ring()
        assert await bell.wait()
        waiting = asyncio.ensure_future(bell.wait(60))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        bell.ring()
        assert await waiting
        assert not await bell.wait(0.001)

    asyncio.run(main(), debug=True)

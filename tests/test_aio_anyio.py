"""The dict for coroutines in programs that use anyio on asyncio: its scopes cancel again and again, and its groups end
together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from replidict import Held, ReplicatedDict, aio
from tests.clusters import Dict, wait_until


@pytest.fixture
def d(tmp_path: Path) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path / "alone", timeout=60.0) as opened:
        yield opened
        wait_until(lambda: not opened.locks() and not opened._host.node.locks._requests, "nothing is held")


def test_a_scope_ends_the_wait_for_a_lock(d: Dict) -> None:
    """`move_on_after` gives up a lock that others have, or cuts short who has it; it is free afterwards."""

    async def main() -> None:
        a = d.aio
        async with a.lock("x"):
            with anyio.move_on_after(0.05) as scope:
                await a.lock("x").acquire()
            assert scope.cancelled_caught
            with anyio.move_on_after(0.05) as scope:
                async with a.lock("x"):
                    raise AssertionError("the block was entered without the lock")
            assert scope.cancelled_caught
        with anyio.move_on_after(0.05) as scope:
            async with a.lock("x"), a.lease():
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        with anyio.fail_after(30):
            async with a.lock("x"):
                pass

    anyio.run(main)


def test_a_watch_goes_on_after_a_timeout(d: Dict) -> None:
    """A wait for a change that a scope has ended loses nothing: the next call gives the change."""

    async def main() -> None:
        async with d.aio.watch() as changes:
            with pytest.raises(TimeoutError), anyio.fail_after(0.05):
                await changes.next()
            await d.aio.set("x", 1)
            change = await changes.next()
            assert change is not None and change.events[0].key == "x"

    anyio.run(main)


def test_a_group_ends_together(d: Dict) -> None:
    """When a task of a group fails, the others are cancelled: their locks, places in line and bodies are gone, and what
    they had begun to lead has ended."""
    ended: list[str] = []

    async def hold(number: int) -> None:
        async with d.aio.lock(f"x{number % 2}"):
            await anyio.sleep_forever()

    async def lead() -> None:
        async def work(held: Held) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("work")

        async with d.aio.run_as_leader("job", work):
            await anyio.sleep_forever()

    async def transfer() -> None:
        async with d.aio.transaction() as t:
            t["written"] = 1
            await anyio.sleep_forever()

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as error:
            async with anyio.create_task_group() as group:
                for number in range(4):
                    group.start_soon(hold, number)
                group.start_soon(lead)
                group.start_soon(transfer)
                with anyio.fail_after(30):
                    while len(d.locks()) < 3 or sum(lock.waiters for lock in d.locks()) < 2:
                        await anyio.sleep(0.01)
                raise KeyError("enough")
        assert [type(each) for each in error.value.exceptions] == [KeyError]
        assert ended == ["work"]

    anyio.run(main)
    assert "written" not in d


def test_opening_in_a_scope_that_is_cancelled(tmp_path: Path) -> None:
    """A dict whose block is left by a cancelled scope is closed when the scope ends."""

    async def main() -> None:
        for _ in range(2):  # which the second time would find the directory in use
            with anyio.CancelScope() as scope:
                async with aio.open(tmp_path / "d") as a:
                    await a.set("x", 1)
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught

    anyio.run(main)

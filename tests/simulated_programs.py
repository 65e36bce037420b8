"""Programs for `replidict.testing.simulate`, right ones and wrong ones.

`python -m tests.simulated_programs --seeds 200` runs the right ones, none of which may fail.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from replidict import LockLost, LockTimeout
from replidict.testing import SimulationFailed, simulate


class Counting:
    """Programs on all nodes count up; what was acknowledged is to be counted."""

    def __init__(self, count: Callable[[Any], Any]) -> None:
        self._count = count
        self.acknowledged = 0

    async def __call__(self, d: Any, node: int, random: random.Random) -> None:
        for _ in range(6):
            await asyncio.sleep(3 * random.random())
            await self._count(d)
            self.acknowledged += 1

    def check(self, dicts: list[Any]) -> None:
        assert dicts[0].get("n", 0) >= self.acknowledged
        assert all(d == dicts[0] for d in dicts)


async def read_and_write(d: Any) -> None:
    """Loses what others write between the two."""
    n = await d.get("n", 0, linearizable=True)
    await d.set("n", n + 1)


async def in_one_command(d: Any) -> None:
    await d.increment("n")


async def in_a_transaction(d: Any) -> None:
    async def body(t: Any) -> None:
        t["n"] = t.get("n", 0) + 1

    await d.transact(body)


async def in_a_block(d: Any) -> None:
    async with d.transaction(linearizable=True) as t:
        t["n"] = t.get("n", 0) + 1


async def by_comparison(d: Any) -> None:
    while True:
        found = await d.versioned("n", linearizable=True)
        if found is None:
            if await d.add("n", 1):
                return
        elif await d.replace("n", found.value + 1, revision=found.revision):
            return


class Exclusion:
    """Programs that are to be alone; who is inside finds out whether somebody else believes to be."""

    def __init__(self) -> None:
        self.inside: dict[object, Callable[[], object]] = {}

    def enter(self, me: object, check: Callable[[], object]) -> None:
        self.inside[me] = check
        self.look()

    def look(self) -> None:
        believers = [me for me, check in self.inside.items() if believes(check)]
        assert len(believers) < 2, believers


def believes(check: Callable[[], object]) -> bool:
    try:
        check()
    except LockLost:
        return False
    return True


class LockOfAdd(Exclusion):
    """A lock made of a key with a ttl, which nobody renews: it goes while its holder is held up."""

    async def __call__(self, d: Any, node: int, random: random.Random) -> None:
        while True:
            if await d.add("lock", node, ttl=4):
                self.enter(node, lambda: None)
                try:
                    await asyncio.sleep(3 * random.random())
                    self.look()
                finally:
                    del self.inside[node]
                await d.delete("lock")
            await asyncio.sleep(random.random())


class LockOfOurs(Exclusion):
    """The lock that there is; what it protects is written with its token."""

    async def __call__(self, d: Any, node: int, random: random.Random) -> None:
        while True:
            try:
                async with d.lock("lock", ttl=4) as held:
                    self.enter(node, held.check)
                    try:
                        await d.set("written", held.token, fence=held)
                        await asyncio.sleep(random.random())
                        self.look()
                    finally:
                        del self.inside[node]
            except (LockTimeout, LockLost):
                pass
            await asyncio.sleep(random.random())


def count(seed: int, how: Callable[[Any], Any]) -> None:
    counting = Counting(how)
    simulate(counting, seed=seed, check=counting.check)


RIGHT: dict[str, Callable[[int], object]] = {
    "increment": lambda seed: count(seed, in_one_command),
    "transact": lambda seed: count(seed, in_a_transaction),
    "transaction": lambda seed: count(seed, in_a_block),
    "compare": lambda seed: count(seed, by_comparison),
    "lock": lambda seed: simulate(LockOfOurs(), seed=seed),
}
"""Programs that hold what they promise, whatever the seed brings."""


def main(arguments: list[str] | None = None) -> int:
    """Run the right programs, and say what failed. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulated_programs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run each program with")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    options = parser.parse_args(arguments)
    failures = 0
    for name, run in RIGHT.items():
        began = time.process_time()
        for seed in range(options.start, options.start + options.seeds):
            try:
                run(seed)
            except SimulationFailed as failure:
                failures += 1
                print(f"{name}: {failure}")
        each = (time.process_time() - began) / max(options.seeds, 1)
        print(f"{name:12} {options.seeds} seeds, {each:.2f} s of CPU each", flush=True)
    print(f"{failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

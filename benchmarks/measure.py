"""The loop that times every system: threads that call one thing again and again, and percentiles of what it took."""

from __future__ import annotations

import asyncio
import math
import threading
from array import array
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from time import perf_counter
from typing import Any

Operation = Callable[[str], object]

MOST_ERRORS = 100
"""A thread that meets more than these gives up: figures of what fails would mean nothing."""

LAG_EVERY = 0.005
"""Seconds after which a coroutine beside the others wants to go on, again and again."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not below this share of all; 0 if there are none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    """The figures of operations that took so long each, and all together this many seconds."""
    latencies.sort()
    return {
        "p50 ms": percentile(latencies, 0.50) * 1e3,
        "p99 ms": percentile(latencies, 0.99) * 1e3,
        "max ms": percentile(latencies, 1.0) * 1e3,
        "per s": len(latencies) / seconds if seconds else 0.0,
        "count": float(len(latencies)),
    }


def run_threads(
    operation: Operation, keys: Sequence[Sequence[str]], seconds: float, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Call the operation for so many seconds (or until told to stop), on one thread for each list of keys."""
    together = threading.Barrier(len(keys) + 1)
    records = [array("d") for _ in keys]
    ends = [0.0] * len(keys)
    errors: list[str] = []

    def loop(number: int) -> None:
        record, failures = records[number].append, 0
        together.wait()
        deadline = perf_counter() + seconds
        for key in cycle(keys[number]):
            before = perf_counter()
            if before >= deadline or failures > MOST_ERRORS or (stop is not None and stop.is_set()):
                break
            try:
                operation(key)
            except Exception as error:  # noqa: BLE001 -- whatever a system raises is counted and told
                failures += 1
                errors.append(f"{type(error).__name__}: {error}")
            else:
                record(perf_counter() - before)
        ends[number] = before

    threads = [threading.Thread(target=loop, args=(number,), name=f"client {number}") for number in range(len(keys))]
    for thread in threads:
        thread.start()
    together.wait()
    start = perf_counter()
    for thread in threads:
        thread.join()
    found = summary([each for record in records for each in record], max(ends) - start)
    return {**found, "errors": len(errors), "error": errors[0] if errors else None}


def run_futures(submit: Callable[[str], Any], keys: Sequence[str], seconds: float, under_way: int) -> dict[str, Any]:
    """Begin one operation after the other, with so many under way at most, from this thread alone."""
    room = threading.Semaphore(under_way)
    record, errors = array("d"), list[str]()

    def begin(key: str) -> None:
        before = perf_counter()

        def ended(future: Any) -> None:
            if (error := future.exception()) is None:
                record.append(perf_counter() - before)
            else:
                errors.append(f"{type(error).__name__}: {error}")
            room.release()

        submit(key).add_done_callback(ended)

    start = perf_counter()
    for key in cycle(keys):
        room.acquire()
        if perf_counter() >= start + seconds or len(errors) > MOST_ERRORS:
            break
        begin(key)
    for _ in range(under_way - 1):
        room.acquire()
    found = summary(list(record), perf_counter() - start)
    return {**found, "errors": len(errors), "error": errors[0] if errors else None}


def run_coroutines(
    operation: Callable[[str], Awaitable[object]], keys: Sequence[Sequence[str]], seconds: float
) -> dict[str, Any]:
    """The same as `run_threads` with one coroutine for each list of keys, in one event loop; and how late it is with
    other work, the `lag`."""
    records = [array("d") for _ in keys]
    errors: list[str] = []
    lags = array("d")

    async def loop(number: int, deadline: float) -> float:
        record, failures = records[number].append, 0
        for key in cycle(keys[number]):
            before = perf_counter()
            if before >= deadline or failures > MOST_ERRORS:
                break
            try:
                await operation(key)
            except Exception as error:  # noqa: BLE001 -- as in `run_threads`
                failures += 1
                errors.append(f"{type(error).__name__}: {error}")
            else:
                record(perf_counter() - before)
        return before

    async def beside() -> None:
        while True:
            due = perf_counter() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            lags.append(perf_counter() - due)

    async def together() -> float:
        other = asyncio.ensure_future(beside())
        start = perf_counter()
        ends = await asyncio.gather(*(loop(number, start + seconds) for number in range(len(keys))))
        other.cancel()
        return max(ends) - start

    took = asyncio.run(together())
    found = summary([each for record in records for each in record], took)
    lag = percentile(sorted(lags), 0.99) * 1e3
    return {**found, "lag p99 ms": lag, "errors": len(errors), "error": errors[0] if errors else None}


def mean_microseconds(operation: Operation, keys: Sequence[str], rounds: int) -> float:
    """What one call takes within a plain loop, with no clock read in between: for calls that cost less than a clock."""
    start = perf_counter()
    for _ in range(rounds):
        for key in keys:
            operation(key)
    return (perf_counter() - start) / (rounds * len(keys)) * 1e6

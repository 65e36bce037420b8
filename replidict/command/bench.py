"""`replidict bench`: measures how fast a running cluster answers."""

from __future__ import annotations

import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TypeAlias

import click

from replidict.client.connection import Client
from replidict.command.node_options import as_json_option, reaching
from replidict.command.output import is_terminal, print_json, print_table
from replidict.machine.codec import encode, encode_key
from replidict.protocol import client_messages

KEYS = 100
"""Each connection writes so many keys over and over."""

Operation: TypeAlias = Callable[[Client, bytes], object]


@dataclass(frozen=True)
class Measured:
    """The measurements of one kind of operation."""

    operation: str
    connections: int
    per_second: float
    p50_ms: float
    p99_ms: float
    longest_ms: float


@click.command()
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=3.0, show_default=True, help="For each line.")
@click.option("--connections", type=click.IntRange(1, 32), default=8, show_default=True, help="At the same time.")
@click.option("--size", type=click.IntRange(0, 1024 * 1024), default=100, show_default=True, help="Bytes of a value.")
@as_json_option
@reaching
def bench(connect: Callable[[], Client], seconds: float, connections: int, size: int, as_json: bool) -> None:
    """Measure a running cluster: it is written to, and loaded.

    The keys begin with "replidict-bench/" and are removed at the end. Network and
    this Python process are part of what is measured.
    """
    value = encode(bytes(size))
    operations: dict[str, Operation] = {
        "set": lambda client, key: client.request(
            lambda i, t: client_messages.Set(i, t, key, value), client_messages.Stored
        ),
        "get": lambda client, key: client.request(
            lambda i, t: client_messages.Get(i, t, key, True), client_messages.Value
        ),
        "get --local": lambda client, key: client.request(
            lambda i, t: client_messages.Get(i, t, key, False), client_messages.Value
        ),
    }
    prefix = f"replidict-bench/{secrets.token_hex(4)}"
    found = []
    with ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in range(connections)]
        pool = stack.enter_context(ThreadPoolExecutor(connections))
        over = threading.Event()
        plan = [(name, count) for name in operations for count in sorted({1, connections})]
        try:
            with click.progressbar(plan, label="Bench", file=sys.stderr, hidden=not is_terminal(sys.stderr)) as bar:
                for name, count in bar:
                    found.append(_measure(name, operations[name], clients[:count], pool, over, prefix, seconds))
        finally:
            over.set()
            pool.shutdown()  # until then they are on their connections, and may write one more key
            _remove(clients[0], prefix)
    if as_json:
        print_json(
            {"node": clients[0].address, "seconds": seconds, "size": size, "results": [asdict(m) for m in found]}
        )
        return
    rows = [
        (m.operation, m.connections, round(m.per_second), *(f"{ms:.2f}" for ms in (m.p50_ms, m.p99_ms, m.longest_ms)))
        for m in found
    ]
    click.echo(f"{clients[0].address}, values of {size} bytes, {seconds:g} s each, milliseconds as seen from here")
    print_table(["operation", "connections", "per second", "p50", "p99", "longest"], rows)


def _measure(
    name: str,
    operation: Operation,
    clients: list[Client],
    pool: ThreadPoolExecutor,
    over: threading.Event,
    prefix: str,
    seconds: float,
) -> Measured:
    began = time.monotonic()
    until = began + seconds

    def run(number: int) -> list[float]:
        keys = [encode_key(f"{prefix}/{number}/{key}") for key in range(KEYS)]
        took: list[float] = []
        while (before := time.perf_counter()) and time.monotonic() < until and not over.is_set():
            operation(clients[number], keys[len(took) % KEYS])
            took.append(time.perf_counter() - before)
        return took

    took = sorted(second for each in pool.map(run, range(len(clients))) for second in each) or [seconds]
    lasted = time.monotonic() - began
    cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
    return Measured(
        name, len(clients), len(took) / lasted, 1000 * statistics.median(took), 1000 * cuts[98], 1000 * took[-1]
    )


def _remove(client: Client, prefix: str) -> None:
    listed = client.stream(lambda i, t: client_messages.ListKeys(i, t, prefix, None, client_messages.PAGE_MAX, True))
    for key in [key for part in listed if isinstance(part, client_messages.Keys) for key in part.keys]:
        client.request(lambda i, t: client_messages.Delete(i, t, key), client_messages.Held)  # noqa: B023 -- done before the next key

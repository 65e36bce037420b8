"""Module constants of the product, drawn by the seed: small, so that rare paths become common ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from replidict.machine import state_machine
from replidict.node import proposals
from replidict.raft import engine, install_snapshot, replication
from replidict.storage import large_values, log, scrubber, state_table, store

CHOICES: list[tuple[ModuleType, str, tuple[float, ...]]] = [
    (state_table, "GATHER_ENTRIES", (2, 2, 8, 32, 256)),
    (state_table, "GATHER_ROWS", (3, 20, 2_000)),
    (state_table, "GATHER_BYTES", (2_000, 16 << 20)),
    (state_table, "STEP_PAGES", (1, 16)),
    (state_table, "STEP_BYTES", (1, 500, 256 << 10)),
    (state_table, "WHOLE_BYTES", (1, 4 << 20)),
    (large_values, "LARGE_BYTES", (255, 300, 1_000, 16 << 10)),
    (store, "COMPACT_STEP", (1, 7, 5_000)),
    (store, "LOG_RETAIN_BYTES", (2_000, 64 << 20)),
    (log, "MEMORY_BYTES", (500, 5_000, 32 << 20)),
    (scrubber, "PIECE_BYTES", (1, 300, 64 << 10)),
    (scrubber, "REST", (0.2, 1.0, 5.0)),
    (replication, "MESSAGE_BYTES", (200, 1_000, 1 << 20)),
    (replication, "WINDOW_BYTES", (200, 2_000, 8 << 20)),
    (install_snapshot, "PIECE_BYTES", (5_000, 20_000, 256 << 10)),
    (install_snapshot, "WINDOW_PIECES", (1, 2, 4)),
    (install_snapshot, "GIVE_UP_AFTER", (2, 20)),
    (engine, "APPLY_AT_ONCE", (1, 3, 512)),
    (proposals, "WINDOW", (1, 2, 4)),
    (proposals, "RETRY_AFTER", (2, 10)),
]


def draw(rng: random.Random, nodes: int) -> list[tuple[ModuleType, str, Any]]:
    """The limits of one run, each drawn for itself: one more here changes nothing else in the run."""
    seed = rng.getrandbits(64)
    sessions = (state_machine, "MAX_SESSIONS", (nodes + 1, nodes + 4, 1024))
    return [
        (module, name, random.Random(f"{seed} {name}").choice(values)) for module, name, values in [*CHOICES, sessions]
    ]


@contextmanager
def in_force(limits: list[tuple[ModuleType, str, Any]]) -> Iterator[None]:
    """Set module constants, and set them back."""
    before = [(module, name, getattr(module, name)) for module, name, _ in limits]
    try:
        for module, name, value in limits:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)

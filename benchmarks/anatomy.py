"""Where the time of one write goes, on the leader: marks set by the functions that a write passes through.

Runs in the process of the node, and replaces methods of the classes there, for the rest of its life.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from time import perf_counter
from typing import Any

from benchmarks.measure import percentile
from replidict.node.proposals import Proposals
from replidict.raft.progress import Peer
from replidict.raft.replication import Replication
from replidict.storage.store import Store

PHASES = {
    "taken": "until the node's thread takes it",
    "sent": "made an entry, sent to both followers",
    "stored": "committed to this node's own disk",
    "answered": "until a follower's answer is read",
    "applied": "counted and applied",
    "returned": "until the caller's thread runs again",
}
"""What happens, in order, by the mark at its end."""


def anatomy(write: Callable[[str, bytes], object], key: str, seconds: float) -> dict[str, float]:
    """Median microseconds of each phase, and of the whole; one write after the other."""
    marks: list[float] = []  # in the order of the phases, so far

    def mark(owner: type, name: str, phase: str) -> None:
        original, position = getattr(owner, name), list(PHASES).index(phase)

        def marked(*arguments: Any) -> Any:
            found = original(*arguments)
            if len(marks) == position:
                marks.append(perf_counter())
            return found

        setattr(owner, name, marked)

    mark(Proposals, "_gather", "taken")
    mark(Replication, "send", "sent")
    mark(Store, "commit", "stored")
    mark(Peer, "acknowledged", "answered")
    mark(Proposals, "_on_batch", "applied")
    found: dict[str, list[float]] = {name: [] for name in (*PHASES, "whole")}
    value, end = os.urandom(100), perf_counter() + seconds
    while (start := perf_counter()) < end:
        marks.clear()
        write(key, value)
        times = [start, *marks, perf_counter()]
        for name, (before, after) in zip(PHASES, pairwise(times), strict=True):
            found[name].append((after - before) * 1e6)
        found["whole"].append((times[-1] - start) * 1e6)
    return {name: percentile(sorted(each), 0.5) for name, each in found.items()}

"""Numbers that are never given out twice, by any node, at the cost of one write per thousand.

Each process takes a block of numbers with one `increment` and hands them out from memory. What is left of a block when
its process dies is never used: unique and growing per process, but with gaps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/unique_ids.py`

from examples.local import Dict, three_nodes
from replidict import NotCommitted, OutcomeUnknown


def take_block(d: Dict, name: str, size: int) -> range:
    """A block of numbers that is this caller's alone."""
    while True:
        try:
            end = int(d.increment(name, size))
        except (NotCommitted, OutcomeUnknown):
            continue  # taken or not, the next round takes another one; at worst this block is never used
        return range(end - size, end)


def unique_ids(d: Dict, name: str, block: int = 1000) -> Iterator[int]:
    while True:
        yield from take_block(d, name, block)


def main() -> None:
    with three_nodes() as nodes, ThreadPoolExecutor() as threads:
        taken = threads.map(lambda node: list(islice(unique_ids(node, "invoice"), 2500)), nodes)
        numbers = [number for per_node in taken for number in per_node]
        print(f"{len(numbers)} numbers on {len(nodes)} nodes, {len(set(numbers))} of them different")


if __name__ == "__main__":
    main()

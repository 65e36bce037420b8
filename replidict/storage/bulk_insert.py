"""Many rows in few statements.

`executemany` lets go of the interpreter lock once a row, and waits to get it back: beside threads that compute, up to a
switch interval each time. A statement of many rows does so once, and costs less besides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

_MANY = 256  # rows in a statement; few sizes, so that SQLite's compiled statements are used again
_SOME = 32


def put(connection: sqlite3.Connection, head: str, tail: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run `head (?, ...), (?, ...) tail` for all rows, in order. Raises `sqlite3.Error`."""
    start = 0
    while start < len(rows):
        left = len(rows) - start
        count = _MANY if left >= _MANY else min(left, _SOME)
        taken = rows[start : start + count]
        unit = f"({', '.join('?' * len(taken[0]))})"
        connection.execute(f"{head} {', '.join([unit] * count)} {tail}", list(chain.from_iterable(taken)))
        start += count

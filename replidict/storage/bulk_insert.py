"""Inserts many rows with few statements.

`executemany` lets go of the interpreter lock once a row, and waits to get it back: beside threads that compute, up to a
switch interval each time. A statement of many rows does so once, and costs less besides.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

_MANY = 256  # rows in a statement; few sizes, so that SQLite's compiled statements are used again
_SOME = 32


def put(connection: sqlite3.Connection, head: str, tail: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run `head (?, ...), (?, ...) tail` for all rows, in order. Raises `sqlite3.Error`."""
    start, total = 0, len(rows)
    while start < total:
        left = total - start
        count = _MANY if left >= _MANY else min(left, _SOME)
        taken = rows[start : start + count]
        connection.execute(_statement(head, tail, len(taken[0]), count), list(chain.from_iterable(taken)))
        start += count


@cache
def _statement(head: str, tail: str, width: int, count: int) -> str:
    unit = f"({', '.join('?' * width)})"
    return f"{head} {', '.join([unit] * count)} {tail}"

"""Running the body of a transaction: when it is run again, and when to give up."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from replidict.api.commit import conflict
from replidict.api.transaction_view import Changed, Transaction
from replidict.brief import brief
from replidict.node.blocking_calls import rounded
from replidict.node.node import Node

FIRST_PAUSE = 0.001
"""Seconds that a body waits at most before it is run for the second time; before each further time it is twice as
long."""
LONGEST_PAUSE = 0.1


class Body:
    """The context in which the body of a transaction runs. It keeps the error of a body that saw changes by others."""

    def __init__(self, t: Transaction[Any, Any]) -> None:
        self._t = t
        self.error: BaseException | None = None
        """What ended it, although what it had read was not current any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not (_is_changed(error) or (isinstance(error, Exception) and self._t.stale())):
            return False
        self.error = error
        return True


def _is_changed(error: BaseException) -> bool:
    """Whether this is, or is made only of, what ends a body that would see two moments."""
    return isinstance(error, Changed) or (isinstance(error, BaseExceptionGroup) and error.split(Changed)[1] is None)


class Attempts:
    """Counts the attempts of a transaction, and limits their number and time."""

    def __init__(self, node: Node, seconds: float, most: int | None) -> None:
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ValueError(f"attempts={brief(most)}: must be a positive number of calls, or None")
        self._seconds, self._most = seconds, most
        self._clock, self._rng = node.engine.clock, node.engine.rng
        self._deadline = self._clock() + seconds
        self._runs = 1

    def seconds(self) -> float:
        """The seconds left for the writes of this run."""
        return self._seconds if self._runs == 1 else max(self._deadline - self._clock(), 0.0)

    def pause(self, keys: Sequence[Any]) -> float:
        """This run failed because others changed these keys. Returns the seconds to wait before the next one.

        Raises `TransactionConflict` when there is to be none.
        """
        pause = self._rng.uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._runs - 1, 16)))
        if self._runs == self._most or self._clock() + pause >= self._deadline:
            runs, seconds = self._runs, rounded(self._seconds)
            within = "" if runs == self._most else f" within {seconds} s"
            raise conflict(keys, f"so it was in all {runs} attempts{within}, and nothing was written")
        self._runs += 1
        return pause


def check_plain(function: Any) -> None:
    """Raise `TypeError` for a coroutine function."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            "transact() calls a plain function, but this is a coroutine function: use `await d.aio.transact(...)`"
        )

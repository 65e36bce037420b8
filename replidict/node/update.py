"""Writes many pairs: as one command if they fit into one, otherwise as several in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from replidict.errors import ClosedError, NotCommitted, OutcomeUnknown, StorageError
from replidict.machine import commands as cmd
from replidict.node.steps import Prepared, Steps

Pairs = list[tuple[bytes, bytes]]


def update(parts: Iterable[tuple[Pairs, int]], count: int, seconds: float, clock: Callable[[], float]) -> Steps[None]:
    """Store all pairs, in parts of about the given size, in order, all of them within `seconds`."""
    deadline, stored = clock() + seconds, 0
    for pairs, size in parts:
        try:
            yield Prepared(cmd.Update(pairs), size), max(deadline - clock(), 0.0) if stored else seconds
        except (NotCommitted, OutcomeUnknown) as error:
            if not stored:
                raise
            raise in_part(stored, count, error) from error
        except (ClosedError, StorageError) as error:
            if not stored:
                raise
            raise type(error)(f"{error}; {_stored(stored, count)}") from error
        stored += len(pairs)


def in_part(stored: int, whole: int, error: NotCommitted | OutcomeUnknown) -> OutcomeUnknown:
    """The error for an update that failed after a number of entries had been stored."""
    others = "the others are not" if isinstance(error, NotCommitted) else "some of the others may be"
    return OutcomeUnknown(
        f"{_stored(stored, whole)}, and {others}: it was larger than "
        "Options(max_command_bytes=...), and its time ran out, or the majority was gone. To do it again completes it"
    )


def _stored(stored: int, whole: int) -> str:
    return f"the first {stored:,} of the {whole:,} entries of this update are stored"

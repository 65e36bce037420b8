"""Calls that make several writes in turn, written once for threads and for coroutines.

Such a call is a generator. It yields one write at a time, and is sent the write's result or thrown its error.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeAlias, TypeVar

from replidict.errors import ReplidictError
from replidict.machine import commands as cmd
from replidict.node.blocking_calls import write
from replidict.node.node import Node

Returned = TypeVar("Returned")


class Prepared(NamedTuple):
    """An operation that is to be written, and its approximate size in bytes."""

    operation: cmd.Operation
    size: int


Steps: TypeAlias = Generator[tuple[Prepared, float], cmd.Result, Returned]
"""Each step: what is to be written, and within how many seconds."""


def run(node: Node, steps: Steps[Returned]) -> Returned:
    """Make the steps in this thread."""
    try:
        prepared, seconds = next(steps)
        while True:
            try:
                result = write(node, *prepared, seconds)
            except ReplidictError as error:
                prepared, seconds = steps.throw(error)
            else:
                prepared, seconds = steps.send(result)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]

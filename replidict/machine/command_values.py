"""The values that a command may store, as they stand in it."""

from __future__ import annotations

from collections.abc import Iterator

from replidict.machine import commands as cmd


def values(command: cmd.Command) -> Iterator[bytes]:
    """All of them, encoded, in the order in which the command has them."""
    if isinstance(command, cmd.Batch):
        for operation in command.operations:
            yield from _of(operation)


def _of(operation: cmd.Operation) -> Iterator[bytes]:
    match operation:
        case cmd.Put() | cmd.Add() | cmd.SetDefault() | cmd.CompareAndSet() | cmd.Replace():
            yield operation.value
        case cmd.Update(items):
            for _, value in items:
                yield value
        case cmd.Transact():
            for write in operation.writes:
                yield from _of(write)
        case cmd.Expiring() | cmd.Fenced():
            yield from _of(operation.operation)

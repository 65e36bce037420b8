"""The command that adds to a stored number, and the meaning of its result."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from replidict.brief import brief
from replidict.machine import commands as cmd
from replidict.machine.arithmetic import number
from replidict.machine.codec import DEFAULT_CODEC
from replidict.node.call_arguments import encoded_key, encoded_value
from replidict.options import Options


def increment_of(key: Hashable, by: Any, default: Any, options: Options) -> cmd.Increment:
    """The operation that adds to a number. Raises `TypeError` if `by` or `default` is none."""
    number(by), number(default)
    amounts = (encoded_value(amount, DEFAULT_CODEC, options) for amount in (by, default))
    return cmd.Increment(encoded_key(key, options), *amounts)


def sum_of(key: Hashable, operation: cmd.Increment, result: cmd.Result) -> bytes:
    """The new value, encoded. Raises `TypeError` or `OverflowError` if there is none."""
    if isinstance(result, bytes):
        return result
    kind = type(DEFAULT_CODEC.decode(operation.by)).__name__
    if result is None:
        raise TypeError(f"the value of {brief(key)} is not a number that a {kind} can be added to; it is unchanged")
    raise OverflowError(
        f"the value of {brief(key)} was not changed: the sum has too many digits, or is too large for a float"
    )

"""Removes a key and returns its value. A value that this machine can't decode is not removed.

Rules kept here:

1. A value that every machine can decode is removed by one command, however many others pop as well.
2. Any other value, and every value of a user's codec, is read and decoded first, and then removed on the condition that
   it is still the same.
3. Below the feature level of these commands it is removed without a condition, and a value written in between is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal

from replidict.brief import brief
from replidict.errors import NotCommitted
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, decode_key, encode_key
from replidict.machine.equality import key_at
from replidict.machine.stored_values import removed_value_of, value_of
from replidict.node.blocking_calls import rounded
from replidict.node.node import Node
from replidict.node.steps import Prepared, Steps

Decode = Callable[[bytes], Any]

NO_REVISION = 0
"""No value has it: revisions begin with 1."""
_ANY_KEY = encode_key(None)


def pop(node: Node, decode: Decode, key: Hashable, encoded: bytes, seconds: float) -> Steps[Any]:
    """Remove a key and return its value. Raises `KeyError`, `DecodingError`, and what `write` raises."""
    if node.machine.level < cmd.LEVEL_OF[cmd.Remove]:
        item = node.machine.find(key)
        if item is not None:
            value_of(decode, key, item.value)
        data = yield Prepared(cmd.Pop(encoded), len(encoded)), seconds
        if not isinstance(data, bytes):
            raise KeyError(key)
        return removed_value_of(decode, key, data)

    taken = yield from _take(decode, cmd.Take(encoded), seconds)
    if taken is None:
        raise KeyError(key)
    if taken is not False:
        return decode(taken[1])

    def look() -> tuple[cmd.Remove, Any]:
        item = node.machine.find(key)
        if item is None:
            return cmd.Remove(encoded, NO_REVISION), None
        return cmd.Remove(encoded, item.revision), value_of(decode, key, item.value)

    removed, value = yield from _remove(node, look, f"the value of key {brief(key)}", seconds)
    if not removed:
        raise KeyError(key)
    return value


def popitem(node: Node, decode: Decode, seconds: float) -> Steps[tuple[Any, Any]]:
    """Remove the key inserted last and return it with its value. Raises `KeyError`, and what `pop` raises."""
    if node.machine.level < cmd.LEVEL_OF[cmd.Remove]:
        _last(node, decode)
        pair = yield Prepared(cmd.PopItem(), 0), seconds
        if not isinstance(pair, list):
            raise KeyError("popitem(): dictionary is empty")
        return (key := decode_key(pair[0])), removed_value_of(decode, key, pair[1])
    taken = yield from _take(decode, cmd.Take(), seconds)
    if taken is None:
        raise KeyError("popitem(): dictionary is empty")
    if taken is not False:
        return decode_key(taken[0]), decode(taken[1])
    removed, last = yield from _remove(node, lambda: _last(node, decode), "the key inserted last", seconds)
    if not removed:
        raise KeyError("popitem(): dictionary is empty")
    return last  # type: ignore[no-any-return]


def _take(decode: Decode, operation: cmd.Take, seconds: float) -> Steps[list[bytes] | Literal[False] | None]:
    """Rule 1: the pair that was removed, None if there is none; False where rule 2 counts."""
    if decode is not DEFAULT_CODEC.decode:
        return False
    return (yield Prepared(operation, len(operation.key or b"")), seconds)  # type: ignore[return-value]


def _last(node: Node, decode: Decode) -> tuple[cmd.Remove, Any]:
    while True:
        try:
            where, item = next(reversed(node.machine.items.items()), (None, None))
            break
        except RecursionError:
            raise
        except RuntimeError:  # it was changed between the two calls
            pass
    if item is None:
        return cmd.Remove(_ANY_KEY, NO_REVISION, last=True), None
    key = key_at(where, item.key)
    return cmd.Remove(item.key, item.revision, last=True), (key, value_of(decode, key, item.value))


def _remove(
    node: Node, look: Callable[[], tuple[cmd.Remove, Any]], what: str, seconds: float
) -> Steps[tuple[bool, Any]]:
    """Remove what `look` finds; look again if it was changed meanwhile. Returns whether there was anything, and its
    value."""
    deadline, left = node.engine.clock() + seconds, seconds
    while True:
        operation, found = look()
        removed = yield Prepared(operation, len(operation.key)), left
        if removed is not False:
            return removed is True, found
        left = deadline - node.engine.clock()
        if left <= 0:
            raise NotCommitted(
                f"{what} was changed again and again by others for {rounded(seconds)} s, and not removed: try again"
            )

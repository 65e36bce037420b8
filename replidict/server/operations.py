"""What can be written, once for all who ask for it: programs, their coroutines, HTTP, and clients of the node.

Each operation is told as steps: what is encoded and sent, and what the answer means. Nothing waits here: threads and
coroutines have the steps made in their own ways.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from replidict.machine import commands as cmd
from replidict.machine.codec import Codec
from replidict.machine.stored_values import value_of
from replidict.node.call_arguments import (
    check_comparable,
    encoded_key,
    encoded_value,
    in_commands,
    pairs_of,
    revision_of,
    text_of,
    ttl_of,
)
from replidict.node.held_leases import milliseconds
from replidict.node.increments import increment_of, sum_of
from replidict.node.node import Node
from replidict.node.pop import pop, popitem
from replidict.node.steps import Prepared, Steps
from replidict.node.update import update
from replidict.options import Options

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Keyed: TypeAlias = cmd.Put | cmd.Add | cmd.CompareAndSet | cmd.Replace
Written = TypeVar("Written", bound=Keyed)


class Modifiers(NamedTuple):
    """What a write of a key may have besides: an end of the key, and a lock that must be held."""

    ttl_ms: int | None = None
    lease: int | None = None
    """The id of the lease that the key hangs on."""
    fence: tuple[str, int] | None = None
    """The name of the lock, and the token with which it must be held."""

    def expiring(self, operation: Written) -> Written | cmd.Expiring:
        """The write with the end of its key, if that has one."""
        if self.ttl_ms is None and self.lease is None:
            return operation
        return cmd.Expiring(operation, self.ttl_ms, self.lease)

    def on(self, operation: Keyed) -> cmd.Operation:
        """The write with all of these."""
        return fenced(self.expiring(operation), self.fence)


PLAIN = Modifiers()


def fenced(operation: Keyed | cmd.Expiring | cmd.Transact, fence: tuple[str, int] | None) -> cmd.Operation:
    """The write, to be refused unless the lock is held, if there is one."""
    return operation if fence is None else cmd.Fenced(*fence, operation)


class Operations(Generic[K, V]):
    """The operations of one dict, named and with arguments as its methods; `seconds` is the time to wait."""

    def __init__(self, node: Node, codec: Codec, options: Options) -> None:
        self._node, self._codec, self._options = node, codec, options
        self._decode: Callable[[bytes], Any] = codec.decode

    def _key(self, key: object) -> bytes:
        return encoded_key(key, self._options)

    def _value(self, value: object) -> bytes:
        return encoded_value(value, self._codec, self._options)

    def put(self, key: K, value: V, modifiers: Modifiers) -> Prepared:
        """The write of `set` and `submit`."""
        encoded, data = self._key(key), self._value(value)
        put = cmd.Put(encoded, data)
        return Prepared(put if modifiers is PLAIN else modifiers.on(put), len(encoded) + len(data))

    def set(self, key: K, value: V, modifiers: Modifiers, seconds: float) -> Steps[int]:
        """Store a value; its revision."""
        return (yield self.put(key, value, modifiers), seconds)  # type: ignore[return-value]

    def add(self, key: K, value: V, modifiers: Modifiers, seconds: float) -> Steps[bool]:
        """Store a value if there is none; whether it was stored."""
        encoded, data = self._key(key), self._value(value)
        operation = modifiers.on(cmd.Add(encoded, data))
        return (yield Prepared(operation, len(encoded) + len(data)), seconds) is True

    def compare_and_set(self, key: K, expected: V, value: V, modifiers: Modifiers, seconds: float) -> Steps[bool]:
        """Store a value if there is an equal one; whether it was stored."""
        encoded, old, data = self._key(key), self._value(expected), self._value(value)
        present = self._node.machine.find(key)
        check_comparable(self._codec, [old, data] if present is None else [old, data, present.value])
        operation = modifiers.on(cmd.CompareAndSet(encoded, old, data))
        return (yield Prepared(operation, len(encoded) + len(old) + len(data)), seconds) is True

    def replace(self, key: K, value: V, revision: int, modifiers: Modifiers, seconds: float) -> Steps[bool]:
        """Store a value if the one that is there has this revision; whether it was stored."""
        operation = cmd.Replace(self._key(key), self._value(value), revision_of(revision))
        size = len(operation.key) + len(operation.value)
        return (yield Prepared(modifiers.on(operation), size), seconds) is True

    def delete(self, key: K, seconds: float) -> Steps[bool]:
        """Remove a key; whether it was there."""
        encoded = self._key(key)
        return (yield Prepared(cmd.Delete(encoded), len(encoded)), seconds) is True

    def pop(self, key: K, seconds: float) -> Steps[Any]:
        """Remove a key; its value."""
        return pop(self._node, self._decode, key, self._key(key), seconds)

    def popitem(self, seconds: float) -> Steps[tuple[Any, Any]]:
        """Remove the last pair; it."""
        return popitem(self._node, self._decode, seconds)

    def setdefault(self, key: K, default: Any, seconds: float) -> Steps[Any]:
        """Store a value if there is none; the one that is there."""
        encoded, data = self._key(key), self._value(default)
        fresh = value_of(self._decode, key, data)  # now: what can't be decoded is not stored
        found = yield Prepared(cmd.SetDefault(encoded, data), len(encoded) + len(data)), seconds
        assert isinstance(found, bytes)
        return fresh if found == data else value_of(self._decode, key, found)

    def clear(self, seconds: float) -> Steps[None]:
        """Remove everything."""
        yield Prepared(cmd.Clear(), 0), seconds

    def update(self, other: Any, values: dict[str, Any], seconds: float) -> Steps[None]:
        """Store many values."""
        pairs: Iterable[tuple[Any, Any]] = pairs_of(other, values)
        encoded = [(self._key(key), self._value(value)) for key, value in pairs]
        parts = in_commands(encoded, self._options.max_command_bytes)
        return update(parts, len(encoded), seconds, self._node.engine.clock)

    def increment(
        self, key: K, by: int | float | Decimal, default: int | float | Decimal, seconds: float
    ) -> Steps[int | float | Decimal]:
        """Add to a number; the sum."""
        operation = increment_of(key, by, default, self._options)
        size = len(operation.key) + len(operation.by) + len(operation.default)
        data = sum_of(key, operation, (yield Prepared(operation, size), seconds))
        return value_of(self._decode, key, data)  # type: ignore[no-any-return]

    def expire(self, key: object, ttl: float | None, seconds: float) -> Steps[bool]:
        """Have a key go later, or never; whether it is there."""
        encoded = self._key(key)
        ttl_ms = None if ttl is None else milliseconds(ttl_of(ttl))
        return (yield Prepared(cmd.Expire(encoded, ttl_ms), len(encoded)), seconds) is True

    def break_lock(self, name: str, token: int, seconds: float) -> Steps[bool]:
        """Take a lock from its holder; whether it had it."""
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**63:
            raise ValueError(f"token={token!r}: must be a token, as locks() gives it")
        return (yield Prepared(cmd.BreakLock(text_of(name, "name", 1), token), 64 + len(name)), seconds) is True

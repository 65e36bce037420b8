"""`OwnWrites`: what a transaction has written, on top of what it reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from replidict.machine import commands as cmd
from replidict.machine.changes import Item


class Own:
    """The transaction's own writes to one key, in order, and the resulting value, or None if the key is removed.

    One that was removed and stored again has `moved` to the end of the dict.
    """

    __slots__ = ("moved", "operations", "value")

    def __init__(self, value: bytes | None, *operations: cmd.Put | cmd.Delete | cmd.Increment | cmd.Expiring) -> None:
        self.value = value
        self.operations = list(operations)
        self.moved = False


class OwnWrites(dict[Hashable, Own]):
    """The writes of one transaction by key, in the order in which the keys come at the end of the dict."""

    def store(self, key: Hashable, operation: cmd.Put | cmd.Increment | cmd.Expiring, data: bytes) -> None:
        """The operation stores `data` under the key."""
        own = self.get(key)
        if own is None:
            self[key] = Own(data, operation)
            return
        if own.value is None:  # it comes again, behind all others
            del self[key]
            self[key] = own
            own.moved = True
        elif not isinstance(operation, cmd.Increment):
            # What it had before does not matter, but the key stays, as in `dict`.
            operation = _under(_key_of(own.operations[own.moved]), operation)
            del own.operations[own.moved :]
        own.operations.append(operation)
        own.value = data

    def remove(self, key: Hashable, encoded: bytes) -> None:
        """The key is removed."""
        self[key] = Own(None, cmd.Delete(encoded))

    def over(self, base: Mapping[Hashable, Item]) -> dict[Any, Any]:
        """All keys of the dict with these writes, in order, each with what has its value."""
        found: dict[Any, Any] = {}
        for key, item in base.items():
            own = self.get(key)
            if own is None:
                found[key] = item
            elif own.value is not None and not own.moved:
                found[key] = own
        return found | {key: own for key, own in self.items() if own.value is not None and key not in found}

    def operations(self) -> list[cmd.Put | cmd.Delete | cmd.Increment | cmd.Expiring]:
        """All operations, in an order in which they can be applied."""
        return [operation for own in self.values() for operation in own.operations]


def _key_of(operation: cmd.Put | cmd.Delete | cmd.Increment | cmd.Expiring) -> bytes:
    return operation.operation.key if isinstance(operation, cmd.Expiring) else operation.key


def _under(key: bytes, operation: cmd.Put | cmd.Expiring) -> cmd.Put | cmd.Expiring:
    """The same operation with another form of the key."""
    if isinstance(operation, cmd.Expiring):
        return cmd.Expiring(cmd.Put(key, operation.operation.value), operation.ttl_ms, operation.lease)
    return cmd.Put(key, operation.value)

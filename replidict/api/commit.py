"""The command that a transaction sends: its checks and its writes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from replidict.api.held_lock import Held
from replidict.api.modifiers import fence_of
from replidict.brief import brief
from replidict.errors import EncodingError, TransactionConflict
from replidict.machine import commands as cmd
from replidict.machine.codec import Codec, decode_key
from replidict.node.call_arguments import encoded_key, encoded_value
from replidict.node.increments import increment_of
from replidict.node.node import Node
from replidict.node.steps import Prepared, Steps, run
from replidict.options import Options
from replidict.server.operations import fenced

SHOWN = 3
"""Keys that the text of a conflict names."""


class Commit:
    """The checks and writes of one command. Arguments are checked when they are added; nothing is read here."""

    def __init__(self, node: Node, codec: Codec, options: Options) -> None:
        self._node, self._codec, self._options = node, codec, options
        self.checks: list[tuple[bytes, int | None]] = []
        self.writes: list[cmd.Put | cmd.Delete | cmd.Increment | cmd.Expiring] = []
        self.whole: int | None = None
        """The revision that the whole dict must have."""

    def expect(self, key: Hashable, revision: int | None) -> None:
        """Do it only if the key was last written by this revision, or is absent (None)."""
        self.checks.append((encoded_key(key, self._options), revision))

    def set(self, key: Hashable, value: Any) -> None:
        """Store a value."""
        self.writes.append(cmd.Put(encoded_key(key, self._options), encoded_value(value, self._codec, self._options)))

    def discard(self, key: Hashable) -> None:
        """Remove a key, if it is there."""
        self.writes.append(cmd.Delete(encoded_key(key, self._options)))

    def increment(self, key: Hashable, by: Any, default: Any = 0) -> None:
        """Add to a number. Raises `TypeError` if it is none that can be added."""
        self.writes.append(increment_of(key, by, default, self._options))

    def send(self, seconds: float, fence: Held | None = None) -> int:
        """Apply it within `seconds`, if the lock of `fence` is still held.

        Returns the revision of all writes. Raises `TransactionConflict`, `LockLost`, `LeaseLost`, `TypeError` (a value
        that can't be incremented), `EncodingError` (too large), and what other writes raise. Nothing is written then,
        but for `OutcomeUnknown`.
        """
        return run(self._node, self.steps(seconds, fence))

    def steps(self, seconds: float, fence: Held | None) -> Steps[int]:
        """The steps of `send`, for threads and coroutines."""
        operation, size = self.operation()
        found = yield Prepared(fenced(operation, fence_of(fence)), size), seconds
        if isinstance(found, list):
            raise conflict([decode_key(key) for key in found])
        if isinstance(found, bytes):
            raise TypeError(
                f"the value of {brief(decode_key(found))} can't be incremented by this number: nothing was written"
            )
        assert isinstance(found, int)
        return found

    def operation(self) -> tuple[cmd.Transact, int]:
        """All of it as one operation, and its bytes. Raises `EncodingError` if it is too large."""
        operation = cmd.Transact(self.checks, self.writes, self.whole)
        size = len(cmd.encode(operation))
        self._check_size(size)
        return operation, size

    def _check_size(self, size: int) -> None:
        most = self._options.max_command_bytes
        if len(self.writes) == 1:  # a value alone may have more bytes than that, as it may elsewhere
            most += len(getattr(self.writes[0], "value", b""))
        if size > most:
            raise EncodingError(
                f"this transaction has {size} bytes, encoded, more than the {self._options.max_command_bytes} "
                "of Options(max_command_bytes=...): it is one command, which is never split. Nothing was written"
            )


def conflict(
    keys: Sequence[Hashable], then: str = "nothing was written; run the transaction again"
) -> TransactionConflict:
    """The error for keys that have changed, or, without keys, for the dict as a whole."""
    if keys:
        what = ", ".join(brief(key) for key in keys[:SHOWN])
        more = len(keys) - SHOWN
        what += f" and {more} more" * (more > 0)
    else:
        what = "the dict, which the transaction counted or iterated over,"
    return TransactionConflict(f"{what} changed since the transaction read it: {then}", tuple(keys))

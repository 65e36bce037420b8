"""Invariants of watches: what the log says happened, derived from commands and results by a model of its own, and what
watchers are told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from replidict.machine import commands as cmd
from replidict.machine.changes import KeyChange
from replidict.machine.codec import DEFAULT_CODEC, decode, encode
from replidict.machine.equality import place
from replidict.machine.outcomes import BatchApplied, Outcome
from replidict.machine.transactions import incremented
from replidict.node.waiters import Interest
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine

LEASED = encode("leased")
"""The value of a key that ends with a lease."""

Told = tuple[str, bytes, bytes | None, bytes | None]
"""(kind, key as it is stored, value, previous value)"""


class WatchChecks:
    """All changes since the beginning, by revision."""

    def __init__(self) -> None:
        self.truth: list[list[Told]] = [[]]
        self._items: dict[Hashable, tuple[bytes, bytes]] = {}

    def applied(self, machine: Machine, command: bytes, outcome: Outcome) -> None:
        """An entry was applied for the first time anywhere."""
        assert machine.node is not None
        revision = machine.node.machine.revision
        if revision == len(self.truth) - 1:
            return
        ended = machine.node.machine._told  # what has ended by itself, or with a lease: `check_coordination` says when
        if not isinstance(outcome, BatchApplied):
            self.truth.append([self._removed(place(each[3]), "expire") for each in ended if each[0] == len(self.truth)])
            return
        batch = cmd.decode(command)
        assert isinstance(batch, cmd.Batch) and isinstance(outcome.results, list)
        for operation, result in zip(batch.operations, outcome.results, strict=True):
            if isinstance(operation, cmd.Fenced):
                operation = operation.operation
            if isinstance(operation, cmd.Expiring):
                operation = operation.operation
            if isinstance(operation, cmd.EndLeases):
                leased = [each for each in ended if each[0] == len(self.truth) and each[5] == LEASED]
                told = [self._removed(place(each[3])) for each in leased] or None
            else:
                told = self._done(operation, result)
            if told is not None:
                self.truth.append(told)
        if revision != len(self.truth) - 1:
            raise Violation(
                "watch", f"{machine.address}: {batch} leads to revision {revision}, not {len(self.truth) - 1}"
            )

    def _done(self, operation: cmd.Operation, result: cmd.Result) -> list[Told] | None:
        """What an operation changed that gave this; None if it changed nothing."""
        if isinstance(result, str) or result is False or result is None:
            return None
        match operation:
            case cmd.Update(pairs):
                return [self._set(key, value) for key, value in pairs]
            case cmd.Put(key, value) | cmd.Add(key, value):
                return [self._set(key, value)]
            case cmd.CompareAndSet(key, _, value) | cmd.Replace(key, value, _):
                return [self._set(key, value)]
            case cmd.SetDefault(key, value):
                return [self._set(key, value)] if place(key) not in self._items else None
            case cmd.Delete(key) | cmd.Pop(key):
                return [self._removed(place(key))]
            case cmd.PopItem():
                return [self._removed(next(reversed(self._items)))]
            case cmd.Clear():
                return [self._removed(key) for key in list(self._items)] or None
            case cmd.Increment(key) if isinstance(result, bytes):
                return [self._set(key, result)]
            case cmd.Transact(_, writes):
                return self._transacted(writes) if result == len(self.truth) else None
            case cmd.OpenLease() | cmd.RenewLeases() | cmd.Acquire() | cmd.Release() | cmd.BreakLock() | cmd.Expire():
                return None
        raise AssertionError(operation)

    def _transacted(self, writes: Sequence[cmd.Put | cmd.Delete | cmd.Increment | cmd.Expiring]) -> list[Told]:
        told = []
        for each in writes:
            write = each.operation if isinstance(each, cmd.Expiring) else each
            key = place(write.key)
            if isinstance(write, cmd.Put):
                told.append(self._set(write.key, write.value))
            elif isinstance(write, cmd.Increment):
                value = incremented(write, self._items[key][1] if key in self._items else None, DEFAULT_CODEC)
                assert isinstance(value, bytes)
                told.append(self._set(write.key, value))
            elif key in self._items:
                told.append(self._removed(key))
        return told

    def _set(self, encoded: bytes, value: bytes) -> Told:
        key = place(encoded)
        stored, previous = self._items.get(key, (encoded, None))
        self._items[key] = (stored, value)
        return "set", stored, value, previous

    def _removed(self, key: Hashable, kind: str = "delete") -> Told:
        stored, previous = self._items.pop(key)
        return kind, stored, None, previous

    # -- what watchers are told ---------------------------------------------------------------------------------------

    def told(self, who: str, interest: Interest, last: int, revision: int, changes: Sequence[KeyChange]) -> None:
        """Somebody who was at `last` is told of a revision."""
        self.passed(who, interest, last, revision - 1)
        expected = self._of(interest, revision) if last < revision < len(self.truth) else None
        found = [(kind, key, value, previous) for _, kind, _, key, value, previous in changes]
        if found != expected or any(change[0] != revision for change in changes):
            raise Violation("watch", f"{who}, at {last}, is told {found} of {revision}; it was {expected}")

    def passed(self, who: str, interest: Interest, last: int, revision: int) -> None:
        """Somebody takes it that nothing of interest happened behind `last`, up to a revision."""
        for missed in range(last + 1, min(revision + 1, len(self.truth))):
            if events := self._of(interest, missed):
                raise Violation("watch", f"{who} went from {last} on to {revision}, and was never told {events}")

    def _of(self, interest: Interest, revision: int) -> list[Told]:
        return [told for told in self.truth[revision] if interest.covers(place(told[1]))]

    def markers(self) -> Counter[str]:
        """By how many commands each value was set, by its marker."""
        commands = ({told[2] for told in command if told[2] is not None} for command in self.truth)
        return Counter(str(decode(value)).split("|")[0] for values in commands for value in values)

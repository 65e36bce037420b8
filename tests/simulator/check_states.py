"""Invariants of the state: equal everywhere, each effect once, and as fresh as a node believes."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from replidict.machine import commands as cmd
from replidict.machine.outcomes import BatchApplied, Outcome
from replidict.machine.state_machine import StateMachine
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine
    from tests.simulator.check_logs import LogChecks
    from tests.simulator.check_watches import WatchChecks
    from tests.simulator.cluster import Cluster

_encode = msgspec.msgpack.Encoder().encode


def state_digest(machine: StateMachine) -> bytes:
    """Stands for all of a state machine."""
    kept = {**machine.kept, **machine._changes.kept, **machine.coordination.changed_rows}
    state = (
        machine.revision, machine._next_position, list(machine.items), list(machine.items.values()),
        list(machine.sessions.items()), machine.level,
        sorted((name, data) for name, data in kept.items() if data is not None),
    )  # fmt: skip
    return hashlib.blake2b(_encode(state), digest_size=8).digest()


class Effect:
    """What a write with a marker in its value did, and where."""

    __slots__ = ("index", "result")

    def __init__(self, index: int, result: cmd.Result) -> None:
        self.index = index
        self.result = result


class StateChecks:
    """What the state was at each index, and what each write did."""

    def __init__(self, cluster: Cluster, logs: LogChecks, watches: WatchChecks) -> None:
        self._cluster = cluster
        self._logs = logs
        self._watches = watches
        self._digests: dict[int, bytes] = {0: state_digest(StateMachine(_NoCodec()))}
        self.effects: dict[str, Effect] = {}
        self.first_applied = 0
        self.rules: list[Callable[[StateMachine], str | None]] = []
        """What must hold of every state, on every node; each says what does not."""

    def applied(self, machine: Machine, index: int, command: bytes, outcome: Outcome) -> None:
        """A node applied an entry."""
        if index > self.first_applied:
            if index != self.first_applied + 1:
                raise Violation("apply", f"{machine.address} applies {index}; nobody applied {self.first_applied + 1}")
            self.first_applied = index
            self._take_effects(index, command, outcome)
            self._watches.applied(machine, command, outcome)
            self._cluster.checker.coordination.applied(machine, command, outcome)
        self.state(machine, "applied")

    def state(self, machine: Machine, how: str) -> None:
        """A node holds the state at some index."""
        if machine.differs:
            return
        assert machine.node is not None
        state = machine.node.machine
        index = state.applied_index
        digest = state_digest(state)
        for rule in self.rules:
            if (broken := rule(state)) is not None:
                raise Violation("rule", f"{machine.address} at {index} ({how}): {broken}")
        known = self._digests.setdefault(index, digest)
        if known != digest:
            raise Violation(
                "determinism",
                f"the state of {machine.address} at {index} ({how}) is not the one that others have: "
                f"revision {state.revision}, {len(state.items)} items, sessions {list(state.sessions.items())}",
            )

    def _take_effects(self, index: int, command: bytes, outcome: Outcome) -> None:
        if not isinstance(outcome, BatchApplied) or not isinstance(outcome.results, list):
            return
        batch = cmd.decode(command)
        assert isinstance(batch, cmd.Batch)
        for operation, result in zip(batch.operations, outcome.results, strict=False):
            marker = marker_of(operation)
            if marker is None:
                continue
            known = self.effects.get(marker)
            if known is None:
                self.effects[marker] = Effect(index, result)
            elif known.result != result or not self._is_repetition(batch, index):
                raise Violation("exactly once", f"{marker} was applied by entry {known.index} and again by {index}")

    def _is_repetition(self, batch: cmd.Batch, index: int) -> bool:
        """Whether the state machine says that this entry changed nothing: its session was last used before."""
        for machine in self._cluster.machines.values():
            if machine.node is not None and machine.node.machine.applied_index == index:
                session = machine.node.machine.sessions.get(batch.session)
                return session is not None and session.used < index
        return False

    # -- knowledge --------------------------------------------------------------------------------------------------

    def fresh(self, machine: Machine, fresh_as_of: float, applied: int) -> None:
        """A node believes to have applied all that was committed at a time."""
        since = self._cluster.loop.now if fresh_as_of == float("inf") else machine.true_time(fresh_as_of)
        position = bisect_right(self._logs.commit_times, since - 1e-6)
        index = self._logs.commit_indices[position - 1] if position else 0
        if index > applied:
            assert machine.node is not None
            raise Violation(
                "freshness",
                f"{machine.address}, {machine.node.engine.role.name.lower()}, believes to know everything up to "
                f"{since:.4f}, when {index} was committed; it has applied {applied}",
            )

    def acknowledged(self, machine: Machine, marker: str, result: Any) -> None:
        """A client got the result of a write whose value is marked."""
        effect = self.effects.get(marker)
        if effect is None:
            raise Violation("exactly once", f"{machine.address}: {marker} was acknowledged and never applied")
        assert machine.node is not None
        if machine.node.machine.applied_index < effect.index:
            raise Violation("read your writes", f"{machine.address} has not applied {marker}, which it acknowledges")
        if effect.result != result:
            raise Violation("exactly once", f"{marker} gave {effect.result!r}, but its caller got {result!r}")


class _NoCodec:
    """For a state machine that never applies anything."""

    def encode(self, value: Any, /) -> bytes:
        raise NotImplementedError

    def decode(self, data: bytes, /) -> Any:
        raise NotImplementedError


def marker_of(operation: cmd.Operation) -> str | None:
    """What tells a write from all others: the value it brings."""
    if isinstance(operation, cmd.Update):
        value = operation.items[0][1]
    elif isinstance(operation, cmd.Put | cmd.Add | cmd.SetDefault | cmd.CompareAndSet | cmd.Replace):
        value = operation.value
    else:
        return None
    text = msgspec.msgpack.decode(value, type=str)
    return text.split("|")[0]

"""Guards of the state machine, and of those who wait for it."""

from __future__ import annotations

from typing import Any

import msgspec

from replidict.machine import commands as cmd
from replidict.machine import state_machine as module
from replidict.machine.changes import Session
from replidict.machine.outcomes import BatchApplied, Outcome, Refusal
from replidict.machine.state_machine import StateMachine
from replidict.node import proposals
from replidict.raft.divergence import Divergence
from replidict.raft.engine import Engine
from replidict.raft.forwarding import Forwarding
from replidict.testing.simulator.transport import SimulatedTransport
from tests.simulator import scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("6.3", 25)
def apply_a_batch_once() -> Replacements:
    """A batch that was sent twice is applied twice."""

    def apply_batch(self: StateMachine, index: int, batch: cmd.Batch) -> list[cmd.Result] | Refusal:
        session = self.sessions.get(batch.session)
        if session is None:
            return Refusal.NO_SESSION
        results = [self._perform(operation) for operation in batch.operations]
        self._keep_session(batch.session, Session(batch.sequence, index, ((batch.sequence, results),)))
        return results

    yield StateMachine, "_apply_batch", apply_batch


@guard("6.3", scenario=scenarios.a_batch_that_overtakes)
def refuse_a_gap() -> Replacements:
    """A batch overtakes an earlier one that was lost, which then counts as applied."""

    def apply_batch(self: StateMachine, index: int, batch: cmd.Batch) -> list[cmd.Result] | Refusal:
        session = self.sessions.get(batch.session)
        if session is not None and batch.sequence > session.sequence + 1:
            replies = session.replies
            self._keep_session(batch.session, Session(batch.sequence - 1, session.used, replies))
        return original(self, index, batch)

    original = StateMachine._apply_batch
    yield StateMachine, "_apply_batch", apply_batch


@guard("E7", 25)
def operations_never_raise() -> Replacements:
    """One operation that raises ends every node, again and again."""

    def perform(self: StateMachine, operation: cmd.Operation) -> cmd.Result:
        return module._PERFORM[type(operation)](self, operation)

    yield StateMachine, "_perform", perform


@guard("promise 5", scenario=scenarios.a_node_of_other_settings)
def apply_alike_or_stop() -> Replacements:
    """What one machine alone raises while it applies becomes a result there: it goes on, and differs from then on."""

    def perform(self: StateMachine, operation: cmd.Operation) -> cmd.Result:
        try:
            return original(self, operation)
        except Exception as error:  # noqa: BLE001 -- what the product must not do
            return f"{type(error).__name__}: {error}"

    original = StateMachine._perform
    yield StateMachine, "_perform", perform
    yield Divergence, "tick", lambda self: None  # which would find the difference a second later


@guard("E13", 25)
def tags_that_keep_their_meaning() -> Replacements:
    """Operations are told apart by their place in a sorted list, and the release that a node restarts with has one more
    of them: what was written before means something else."""
    kinds = sorted(module._PERFORM, key=lambda kind: kind.__name__)
    later: list[Any] = [kinds[0], None, *kinds[1:]]  # an `Append`

    def perform(self: StateMachine, operation: cmd.Operation) -> cmd.Result:
        kind = later[kinds.index(type(operation))] if self.__dict__.get("restarted") else type(operation)
        if kind is None:
            return "no such operation"
        fields = msgspec.structs.astuple(operation)
        try:
            return original(self, kind(*fields[: len(kind.__struct_fields__)]))
        except TypeError:
            return "too few arguments"

    def load(self: StateMachine, *arguments: Any, **options: Any) -> None:
        original_load(self, *arguments, **options)
        self.__dict__["restarted"] = self.applied_index > 0

    original, original_load = StateMachine._perform, StateMachine.load
    yield StateMachine, "_perform", perform
    yield StateMachine, "load", load


@guard("promise 5", 25)
def nothing_but_the_log_decides() -> Replacements:
    """An apply that depends on something of this node's (here: whether it has restarted) makes nodes differ."""

    def store_item(self: StateMachine, key: Any, encoded: bytes, value: bytes) -> int:
        if not self.items and self.revision > 20:
            self._next_position = 1
        return original(self, key, encoded, value)

    def load(self: StateMachine, *arguments: Any, **options: Any) -> None:
        original_load(self, *arguments, **options)
        self.revision += self.applied_index > 0

    original, original_load = StateMachine._store, StateMachine.load
    yield StateMachine, "_store", store_item
    yield StateMachine, "load", load


@guard("E10", 25)
def send_again_what_may_be_lost() -> Replacements:
    """A command that was lost with its connection, or answered in a snapshot, is never asked about again."""

    def on_snapshot_installed(self: proposals.Proposals) -> None:
        self._snapshots += 1

    def route(self: Forwarding) -> object:
        found = original(self)
        return found if found is None or isinstance(found, int) else "a follower"

    original = Forwarding.route
    yield proposals, "RETRY_AFTER", float("inf")
    yield Forwarding, "route", route
    yield proposals.Proposals, "on_snapshot_installed", on_snapshot_installed


@guard("E11", 25)
def refuse_only_what_was_not_sent() -> Replacements:
    """A write that was sent is called not committed, and commits."""

    def give_up(self: proposals.Proposals, write: proposals.Write) -> bool:
        original(self, write)
        return True

    original = proposals.Proposals.give_up
    yield proposals.Proposals, "give_up", give_up


@guard("promise 2", 25)
def answer_when_applied_here() -> Replacements:
    """A write is answered when it is applied on some node, the leader first: who wrote it may not read it yet."""
    everybody: list[proposals.Proposals] = []

    def init(self: proposals.Proposals, *arguments: Any) -> None:
        original_init(self, *arguments)
        everybody.append(self)

    def on_outcome(self: proposals.Proposals, outcome: Outcome) -> None:
        for other in everybody:
            assert isinstance(other._engine, Engine)
            wire = other._engine.transport
            assert isinstance(wire, SimulatedTransport)
            if not wire._destroyed:
                original(other, outcome)

    original, original_init = proposals.Proposals.on_outcome, proposals.Proposals.__init__
    yield proposals.Proposals, "on_outcome", on_outcome
    yield proposals.Proposals, "__init__", init


@guard("6.3", 25)
def answers_of_this_session_only() -> Replacements:
    """A result is told under the wrong name: answers of another session count as this node's."""

    def on_outcome(self: proposals.Proposals, outcome: Outcome) -> None:
        if isinstance(outcome, BatchApplied) and self._session is not None:
            outcome = outcome._replace(session=self._session)
        original(self, outcome)

    original = proposals.Proposals.on_outcome
    yield proposals.Proposals, "on_outcome", on_outcome

"""Invariants of expiry, locks and fences: by true time, by the order of the log, and by what holders believe.

- no key goes before its ttl is over, counted from before it was asked for, by a clock that runs a tenth fast at most
- while a holder's check passes nobody else is granted the lock, but who shares it, or has another permit
- each grant has a token that no other had, and tokens grow in the order of the log
- a write with the token of an exclusive lock that was granted again since is not applied
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from replidict.errors import LockLost
from replidict.machine import commands as cmd
from replidict.machine.codec import decode
from replidict.machine.outcomes import BatchApplied, Outcome
from replidict.node.lock_requests import Request, State
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine
    from tests.simulator.cluster import Cluster

DRIFT = 1.1
"""No clock runs faster than this."""


@dataclass
class Belief:
    """A process was told that it has a lock."""

    machine: Machine
    incarnation: int
    request: Request
    shared: bool
    permits: int

    @property
    def holds(self) -> bool:
        """Whether that process would go on, if it looked now."""
        node = self.machine.node
        if node is None or self.machine.incarnation != self.incarnation:
            return False
        try:
            node.locks.see_to(self.request)
        except LockLost:
            return False
        return True


class CoordinationChecks:
    """What was promised to whom, and when."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.due: dict[object, float] = {}
        """By key: the true time before which it must not go."""
        self._beliefs: dict[str, list[Belief]] = {}
        self._of_token: dict[int, int] = {}  # by token, the request
        self._latest: dict[str, int] = {}  # by name of an exclusive lock, the last token
        self._token = 0
        self.expired = self.granted = self.fenced = self.refused = 0

    def promised(self, key: object, ttl: float) -> None:
        """A key is about to be asked for that lives so long."""
        self.due[key] = self._cluster.loop.now + ttl / DRIFT

    def applied(self, machine: Machine, command: bytes, outcome: Outcome) -> None:
        """An entry was applied for the first time anywhere."""
        assert machine.node is not None
        state = machine.node.machine
        for change in state._told:
            if change[1] == "expire":
                self._gone(decode(change[3]))
        locks = state.coordination.locks
        if isinstance(outcome, BatchApplied) and isinstance(outcome.results, list):
            batch = cmd.decode(command)
            assert isinstance(batch, cmd.Batch)
            if state.sessions[batch.session].used != state.applied_index:
                return  # a repetition, which changed nothing
            for operation, result in zip(batch.operations, outcome.results, strict=False):
                if isinstance(operation, cmd.Fenced):
                    self._fenced(operation, result)
        if locks.token < self._token:
            raise Violation("tokens", f"the last token was {self._token}, and is {locks.token}")
        if locks.token > self._token:
            self._token = locks.token
            for name, lock in locks.by_name.items():
                for ticket in lock.holders.values():
                    known = self._of_token.setdefault(ticket.token, ticket.request)
                    if known != ticket.request:
                        raise Violation("tokens", f"{ticket.token} was given to {known} and to {ticket.request}")
                    if not ticket.shared and not lock.permits:
                        self._latest[name] = max(self._latest.get(name, 0), ticket.token)

    def _gone(self, key: object) -> None:
        due = self.due.pop(key, None)
        if due is not None:
            self.expired += 1
            if self._cluster.loop.now < due - 1e-6:
                raise Violation("never early", f"{key} is gone {due - self._cluster.loop.now:.4f} s before its time")

    def _fenced(self, operation: cmd.Fenced, result: cmd.Result) -> None:
        if isinstance(result, str):
            self.refused += 1
            return
        self.fenced += 1
        if operation.token < self._latest.get(operation.name, 0):
            raise Violation(
                "fences", f"{operation.name}: a write with {operation.token} was applied after {self._latest}"
            )

    def told(self, machine: Machine, request: Request, *, shared: bool, permits: int) -> None:
        """A process is told that its request is granted."""
        assert request.state is State.HELD
        self.granted += 1
        others = self._beliefs.setdefault(request.name, [])
        mine = Belief(machine, machine.incarnation, request, shared, permits)
        others[:] = [other for other in others if other.holds]
        if mine.holds:
            alike = [other for other in others if not (shared and other.shared)]
            if len(alike) >= max(permits, 1):
                raise Violation(
                    "one holder",
                    f"{request.name}: {machine.address} is told that it holds it, with {request.token}; so believe "
                    f"{[(other.machine.address, other.request.token) for other in alike]}",
                )
            others.append(mine)

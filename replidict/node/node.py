"""`Node`: the state and the parts for writing, reading, waiting and watching that every copy of the dict has.

There are two kinds: `RaftNode`, a member of the cluster, and `AttachedNode`, the copy of a process that uses another
process's member. Both apply the same log to the same kind of state machine, so everything here serves both; they differ
in where the log comes from.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from replidict.call import Call
from replidict.errors import RemovedError, ReplidictError, StorageError, raise_anew, waits_for_itself
from replidict.machine.changes import Changes
from replidict.machine.outcomes import Outcome
from replidict.machine.state_machine import StateMachine
from replidict.node.activity import Activity
from replidict.node.consensus_interface import ClusterClock, Consensus, Level
from replidict.node.held_leases import Leases
from replidict.node.history import History
from replidict.node.linearizable_reads import Reads
from replidict.node.lock_requests import Locks
from replidict.node.proposals import Proposals
from replidict.node.step_end import StepEnd
from replidict.options import Options
from replidict.own_threads import in_node_thread
from replidict.status import Status

OF_PARENT = "it belongs to the process that this one was forked from"

Returned = TypeVar("Returned")


class Node(ABC):
    """One copy of the dict, stepped by one thread."""

    engine: Consensus
    expiry: ClusterClock
    feature_level: Level

    wait: Callable[[threading.Lock, bool, float], bool] = staticmethod(type(threading.Lock()).acquire)
    """How callers wait for a lock of their own: its `acquire`, unless a test has time pass at once."""

    def __init__(
        self, machine: StateMachine, engine: Consensus, level: Level, options: Options, wake: Callable[[], None]
    ) -> None:
        self.machine = machine
        self.history = History(machine, options.history_entries, options.history_bytes)
        self.activity = Activity(engine.clock)
        self.proposals = Proposals(engine, options, wake, level, self.activity)
        self.reads = Reads(engine, wake)
        self.leases = Leases(engine, machine, self.proposals)
        self.locks = Locks(engine, machine, self.proposals, self.leases)
        self.step_end = StepEnd()
        self.failure: ReplidictError | None = None
        self._wake = wake
        self._calls: deque[Call[Any]] = deque()

    # -- any thread ---------------------------------------------------------------------------------------------------

    def call(self, function: Callable[[], Returned], done: Callable[[], object] | None = None) -> Call[Returned]:
        """Have something done between two steps; for any thread. The call gives what it returns or raises.

        A `StorageError` or `RemovedError` ends the node as well; a node that stops refuses what it has not begun.
        `done` is called, mostly by the node's thread, when the call is over.
        """
        call = Call(function, done)
        self._calls.append(call)
        if self.failure is not None and call.withdraw():  # looked for after it was queued, as `stop` does it before
            raise_anew(self.failure)
        self._wake()
        return call

    def call_and_wait(self, function: Callable[[], Returned]) -> Returned:
        """The same, and wait for what it gives. Raises `ReplidictError` in the thread of a node."""
        if in_node_thread():
            raise waits_for_itself(ReplidictError, "nothing was done")
        return self.call(function).result()

    @abstractmethod
    def status(self) -> Status:
        """What this node knows, read without interrupting it."""

    def refuse(self, failure: ReplidictError) -> None:
        """Have every call, and every reader, get this from now on."""
        self.failure = failure
        self.machine.end(partial(raise_anew, failure))

    # -- the node's thread --------------------------------------------------------------------------------------------

    @abstractmethod
    def step(self) -> None:
        """Do everything that is due. Raises what ends the node; `stop` must be called then."""

    @abstractmethod
    def idle_until(self) -> float:
        """The clock time at which the next step is due, if nothing happens before."""

    @abstractmethod
    def is_due(self, due: float) -> bool:
        """Whether a step is due, where it was due at a clock time before the last messages were handled."""

    @abstractmethod
    def stop(self, failure: ReplidictError) -> None:
        """Stop: fail all waiting calls, and release files and sockets."""

    def _on_outcome(self, outcome: Outcome) -> None:
        self.history.follow()  # a caller that is answered may look for the change at once
        self.proposals.on_outcome(outcome)

    def _on_snapshot_installed(self) -> None:
        self.history.begin_anew()
        self.activity.begin_at(self.machine.revision)
        self.proposals.on_snapshot_installed()
        self.leases.look_at_all()
        self.locks.look_at_all()

    def _on_changes(self, changes: Changes) -> None:
        if changes.kept:
            self.leases.hear(changes.kept)
            self.locks.hear(changes.kept)

    def _answer_calls(self) -> None:
        for _ in range(len(self._calls)):  # not those that come meanwhile: they could hold up the step for ever
            error = self._calls.popleft().run()
            if isinstance(error, StorageError | RemovedError) or not isinstance(error, Exception | None):
                raise error

    def _refuse_calls(self, failure: ReplidictError) -> None:
        while self._calls:
            self._calls.popleft().refuse(failure)

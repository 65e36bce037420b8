"""One node without a thread, a socket or a clock of its own: the floors put together, stepped from outside."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from replidict.background import Background
from replidict.call import Call
from replidict.errors import OutcomeUnknown, RemovedError, ReplidictError, StorageError, raise_anew, waits_for_itself
from replidict.log_writer import Logger
from replidict.machine.changes import Changes
from replidict.machine.codec import Codec
from replidict.machine.outcomes import Outcome
from replidict.machine.state_machine import StateMachine
from replidict.node.activity import Activity
from replidict.node.expiry import Expiry
from replidict.node.feature_level import FeatureLevel
from replidict.node.history import History
from replidict.node.leases import Leases
from replidict.node.linearizable_reads import Reads
from replidict.node.locks import Locks
from replidict.node.proposals import Proposals
from replidict.node.step_end import StepEnd
from replidict.options import NO_NETWORK, Options
from replidict.own_threads import in_node_thread
from replidict.raft.engine import Engine, MakeTransport
from replidict.raft.role import Role
from replidict.status import Status
from replidict.storage.store import Store

_OF_PARENT = "it belongs to the process that this one was forked from"

logger = Logger(__name__)

Returned = TypeVar("Returned")


class Node:
    """State machine, engine, proposals and reads over one store."""

    wait: Callable[[threading.Lock, bool, float], bool] = staticmethod(type(threading.Lock()).acquire)
    """How callers wait for a lock of their own: its `acquire`, unless a test has time pass at once."""

    def __init__(
        self,
        store: Store,
        *,
        codec: Codec,
        options: Options,
        transport: MakeTransport,
        clock: Callable[[], float],
        rng: random.Random,
        background: Background,
        snapshot_directory: Path,
        wake: Callable[[], None],
    ) -> None:
        """Load the store. Raises `StorageError`; whatever raises, the caller closes the store."""
        self.store = store
        self.machine = StateMachine(codec, options.history_entries)
        store.load_into(self.machine)
        self.history = History(self.machine, options.history_entries, options.history_bytes)
        self.engine = Engine(
            store=store,
            machine=self.machine,
            transport=transport,
            options=options,
            clock=clock,
            rng=rng,
            background=background,
            snapshot_directory=snapshot_directory,
        )
        self.activity = Activity(clock)
        self.feature_level = FeatureLevel(self.engine)
        self.engine.meet = self.feature_level.meet
        self.proposals = Proposals(self.engine, options, wake, self.feature_level, self.activity)
        self.reads = Reads(self.engine, wake)
        self.expiry = Expiry(self.engine, self.machine)
        self.leases = Leases(self.engine, self.machine, self.proposals)
        self.locks = Locks(self.engine, self.machine, self.proposals, self.leases)
        self.step_end = StepEnd()
        self.failure: ReplidictError | None = None
        self._background = background
        self._wake = wake
        self._calls: deque[Call[Any]] = deque()
        self.engine.on_outcome = self._on_outcome
        self.engine.on_snapshot_installed = self._on_snapshot_installed
        self.engine.on_changes = self._on_changes
        self.engine.on_step = self._before_sending

    def _on_outcome(self, outcome: Outcome) -> None:
        self.history.follow()  # who is answered may look for the change at once
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

    def _before_sending(self) -> None:
        self.feature_level.step()
        self.expiry.step()
        self.locks.step()
        self.leases.step()
        self.proposals.step()
        self.reads.step()

    def recover(self) -> None:
        """Apply all that is surely committed, before the first read: what was when this node went down, and of a sole
        voter, who needs nobody to know it, the whole log."""
        engine = self.engine
        while engine.last_applied < engine.commit_index:
            engine.apply()
        last_index = engine.log.last_index
        while engine.members.voters == {engine.address} and engine.last_applied < last_index:
            self.step()
        self.history.follow()
        self.activity.begin_at(self.machine.revision)

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

    def _answer_calls(self) -> None:
        for _ in range(len(self._calls)):  # not those that come meanwhile: they could hold up the step for ever
            error = self._calls.popleft().run()
            if isinstance(error, StorageError | RemovedError) or not isinstance(error, Exception | None):
                raise error

    def step(self) -> None:
        """Do everything that is due. Raises what ends the node; `stop` must be called then."""
        self.step_end.begin()
        try:
            self._answer_calls()
            self.engine.step()
            self.history.follow()
            self.reads.release()
            self.history.wake()
            self.activity.look(self.machine.revision, self.engine.term, self.engine.leader)
        finally:
            self.step_end.end()

    def idle_until(self) -> float:
        """The clock time at which the next step is due, if nothing happens before."""
        if self.proposals.waiting or self.reads.waiting or self._calls:
            return float("-inf")
        return min(
            self.engine.idle_until(),
            self.reads.next_deadline(),
            self.expiry.next_deadline(),
            self.leases.next_deadline(),
        )

    def is_due(self, due: float) -> bool:
        """Whether a step is due, where it was due at a clock time before the last messages were handled."""
        engine = self.engine
        return engine.stirred or engine.clock() >= min(due, engine.transport.next_deadline())

    def refuse(self, failure: ReplidictError) -> None:
        """Have every call, and every reader, get this from now on."""
        self.failure = failure
        self.machine.end(partial(raise_anew, failure))

    def abandon(self) -> None:
        """Let go of everything in a forked child, where the node's thread does not exist."""
        self.leases.abandon(_OF_PARENT)
        self.locks.abandon(_OF_PARENT)
        self.engine.transport.abandon()
        self.store.abandon()

    def stop(self, failure: ReplidictError) -> None:
        """Go no further: everybody who waits is told, the file and the sockets are let go of."""
        self.step_end.begin()
        self.refuse(failure)
        while self._calls:
            self._calls.popleft().refuse(failure)
        if isinstance(failure, StorageError):
            unknown: ReplidictError = failure
            self.store.fail(failure)
        else:
            unknown = OutcomeUnknown(f"{failure}; this write had been sent, and may or may not be applied")
        with ExitStack() as ends:  # from the last to the first, each of them whatever becomes of the others
            ends.callback(self.store.close)
            ends.callback(self.engine.snapshots.close)
            ends.callback(self._background.close)
            ends.callback(self.engine.transport.destroy)  # may take its time, so whoever waits is told before
            ends.callback(self.step_end.end)
            ends.callback(self.leases.stop, str(failure))
            ends.callback(self.history.waiters.wake_all)
            ends.callback(self.reads.stop, failure)
            ends.callback(self.proposals.stop, failure, unknown)

    def status(self) -> Status:
        """What this node knows, read without stopping it."""
        engine, store = self.engine, self.store
        roles: dict[Role, Literal["leader", "follower", "candidate"]] = {
            Role.LEADER: "leader",
            Role.FOLLOWER: "follower",
            Role.CANDIDATE: "candidate",
        }
        role: Literal["leader", "follower", "candidate", "learner", "removed", "stopped"] = roles[engine.role]
        if engine.address in engine.members.learners:
            role = "learner"
        stopped = self.failure is not None
        if stopped:
            role = "removed" if isinstance(self.failure, RemovedError) else "stopped"
        peers = sorted(engine.peers.values(), key=lambda peer: peer.address)
        digest_index, digest = self.machine.digested
        return Status(
            address=None if engine.address == NO_NETWORK else engine.address,
            node_id=store.identity.node_id,
            cluster_id=store.identity.cluster_id,
            role=role,
            is_leader=engine.is_leader and not stopped,
            leader=None if stopped else engine.leader,
            term=engine.term,
            commit_index=engine.commit_index,
            applied_index=engine.last_applied,
            revision=self.machine.revision,
            keys=len(self.machine.items),
            peers=tuple(peer.address for peer in peers),
            connected=tuple(peer.address for peer in peers if peer.connected),
            log_entries=len(store.log),
            log_bytes=store.log.bytes,
            feature_level=self.feature_level.current,
            watchers=self.history.watchers,
            leases=len(self.machine.coordination.leases.open),
            locks=self.machine.coordination.locks.holders,
            digest=digest.hex(),
            digest_index=digest_index,
            differing=len(engine.divergence.differing),
        )

"""`RaftNode`: one member without a thread, a socket or a clock of its own; its owner steps it."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from typing_extensions import override

from replidict.background import Background
from replidict.errors import OutcomeUnknown, RemovedError, ReplidictError, StorageError
from replidict.machine.changes import Changes
from replidict.machine.codec import Codec
from replidict.machine.state_machine import StateMachine
from replidict.node.expiry import Expiry
from replidict.node.feature_level import FeatureLevel
from replidict.node.node import OF_PARENT, Node
from replidict.options import NO_NETWORK, Options
from replidict.raft.engine import Engine, MakeTransport
from replidict.raft.role import Role
from replidict.status import Status
from replidict.storage.scrubber import Scrubber
from replidict.storage.store import Store


class RaftNode(Node):
    """A state machine, an engine, proposals and reads over one store."""

    engine: Engine
    expiry: Expiry
    feature_level: FeatureLevel

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
        machine = StateMachine(codec, options.history_entries)
        store.load_into(machine)
        self.engine = Engine(
            store=store,
            machine=machine,
            transport=transport,
            options=options,
            clock=clock,
            rng=rng,
            background=background,
            snapshot_directory=snapshot_directory,
        )
        self.feature_level = FeatureLevel(self.engine)
        self.engine.meet = self.feature_level.meet
        super().__init__(machine, self.engine, self.feature_level, options, wake)
        self.expiry = Expiry(self.engine, machine)
        self.scrubber = Scrubber(store, machine, snapshot_directory, options.scrub_bytes_per_second, clock)
        self.after_step: Callable[[], None] = _nothing
        """Called at the end of each step: what was applied in it may be passed on."""
        self._background = background
        self._timers_due = float("-inf")
        self.engine.on_outcome = self._on_outcome
        self.engine.on_snapshot_installed = self._on_snapshot_installed
        self.engine.on_changes = self._on_changes
        self.engine.on_step = self._before_sending

    @override
    def _on_changes(self, changes: Changes) -> None:
        super()._on_changes(changes)
        if changes.kept:  # leases, locks, times: there may be new deadlines
            self.engine.stirred = True

    @override
    def _on_snapshot_installed(self) -> None:
        self.scrubber.begin_anew()
        super()._on_snapshot_installed()

    def _before_sending(self) -> None:
        self.feature_level.step()
        self.expiry.step()
        self.locks.step()
        self.leases.step()
        self.proposals.step()
        self.reads.step()

    def recover(self) -> None:
        """Apply everything surely committed, before the first read: what was committed when this node stopped and, for
        a sole voter, which needs no other node to commit, the whole log."""
        engine = self.engine
        while engine.last_applied < engine.commit_index:
            engine.apply()
        last_index = engine.log.last_index
        while engine.members.voters == {engine.address} and engine.last_applied < last_index:
            self.step()
        self.history.follow()
        self.activity.begin_at(self.machine.revision)

    @override
    def step(self) -> None:
        """Do everything that is due. Raises what ends the node; `stop` must be called then."""
        engine = self.engine
        only_replicates = self._only_replicates()
        self.step_end.begin()
        try:
            if only_replicates:
                self.proposals.step()
                engine.replicate()
            else:
                self._answer_calls()
                engine.step()
            self.history.follow()
            self.reads.release()
            self.history.wake()
            self.activity.look(self.machine.revision, engine.state.term, engine.state.leader)
        finally:
            self.step_end.end()
        self.after_step()
        if not only_replicates:
            self.scrubber.step()
            self._timers_due = min(
                engine.timers_due(),
                self.expiry.next_deadline(),
                self.reads.next_deadline(),
                self.scrubber.next_deadline(),
            )

    def _only_replicates(self) -> bool:
        """Whether nothing has happened but writes, and no timer is due: then most parts have nothing to do."""
        engine = self.engine
        return not (
            engine.stirred
            or self._calls
            or self.reads.new
            or engine.snapshots.under_way
            or self.feature_level.part_due
            or engine.clock() >= min(self._timers_due, engine.transport.next_deadline(), self.leases.next_deadline())
        )

    @override
    def idle_until(self) -> float:
        """The clock time at which the next step is due, if nothing happens before."""
        engine = self.engine
        if self.proposals.waiting or self._calls or engine.stirred or engine.pending or self.reads.waiting:
            return float("-inf")
        return min(
            self._timers_due,
            engine.transport.next_deadline(),
            engine.replication.commit_due,
            self.leases.next_deadline(),
        )

    @override
    def is_due(self, due: float) -> bool:
        engine = self.engine
        return engine.stirred or engine.advanced or engine.clock() >= min(due, engine.transport.next_deadline())

    def abandon(self) -> None:
        """Let go of everything in a forked child, where the node's thread does not exist."""
        self.leases.abandon(OF_PARENT)
        self.locks.abandon(OF_PARENT)
        self.engine.transport.abandon()
        self.store.abandon()

    @override
    def stop(self, failure: ReplidictError) -> None:
        """Stop: fail all waiting calls, and release the file and the sockets."""
        self.step_end.begin()
        self.refuse(failure)
        self._refuse_calls(failure)
        if isinstance(failure, StorageError):
            unknown: ReplidictError = failure
            self.store.fail(failure)
        else:
            unknown = OutcomeUnknown(f"{failure}; this write had been sent, and may or may not be applied")
        with ExitStack() as ends:  # from the last to the first, each of them whatever becomes of the others
            ends.callback(self.store.close)
            ends.callback(self.scrubber.close)
            ends.callback(self.engine.snapshots.close)
            ends.callback(self._background.close)
            ends.callback(self.engine.transport.destroy)  # may take its time, so whoever waits is told before
            ends.callback(self.step_end.end)
            ends.callback(self.leases.stop, str(failure))
            ends.callback(self.history.waiters.wake_all)
            ends.callback(self.reads.stop, failure)
            ends.callback(self.proposals.stop, failure, unknown)

    @override
    def status(self) -> Status:
        """What this node knows, read without interrupting it."""
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
        scrubbed = self.scrubber.ended
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
            waiting=self.machine.coordination.locks.waiters,
            expired=self.machine.coordination.expired,
            digest=digest.hex(),
            digest_index=digest_index,
            differing=len(engine.divergence.differing),
            scrub_passes=self.scrubber.passes,
            scrub_bytes=self.scrubber.bytes,
            scrub_age=None if scrubbed is None else engine.clock() - scrubbed,
        )


def _nothing() -> None:
    pass

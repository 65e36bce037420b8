"""One node without a thread, a socket or a clock of its own: the floors put together, stepped from outside."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypeVar

from replidict.errors import OutcomeUnknown, RemovedError, ReplidictError, StorageError, raise_anew
from replidict.machine.codec import Codec
from replidict.machine.state_machine import StateMachine
from replidict.node.feature_level import FeatureLevel
from replidict.node.linearizable_reads import Reads
from replidict.node.proposals import Proposals
from replidict.options import NO_NETWORK, Options
from replidict.raft.engine import Engine
from replidict.raft.role import Role
from replidict.status import Status
from replidict.storage.store import Store

logger = logging.getLogger(__name__)

Returned = TypeVar("Returned")


class Node:
    """State machine, engine, proposals and reads over one store."""

    def __init__(
        self,
        store: Store,
        *,
        codec: Codec,
        options: Options,
        transport: Callable[..., Any],
        clock: Callable[[], float],
        rng: random.Random,
        background: Executor,
        snapshot_directory: Path,
        wake: Callable[[], None],
    ) -> None:
        """Load the store. Raises `StorageError`; whatever raises, the caller closes the store."""
        self.store = store
        self.machine = StateMachine(codec)
        store.load_into(self.machine)
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
        self.feature_level = FeatureLevel(self.engine)
        self.engine.meet = self.feature_level.meet
        self.proposals = Proposals(self.engine, options, wake, self.feature_level)
        self.reads = Reads(self.engine, wake)
        self.failure: ReplidictError | None = None
        self._background = background
        self._wake = wake
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._calls_mutex = threading.Lock()
        self.engine.on_outcome = self.proposals.on_outcome
        self.engine.on_snapshot_installed = self.proposals.on_snapshot_installed
        self.engine.on_step = self._before_sending

    def _before_sending(self) -> None:
        self.feature_level.step()
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

    def call(self, function: Callable[[], Returned]) -> Future[Returned]:
        """Have something done between two steps; for any thread. The future gets what it returns or raises.

        A `StorageError` or `RemovedError` ends the node as well; a node that stops fails what it has not begun.
        """
        future: Future[Returned] = Future()
        with self._calls_mutex:
            if self.failure is not None:
                raise_anew(self.failure)
            self._calls.append((function, future))
        self._wake()
        return future

    def _answer_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except (StorageError, RemovedError) as error:
                future.set_exception(error)
                raise
            except Exception as error:  # noqa: BLE001 -- the caller's to handle
                future.set_exception(error)

    def step(self) -> None:
        """Do everything that is due. Raises what ends the node; `stop` must be called then."""
        self._answer_calls()
        self.engine.step()
        self.reads.release()

    def idle_until(self) -> float:
        """The clock time at which the next step is due, if nothing happens before."""
        if self.proposals.waiting or self.reads.waiting or self._calls:
            return float("-inf")
        return min(self.engine.idle_until(), self.reads.next_deadline())

    def refuse(self, failure: ReplidictError) -> None:
        """Have every call raise this from now on."""
        with self._calls_mutex:
            self.failure = failure

    def abandon(self) -> None:
        """Let go of everything in a forked child, where whoever held a lock does not exist."""
        self._calls_mutex = threading.Lock()
        self.machine.lock = threading.Lock()
        self.machine.applying = False
        self.engine.transport.abandon()
        self.store.abandon()

    def stop(self, failure: ReplidictError) -> None:
        """Go no further: everybody who waits is told, the file and the sockets are let go of."""
        self.refuse(failure)
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)
        self._calls.clear()
        if isinstance(failure, StorageError):
            unknown: ReplidictError = failure
        else:
            unknown = OutcomeUnknown(f"{failure}; this write had been sent, and may or may not be applied")
        with ExitStack() as ends:  # from the last to the first, each of them whatever becomes of the others
            ends.callback(self.store.close)
            ends.callback(self.engine.snapshots.close)
            ends.callback(self._background.shutdown, wait=True, cancel_futures=True)
            ends.callback(self.engine.transport.destroy)  # may take its time, so whoever waits is told before
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
        )

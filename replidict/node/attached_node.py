"""The copy of the dict in an attached process: it applies the log entries that the host's node sends.

Rules kept here:

1. The copy applies the entries that the node has applied, in order, to the same kind of state machine. So it gives the
   same results, changes, locks and deadlines, without asking.
2. It never goes back. A node that was opened anew may know less for a moment; it sends nothing until it has caught up.
3. Its session, leases and locks are its own. They outlast the node: what was not answered is sent again to the next
   node, and applied once.
4. Before the first state has arrived, nothing is read: a reader waits for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
from pysyncobj.poller import createPoller
from typing_extensions import override

from replidict.errors import OutcomeUnknown, ReplidictError, StorageError, raise_anew, waits_for_itself
from replidict.latch import Latch
from replidict.logging_thread import Logger
from replidict.machine.changes import Session
from replidict.machine.codec import Codec
from replidict.machine.state_machine import StateMachine
from replidict.monotonic_clock import clock
from replidict.node.host_link import AttachedClock, AttachedLevel, HostLink
from replidict.node.lock_requests import holder_at
from replidict.node.node import OF_PARENT, Node, Returned
from replidict.options import Options
from replidict.own_threads import in_node_thread
from replidict.protocol import attach_messages as msg
from replidict.release import THIS
from replidict.status import Status
from replidict.transport.framing import WireError
from replidict.transport.unix import UnixConnection

logger = Logger(__name__)

SEEK_EVERY = 0.02
"""Seconds between two looks for a node, while there is none."""


class AttachedNode(Node):
    """The copy of one process. After a fork, the child uses the same object, which starts afresh."""

    engine: HostLink

    def __init__(
        self,
        codec: Codec,
        options: Options,
        wake: Callable[[], None],
        seek: Callable[[], socket.socket | None],
        patience: float,
    ) -> None:
        """`seek` gives a connection to a node, if there is one now; it may raise what ends this. A reader waits for the
        first state for `patience` seconds."""
        self._codec, self._options, self._seek, self._patience = codec, options, seek, patience
        self._begin(StateMachine(codec, options.history_entries), wake)

    def _begin(self, machine: StateMachine, wake: Callable[[], None]) -> None:
        self.engine = link = HostLink(machine, createPoller("auto"))
        self.feature_level = AttachedLevel(machine, link)
        self.expiry = AttachedClock(machine, link)
        super().__init__(machine, link, self.feature_level, self._options, wake)
        self._copied = Latch()
        self._seek_at = float("-inf")
        self._state: msg.State | None = None
        self._rows: list[tuple[int, bytes, bytes, int]] = []
        machine.readable = _NotYet(self)

    def begin_anew(self, wake: Callable[[], None]) -> None:
        """This is a forked child: all that there was is the parent's, and its copy may be in the middle of a change."""
        self.leases.abandon(OF_PARENT)
        self.locks.abandon(OF_PARENT)
        for waiter in list(self.history.waiters.opened):
            waiter.closed = True
        if self.engine.connection is not None:
            self.engine.connection.abandon()
        failure = self.failure
        self._begin(self.machine, wake)
        if failure is not None:
            self.refuse(failure)

    # -- any thread ---------------------------------------------------------------------------------------------------

    @property
    def copied(self) -> bool:
        """Whether there is a copy to read."""
        return self._copied.is_set

    def await_copy(self) -> None:
        """Wait until there is a copy. Raises what has ended this, and `ReplidictError` if it does not come in time."""
        if not self._copied.is_set:
            if in_node_thread():
                raise waits_for_itself(ReplidictError, "there is no copy to read yet")
            self._wake()
            if not self._copied.wait(self._patience):
                raise ReplidictError(
                    f"no process of this machine has served this directory for {self._patience:g} s: start one that "
                    "has the address= of this node, or `replidict serve`, or see why it does not answer"
                )
        if self.failure is not None:
            raise_anew(self.failure)

    @override
    def call_and_wait(self, function: Callable[[], Returned]) -> Returned:
        self.await_copy()
        return super().call_and_wait(function)

    @override
    def status(self) -> Status:
        standing, machine = self.engine.standing, self.machine
        if standing is None:
            raise ReplidictError("this process is not attached to the node of this directory yet")
        changed: dict[str, Any] = {}
        if not self.engine.accepted or self.failure is not None:
            changed = {"is_leader": False, "leader": None, "connected": ()}
        if self.failure is not None:
            changed["role"] = "stopped"
        return replace(
            standing.status,
            applied_index=machine.applied_index,
            revision=machine.revision,
            keys=len(machine.items),
            feature_level=machine.level,
            watchers=self.history.watchers,
            leases=len(machine.coordination.leases.open),
            locks=machine.coordination.locks.holders,
            waiting=machine.coordination.locks.waiters,
            expired=machine.coordination.expired,
            sharing="attached",
            **changed,
        )

    # -- its thread ---------------------------------------------------------------------------------------------------

    @override
    def step(self) -> None:
        self._see_to_connection()
        self.step_end.begin()
        try:
            if self._copied.is_set:
                self._answer_calls()
            self.locks.step()
            self.leases.step()
            self.proposals.step()
            self.reads.step()
            self.reads.release()
            self.history.wake()
        finally:
            self.step_end.end()

    @override
    def idle_until(self) -> float:
        if self.proposals.waiting or self.reads.waiting or (self._calls and self._copied.is_set):
            return float("-inf")
        connection = self.engine.connection
        seek_at = self._seek_at if connection is None else float("-inf") if connection.dead else float("inf")
        return min(seek_at, self.reads.next_deadline(), self.leases.next_deadline())

    @override
    def is_due(self, due: float) -> bool:
        return True

    def _see_to_connection(self) -> None:
        link = self.engine
        if link.connection is not None and link.connection.dead:
            if link.accepted:
                logger.info("%s: the process that runs the node is gone: looking for another", link.address)
            link.lost()
        if link.connection is None and clock() >= self._seek_at:
            self._seek_at = clock() + SEEK_EVERY
            sock = self._seek()
            if sock is not None:
                self._state, self._rows = None, []
                link.connected(UnixConnection(sock, link.poller, self._hear), self._hello())

    def _hello(self) -> msg.Attach:
        if not self._copied.is_set:
            return msg.Attach(msg.VERSION, THIS.version, os.getpid())
        link, applied = self.engine, self.machine.applied_index
        leases = list(self.leases.held)
        return msg.Attach(msg.VERSION, THIS.version, os.getpid(), link.cluster_id, link.node_id, applied, leases)

    def _hear(self, body: bytearray) -> None:
        try:
            message = msg.decode_from_host(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise WireError("protocol", f"what the process that runs the node said can't be read: {error}") from error
        match message:
            case msg.Entries(first, commands):
                self._apply(first, commands)
            case msg.Standing():
                self.engine.hear_standing(message)
                self.proposals.waiting = True  # there may be another route
            case msg.IndexIs():
                self.engine.hear_index(message)
            case msg.State():
                self._state, self._rows = message, []
            case msg.Rows(rows, last):
                self._rows += rows
                if last:
                    self._load()
            case msg.Said():
                self.engine.hear_said(message)
            case msg.Attached(cluster_id, node_id, address):
                link = self.engine
                link.cluster_id, link.node_id, link.address, link.accepted = cluster_id, node_id, address, True
                self.locks.holder = holder_at(address)
            case msg.Refused(why):
                raise StorageError(why)

    def _apply(self, first: int, commands: list[bytes]) -> None:
        """Rule 1."""
        machine = self.machine
        if first != machine.applied_index + 1 or not self._copied.is_set:
            raise WireError("protocol", f"entry {first} does not follow entry {machine.applied_index}")
        for index, command in enumerate(commands, first):
            outcome = machine.apply(index, command)
            if outcome is not None:
                self._on_outcome(outcome)
        self._on_changes(machine.take_changes())
        self.history.follow()

    def _load(self) -> None:
        state, machine = self._state, self.machine
        if state is None or (self._copied.is_set and state.index < machine.applied_index):
            raise WireError("protocol", "a state that is older than this copy")
        machine.load(
            self._rows,
            _sessions(state),
            index=state.index,
            revision=state.revision,
            next_position=state.next_position,
            kept=state.kept.items(),
        )
        self._state, self._rows = None, []
        self._on_snapshot_installed()
        self._copied.set()

    @override
    def stop(self, failure: ReplidictError) -> None:
        self.refuse(failure)
        unknown: ReplidictError = failure
        if not isinstance(failure, StorageError):
            unknown = OutcomeUnknown(f"{failure}; this write had been sent, and may or may not be applied")
        self.step_end.begin()
        self._refuse_calls(failure)
        self.proposals.stop(failure, unknown)
        self.reads.stop(failure)
        self.history.waiters.wake_all()
        self.leases.stop(str(failure))
        self.step_end.end()
        self.engine.lost()
        self._copied.set()


def _sessions(state: msg.State) -> Iterator[tuple[int, Session]]:
    for number, sequence, used, replies in state.sessions:
        yield number, Session(sequence, used, tuple(replies))


class _NotYet(dict[Any, Any]):
    """Stands in for the map until there is a copy: readers wait for it (rule 4)."""

    def __init__(self, node: AttachedNode) -> None:
        super().__init__()
        self._node = node

    def _there(self) -> dict[Any, Any]:
        self._node.await_copy()
        return self._node.machine.readable

    @override
    def get(self, key: Any, default: Any = None) -> Any:
        return self._there().get(key, default)

    @override
    def copy(self) -> dict[Any, Any]:
        return self._there().copy()

    @override
    def __contains__(self, key: object) -> bool:
        return key in self._there()

    @override
    def __getitem__(self, key: Any) -> Any:
        return self._there()[key]

    @override
    def __iter__(self) -> Iterator[Any]:
        return iter(self._there())

    @override
    def __len__(self) -> int:
        return len(self._there())

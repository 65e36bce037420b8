"""Opens and closes a node with its resources: directory, address and thread; and what becomes of it after a fork.

Rules kept here:

1. Opening either succeeds or leaves nothing behind: no lock, no socket, no thread.
2. Whatever ends a host, every call raises from then on, with the reason.
3. What is still open when the interpreter exits is closed by a function that `atexit` was given when this module was
   imported: after those that the program registers later, before or after it opens a dict. They find it open.
4. After a fork the child owns nothing of it: it lets go of the descriptors and never touches the file.
"""

from __future__ import annotations

import atexit
import random
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from pysyncobj.node import Node as NodeName

from replidict.background import BackgroundThread
from replidict.errors import ClosedError, ReplidictError, StorageError, removed
from replidict.forks import before_threads, in_forked_child, workers_will_be_forked
from replidict.logging_thread import Logger, LogWriter
from replidict.machine.codec import Codec
from replidict.machine.state_machine import StateMachine
from replidict.monotonic_clock import clock
from replidict.node.admin import Cluster
from replidict.node.event_loop import Ticker, Waker
from replidict.node.futures import Futures
from replidict.node.online_backup import Backups
from replidict.node.raft_node import RaftNode
from replidict.options import Options
from replidict.own_threads import OWN_THREADS, in_own_thread
from replidict.raft.engine import Engine
from replidict.raft.install_snapshot import tidy
from replidict.raft.outbox import Network
from replidict.security import Security
from replidict.server.attached_processes import AttachedProcesses
from replidict.server.request_handler import RequestHandler
from replidict.server.scheduled_snapshots import Automatic
from replidict.server.stop_callbacks import StopCallbacks
from replidict.server.supersede_notifier import SupersedeNotifier
from replidict.status import Status
from replidict.storage.directory import Beginning, Directory, connect, founded_by
from replidict.storage.high_water_mark import HighWaterMark
from replidict.storage.store import Store
from replidict.transport.handshake import NodeIdentity
from replidict.transport.links import TcpTransport
from replidict.transport.null_transport import NoTransport
from replidict.transport.tcp import listen

logger = Logger(__name__)

FAREWELL = 1.0
"""Seconds for which `close` waits at most until the leases of this process are given back."""


class Host:
    """One open node of this process."""

    def __init__(
        self,
        directory: Directory,
        address: str,
        founders: list[str],
        join: Callable[[str], Beginning] | None,
        security: Security | None,
        codec: Codec,
        options: Options,
        shared: bool = False,
    ) -> None:
        """Open the node in a locked directory, and the address, and start. Without `security` there is no network.

        The directory is this host's from the call on, and is let go of when that ends, or if it fails. An empty one
        becomes that of a founder, or of a member that `join`, given its identity, has let in. `shared`: others attach.

        Raises `StorageError`, `ValueError` (the directory is another node's), `RemovedError`, `ReplidictError` (the
        address), and what `join` raises.
        """
        self._closing = self._handed_over = self._abandoned = False
        self.stop_callbacks = StopCallbacks()
        self._to_start = deque([None])  # whoever takes it out starts the threads
        with ExitStack() as cleanup:
            self.directory = directory
            cleanup.callback(directory.close)
            self._waker = Waker()
            cleanup.callback(self._waker.close)
            self.node = self._open_node(address, founders, join, security, codec, options, shared, cleanup)
            self.node.recover()
            self.backups = Backups(self.node, self.directory.path)
            self.cluster = Cluster(self.node, security)
            self.futures = Futures(self.node, f"{OWN_THREADS}futures")
            self._request_handler: RequestHandler | None = None
            self._attached: AttachedProcesses | None = None
            network = self.node.engine.transport
            if isinstance(network, TcpTransport):
                clients = network.clients
                self._request_handler = RequestHandler(
                    self.node, clients, self.cluster, self.backups, codec, options, self.directory.path, self.status
                )
            recovered = self.node.store.recovered
            self._supersede_notifier = (
                None if security is None or recovered is None else SupersedeNotifier(self.node, security, recovered)
            )
            self._automatic = Automatic(self.backups, self.directory.path, options.snapshot_retain)
            self._log_writer = LogWriter()
            cleanup.pop_all()
        self._ticker = Ticker(self.node, self._waker, self._end, self._let_go, self.directory.check_lock)
        _open_hosts.add(self)
        if not workers_will_be_forked():
            self._start()

    def _wake(self) -> None:
        if self._to_start:
            self._start()
        self._waker.wake()

    def _start(self) -> None:
        """Start the threads, unless that was done."""
        try:
            self._to_start.pop()
        except IndexError:
            return
        try:
            before_threads(self.directory.path)
            self._log_writer.start()
        except BaseException:
            self._to_start.append(None)
            self.close()
            raise
        try:
            self._ticker.start()
            if self._request_handler is not None:
                self._background.start()
            self._automatic.start()
            if self._supersede_notifier is not None:
                self._supersede_notifier.start()
        except BaseException:
            self.close()
            raise

    def _open_node(
        self,
        address: str,
        founders: list[str],
        join: Callable[[str], Beginning] | None,
        security: Security | None,
        codec: Codec,
        options: Options,
        shared: bool,
        cleanup: ExitStack,
    ) -> RaftNode:
        # Without peers or other processes nobody will ask for old entries.
        log_retain = 0 if security is None and not shared else options.log_retain
        store = self._open_store(address, founders, join, options, log_retain, cleanup)
        self._background = BackgroundThread(f"{OWN_THREADS}snapshot")
        identity = NodeIdentity(store.identity.cluster_id, store.identity.node_id, address, options.lease_reads)

        def transport(engine: Engine, node: NodeName, others: set[NodeName]) -> Network:
            if security is None:
                return NoTransport(engine, node, others)
            made = TcpTransport(
                engine,
                node,
                others,
                poller=engine.poller,
                identity=identity,
                security=security,
                clock=clock,
                max_frame_bytes=options.max_frame_bytes,
                admit=engine.admit,
                farewell=engine.members_are,
                hear_of_members=engine.hear_from_non_member,
                denied=engine.hear_of_another,
                closed=engine.peer_closed,
                refused=engine.peer_refused,
                meet=lambda address, release: engine.meet(address, release),
            )
            cleanup.callback(made.destroy)
            return made

        return RaftNode(
            store,
            codec=codec,
            options=options,
            transport=transport,
            clock=clock,
            rng=random.Random(),
            background=self._background,
            snapshot_directory=self.directory.path,
            wake=self._wake,
        )

    def _open_store(
        self,
        address: str,
        founders: list[str],
        join: Callable[[str], Beginning] | None,
        options: Options,
        log_retain: int,
        cleanup: ExitStack,
    ) -> Store:
        """The node's file, made if need be, if it is this node's and that is a member."""
        directory = self.directory
        if join is not None:
            directory.found(address, partial(_let_in, directory, address, join))
        elif directory.found(address, lambda: founded_by(founders)):
            cleanup.callback(directory.file.unlink)
            cleanup.callback(directory.mark.unlink, missing_ok=True)
        try:
            tidy(directory.path)  # before anything is written: they may be what has filled the disk
        except OSError as error:
            raise StorageError(f"{directory.path}: can't remove what an interrupted snapshot left: {error}") from error
        connection = connect(directory.file, options.durability)
        cleanup.callback(connection.close)
        mark = HighWaterMark(directory.mark) if options.durability == "fsync" else None
        if mark is not None:
            cleanup.callback(mark.close)
        store = Store(connection, directory.file.absolute().as_uri(), log_retain=log_retain, mark=mark)
        if store.identity.address != address:
            raise ValueError(
                f"{directory.path} belongs to the node {store.identity.address}, not to {address}: "
                "open it under its own address, or give this node an empty directory"
            )
        members = {*store.members.voters, *store.members.learners}
        if address not in members:
            raise removed(address)
        if len(founders) > 1 and set(founders) != members:
            logger.warning(
                "%s: peers= differ from the members that %s knows: %s; these count",
                address, directory.path, ", ".join(sorted(members)),
            )  # fmt: skip
        return store

    def close(self, *, farewell: bool = True) -> None:
        """Stop, and let go of everything; return when that is done. Idempotent, for any thread and signal handler.

        Without `farewell` the leases of this process are left to run out, as if it had been killed.

        It can't wait in a thread that the end itself waits for: in one of this package, where the collector may run a
        finalizer, and inside a backup that a signal handler has interrupted. There it returns when the end has begun.
        """
        if self._abandoned:
            return
        self._closing = True
        try:
            self._to_start.pop()
        except IndexError:
            pass
        else:
            self._ticker.end_unstarted()
        can_wait = not in_own_thread() and not self.backups.reads_here()
        self._handed_over = self._handed_over or not can_wait
        if can_wait and farewell:
            self.node.leases.end_all(FAREWELL if self.node.engine.state.leader is not None else 0.0)
        self._ticker.stop()
        if not can_wait:
            return
        self._ticker.join()
        self._automatic.join()
        self.futures.join()
        if self._supersede_notifier is not None:
            self._supersede_notifier.join()
        if self._request_handler is not None:
            self._request_handler.join()
        if self._attached is not None:
            self._attached.join()
        self._log_writer.finish()
        self._log_writer.join()
        _open_hosts.discard(self)

    def forgotten(self) -> None:
        """Nobody refers to the dict any more, or the interpreter exits, and it was not closed."""
        if self._closing or self._abandoned:
            return
        try:
            warnings.warn(
                f"a ReplicatedDict in {str(self.directory.path)!r} was not closed: use `with`, or call close()",
                ResourceWarning,
                stacklevel=2,
            )
        finally:
            self.close()

    @property
    def bare_node(self) -> RaftNode:
        """The node."""
        return self.node

    @property
    def machine(self) -> StateMachine:
        """The state of the node."""
        return self.node.machine

    @property
    def address(self) -> str:
        """Of the node."""
        return self.node.engine.address

    @property
    def path(self) -> Path:
        """The directory."""
        return self.directory.path

    @property
    def failure(self) -> ReplidictError | None:
        """The error that has stopped the node, if any."""
        return self.node.failure

    def share(self) -> None:
        """Let other processes of this machine and user attach. Raises `ReplidictError`, and what has ended the node."""
        attached = AttachedProcesses(self.node, self.directory.path, self.cluster, self.backups)
        self.node.call(attached.begin).result()
        self._attached = attached

    def status(self) -> Status:
        """What the node knows of itself, and which processes are attached."""
        status = self.node.status()
        return status if self._attached is None else replace(status, sharing="host", attached=self._attached.pids)

    def _end(self, error: ReplidictError) -> None:
        self.node.refuse(error)
        if self._attached is not None:
            self._attached.close()
        self._automatic.stop()
        if self._supersede_notifier is not None:
            self._supersede_notifier.stop()
        if self._request_handler is not None:
            self._request_handler.close()
        self.backups.end(error)

    def _let_go(self) -> None:
        """The node has stopped, for whatever reason: another may have its directory and address from now on."""
        self.futures.finish()
        self._waker.close()
        self.directory.close()
        if self._handed_over:
            self._log_writer.finish()  # nobody may be left to do so
        if self.node.failure is not None:
            self.stop_callbacks.tell(self.node.failure)

    def abandon(self) -> None:
        """Release everything in a forked child. It has one thread: no thread that held a lock exists here."""
        self._abandoned = True
        self._to_start.clear()
        self.node.abandon()
        if self._supersede_notifier is not None:
            self._supersede_notifier.abandon()
        if self._attached is not None:
            self._attached.abandon()
        _of_parents.append(self.node)
        self.node.refuse(
            ClosedError(
                "this ReplicatedDict belongs to the parent process: open one with a directory and an address of its "
                "own in the child, or let the parent do the work"
            )
        )
        self.directory.close()
        self._waker.abandon()


_open_hosts: weakref.WeakSet[Host] = weakref.WeakSet()
_of_parents: list[RaftNode] = []  # SQLite forbids a child even to close what its parent opened: never finalized


def _after_fork_in_child() -> None:
    for host in list(_open_hosts):
        host.abandon()
    _open_hosts.clear()


in_forked_child(_after_fork_in_child)


@atexit.register
def _close_all() -> None:
    for host in list(_open_hosts):
        try:
            host.forgotten()
        finally:
            host.close()  # the end may have begun where nobody could wait for it


def _let_in(directory: Directory, address: str, join: Callable[[str], Beginning]) -> Beginning:
    for sock in listen(address):  # whoever is let in must be there
        sock.close()
    return join(directory.new_identity())

"""One dict for several processes of a machine: each has a copy, and one of them, the host, runs the node.

Rules kept here:

1. The lock of the directory decides who runs the node. Whoever finds that nobody does, and may, takes the lock.
2. Each process, the one that runs the node as well, uses the dict by an `AttachedNode`. So nothing that the program
   holds, a lock, a lease, a watch, is touched when another process takes over.
3. A process that has never used its dict has no copy, no thread and no connection: the first use makes them. So a
   program may open it, fork, and use it in the children.
4. After a fork the child begins anew, whatever the parent was in the middle of. What was held there is the parent's.
"""

from __future__ import annotations

import atexit
import os
import socket
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from replidict.errors import ClosedError, RemovedError, ReplidictError, StorageError, raise_anew
from replidict.forks import before_threads, in_forked_child, workers_will_be_forked
from replidict.logging_thread import Logger, LogWriter
from replidict.machine.codec import Codec
from replidict.machine.state_machine import StateMachine
from replidict.monotonic_clock import clock
from replidict.node.admin import Cluster
from replidict.node.attached_node import AttachedNode
from replidict.node.event_loop import Ticker, Waker
from replidict.node.futures import Futures
from replidict.node.online_backup import Backups
from replidict.options import NO_NETWORK, Options
from replidict.own_threads import OWN_THREADS, OwnThread, in_own_thread
from replidict.server.attached_admin import AttachedAdmin
from replidict.server.open_node import FAREWELL, Host
from replidict.server.stop_callbacks import StopCallbacks
from replidict.status import Status
from replidict.storage.directory import Directory, InUseError, member_of
from replidict.transport import unix

logger = Logger(__name__)

TRY_AGAIN = 0.5
"""Seconds after which a process that could not open the node tries again, if that was for no reason of the disk's."""


class SharedNode:
    """The share of one process in it: its copy and, in the host, the node."""

    _host: Host | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        address: str,
        open_host: Callable[[Directory], Host],
        codec: Codec,
        options: Options,
        patience: float,
    ) -> None:
        """`open_host` opens the node in a directory that is locked, under this address.

        Raises what that raises, and `ReplidictError` if another process has the directory and does not answer within
        `patience` seconds.
        """
        self.path = Path(path).absolute()
        self.stop_callbacks = StopCallbacks()
        self._address, self._open_host, self._patience = address, open_host, patience
        self._closing = False
        self._attach_only = False
        self._node = AttachedNode(codec, options, self._wake, self._seek, patience)
        self._begin()
        try:
            if workers_will_be_forked():
                pass  # the first worker that uses it runs the node
            elif not self._may_host():
                self._node.await_copy()
            else:
                try:
                    self._host = self._shared(open_host(Directory(path)))
                except InUseError:
                    self._node.await_copy()
        except BaseException:
            self.close()
            raise
        _open_nodes.add(self)

    def _begin(self) -> None:
        self._host = None
        self._opening: OwnThread | None = None
        self._opening_failed: ReplidictError | None = None
        self._open_at = float("-inf")
        self._waker: Waker | None = None
        self._ticker: Ticker | None = None
        self._log_writer: LogWriter | None = None
        self._to_start = deque([None])  # whoever takes it out starts the thread, or sees to it that none is started
        self._futures = Futures(self._node, f"{OWN_THREADS}futures")
        self._admin = AttachedAdmin(self._node, self._patience)

    @staticmethod
    def _shared(host: Host) -> Host:
        try:
            host.share()
        except BaseException:
            host.close()
            raise
        return host

    def _may_host(self) -> bool:
        """Whether this process may run the node: it knows its address, or the node has none."""
        if self._address == NO_NETWORK and not self._attach_only:
            self._attach_only = member_of(self.path) not in (None, NO_NETWORK)
        return not self._attach_only

    # -- what the dict uses -------------------------------------------------------------------------------------------

    @property
    def node(self) -> AttachedNode:
        """The copy; it is waited for."""
        if not self._node.copied:
            self._node.await_copy()
        return self._node

    @property
    def bare_node(self) -> AttachedNode:
        """The copy, which may not be there yet."""
        return self._node

    @property
    def machine(self) -> StateMachine:
        """The state of the copy; until it is there, readers of it wait."""
        return self._node.machine

    @property
    def futures(self) -> Futures:
        """Writes that no thread waits for."""
        return self._futures

    @property
    def cluster(self) -> Cluster | AttachedAdmin:
        """The calls that change the members."""
        return self._admin if self._host is None else self._host.cluster

    @property
    def backups(self) -> Backups | AttachedAdmin:
        """The calls that make backups."""
        return self._admin if self._host is None else self._host.backups

    @property
    def address(self) -> str:
        """Of the node, as far as this process knows it."""
        return self._node.engine.address if self._host is None else self._host.address

    @property
    def failure(self) -> ReplidictError | None:
        """The error that has stopped it, if any."""
        return self._node.failure

    def status(self) -> Status:
        """What this process knows of the node."""
        host = self._host
        if host is not None and (self._node.failure is None or self._node.engine.standing is None):
            return replace(host.status(), watchers=self._node.history.watchers)
        if self._node.engine.standing is None:
            self._node.await_copy()
        return self._node.status()

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._to_start:
            self._start()
        if self._waker is not None:
            self._waker.wake()

    def _start(self) -> None:
        before_threads(self.path)
        try:
            self._to_start.pop()
        except IndexError:
            return
        self._log_writer = LogWriter()
        self._waker = waker = Waker()
        self._ticker = Ticker(self._node, waker, _ignore, self._let_go, _nothing)
        try:
            self._log_writer.start()
            self._ticker.start()
        except RuntimeError as error:
            self.close()
            raise ReplidictError(f"{self.path}: no thread can be started: {error}") from error

    def _seek(self) -> socket.socket | None:
        """In its thread: a connection to the process that runs the node, if there is one; else see to it that there
        will be."""
        host = self._host
        if host is not None and host.node.failure is not None:
            raise_anew(_ending(host.node.failure))
        if self._opening_failed is not None:
            raise_anew(self._opening_failed)
        try:
            sock = unix.call(self.path)
        except OSError:
            self._take_over()
            return None
        uid, _ = unix.peer_of(sock)
        if uid != os.geteuid():
            sock.close()
            raise StorageError(f"{self.path / unix.NAME} is another user's ({uid}): share a directory of your own")
        return sock

    def _take_over(self) -> None:
        """Rule 1."""
        if self._host is not None or self._opening is not None or self._closing or clock() < self._open_at:
            return
        if not self._may_host():
            return
        try:
            directory = Directory(self.path)
        except InUseError:
            return
        self._opening = OwnThread(lambda: self._open(directory), f"{OWN_THREADS}opening")
        try:
            self._opening.start()
        except RuntimeError:
            directory.close()
            self._opening = None

    def _open(self, directory: Directory) -> None:
        try:
            self._host = self._shared(self._open_host(directory))
            logger.info("%s: this process runs the node from now on", self._host.node.engine.address)
        except (StorageError, RemovedError) as error:
            self._opening_failed = error
        except ValueError as error:
            self._opening_failed = StorageError(str(error))
        except ReplidictError as error:
            logger.warning("%s: this process can't run the node now: %s", self.path, error)
            self._open_at = clock() + TRY_AGAIN
        finally:
            self._opening = None
            self._wake()

    def _let_go(self) -> None:
        """The thread has ended, for whatever reason."""
        self._futures.finish()
        if self._waker is not None:
            self._waker.close()
        failure = self._node.failure
        if failure is not None:
            self.stop_callbacks.tell(failure)
        if not self._closing and self._host is not None:
            self._host.close()

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave, and let go of everything. Idempotent, for any thread and signal handler, as `Host.close`."""
        self._closing = True
        host = self._host
        can_wait = not in_own_thread() and not (host is not None and host.backups.reads_here())
        try:
            self._to_start.pop()
        except IndexError:
            pass
        else:
            self._node.stop(ClosedError("this ReplicatedDict is closed: open another one on the same directory"))
            self._futures.finish()
        ticker, opening = self._ticker, self._opening
        if ticker is not None:
            if can_wait:
                self._node.leases.end_all(FAREWELL if self._node.engine.accepted else 0.0)
            ticker.stop()
        if can_wait:
            if ticker is not None:
                ticker.join()
            if opening is not None:
                opening.join()
            self._futures.join()
        if self._host is not None:
            self._host.close()
        if self._log_writer is not None:
            self._log_writer.finish()
            if can_wait:
                self._log_writer.join()
        if can_wait:
            _open_nodes.discard(self)

    def forgotten(self) -> None:
        """Nobody refers to the dict any more, or the interpreter exits, and it was not closed."""
        if self._closing:
            return
        try:
            if self._ticker is not None or self._host is not None:
                warnings.warn(
                    f"a ReplicatedDict in {str(self.path)!r} was not closed: use `with`, or call close()",
                    ResourceWarning,
                    stacklevel=2,
                )
        finally:
            self.close()

    def begin_anew(self) -> None:
        """Rule 4: this is a child of the process that opened it. The node, if that ran it, lets go of itself."""
        if self._waker is not None:
            self._waker.abandon()
        self._node.begin_anew(self._wake)
        if not self._closing:
            self._begin()


def _ending(failure: ReplidictError) -> ReplidictError:
    """The error that stops an attached node whose own process ran the node, after that has stopped with this error."""
    if isinstance(failure, StorageError | RemovedError):
        return failure
    return StorageError(f"the node of this process has ended: {failure}")


def _ignore(error: ReplidictError) -> None:
    pass


def _nothing() -> None:
    pass


Opened: TypeAlias = Host | SharedNode
"""What a dict has below it."""

_open_nodes: weakref.WeakSet[SharedNode] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for node in list(_open_nodes):
        node.begin_anew()


in_forked_child(_after_fork_in_child)


@atexit.register
def _close_all() -> None:
    """Before `open_node` closes what is left of them: what was registered later runs earlier."""
    for node in list(_open_nodes):
        try:
            node.forgotten()
        finally:
            node.close()

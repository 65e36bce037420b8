"""Serves the processes attached to this node: sends them the log, and takes their commands.

Rules kept here:

1. Everything is done in the node's thread, by non-blocking sockets, but for requests that wait: these have threads.
2. What a process is sent next is read from the log when it takes it. So one that takes nothing costs nothing, and one
   that lags behind the log gets the state anew.
3. A process that is gone holds no lease: those that it had asked for are given back at once.
4. Only processes of the same user are heard; what they say is typed and checked all the same, because what stands in
   the log every node must be able to apply.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
from pysyncobj.poller import POLL_EVENT_TYPE

from replidict import errors
from replidict.errors import ReplidictError
from replidict.logging_thread import Logger
from replidict.machine import commands as cmd
from replidict.machine.changes import Item
from replidict.node.admin import Cluster
from replidict.node.online_backup import Backups
from replidict.node.raft_node import RaftNode
from replidict.protocol import attach_messages as msg
from replidict.protocol.peer_messages import TransferTo
from replidict.release import LEVEL
from replidict.thread_pool import Workers
from replidict.transport import unix
from replidict.transport.framing import WireError

logger = Logger(__name__)

MOST = 512
"""Processes that are attached at a time."""

THREADS = 4
CHUNK_BYTES = 256 * 1024
ROWS_AT_ONCE = 1000
STANDING_EVERY = 1.0
ACCEPT_PAUSE = 1.0
"""Seconds without accepting, when the process is out of file descriptors."""


class _Process:
    """One attached process."""

    def __init__(self, pid: int | None) -> None:
        self.connection: unix.UnixConnection
        self.pid = pid
        self.attached = False
        self.sent = 0
        """The last entry that it was sent."""
        self.rows: list[Item] | None = None
        """The state that it is being sent, and how many rows of it were."""
        self.rows_sent = 0
        self.leases: set[int] = set()
        self.commands: deque[bytes] = deque()
        """Those that wait for room on the way to the leader."""


class AttachedProcesses:
    """The processes attached to one node. Methods are for the node's thread, unless they say otherwise."""

    def __init__(self, node: RaftNode, directory: Path, cluster: Cluster, backups: Backups) -> None:
        self._node, self._directory, self._cluster, self._backups = node, directory, cluster, backups
        self._processes: dict[int, _Process] = {}
        self._listener: socket.socket | None = None
        self._accept_again = float("inf")
        self._workers = Workers(f"replidict {node.engine.address} attached", THREADS)
        self._route: object = None
        self._routes = 0
        self._told: object = None
        self._tell_at = 0.0
        self._entries: tuple[int, int, bytes] = 0, 0, b""  # the last frame of entries: first, last, body
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the other processes that are attached. For any thread."""
        attached = [each.pid for each in list(self._processes.values()) if each.attached]
        return tuple(sorted(pid for pid in attached if pid is not None and pid != os.getpid()))

    def begin(self) -> None:
        """Take calls. Raises `ReplidictError`."""
        try:
            self._listener = unix.listen(self._directory)
        except OSError as error:
            raise ReplidictError(
                f"{self._directory / unix.NAME}: this node can't be shared with other processes: {error}"
            ) from error
        self._watch()
        self._node.after_step = self.step

    def _watch(self) -> None:
        if self._listener is not None:
            self._node.engine.poller.subscribe(
                self._listener.fileno(), self._accept, POLL_EVENT_TYPE.READ | POLL_EVENT_TYPE.ERROR
            )

    def _accept(self, fd: int, mask: int) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # Callers stay in the system's queue, so watching on would report them again and again.
                self._node.engine.poller.unsubscribe(fd)
                self._accept_again = self._node.engine.clock() + ACCEPT_PAUSE
            return
        try:
            sock.setblocking(False)
            uid, pid = unix.peer_of(sock)
        except OSError:
            sock.close()
            return
        if uid != os.geteuid() or len(self._processes) >= MOST:
            self._node.engine.log_throttle.log(
                "attaching",
                self._node.engine.clock(),
                f"refused process {pid} of user {uid}: "
                + (f"{MOST} are attached" if uid == os.geteuid() else "only this node's own user may attach"),
            )
            sock.close()
            return
        process = _Process(pid)
        process.connection = unix.UnixConnection(
            sock, self._node.engine.poller, partial(self._hear, process), self._stir
        )
        self._processes[sock.fileno()] = process

    def _stir(self) -> None:
        self._node.engine.stirred = True

    # -- what they say ------------------------------------------------------------------------------------------------

    def _hear(self, process: _Process, body: bytearray) -> None:
        try:
            message = msg.decode_from_attached(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise WireError("protocol", f"no message of this release: {error}") from error
        if not process.attached and not isinstance(message, msg.Attach):
            raise WireError("protocol", "it has not said who it is")
        match message:
            case msg.Forward(command):
                self._forward(process, command)
                return
            case msg.Attach():
                self._attach(process, message)
            case msg.AskIndex(number):
                self._node.engine.read_index.ask(partial(self._answer_index, process, number))
            case msg.ChangeMembers() | msg.GetMembers() | msg.MakeBackup():
                work = partial(self._serve, process, message)
                if not self._workers.put((id(process), message.number), work):
                    why = "this node can't start another thread: try again"
                    self._say(process, msg.Said(message.number, error="ReplidictError", text=why))
        self._stir()

    def _say(self, process: _Process, message: msg.FromHost) -> None:
        if not process.connection.dead:
            process.connection.send(msg.encode(message))

    def _attach(self, process: _Process, message: msg.Attach) -> None:
        node, identity = self._node, self._node.store.identity
        if message.version != msg.VERSION:
            why = (
                f"the process that runs the node {identity.address} has another release of replidict than this one, "
                f"{message.release}, and the two do not understand each other: restart both with the same"
            )
        elif message.node_id and (message.cluster_id, message.node_id) != (identity.cluster_id, identity.node_id):
            why = (
                f"{self._directory} holds another node now than when this process attached: its copy is of no use any "
                "more. Open the dict again"
            )
        else:
            process.pid = process.pid or message.pid
            process.leases.update(message.leases)
            process.sent = message.applied if message.node_id else -1
            process.attached = True
            self._say(process, msg.Attached(identity.cluster_id, identity.node_id, identity.address))
            self._told = None
            logger.info("%s: process %s attached", node.engine.address, process.pid)
            return
        self._say(process, msg.Refused(why))

    def _forward(self, process: _Process, command: bytes) -> None:
        """Rule 4."""
        try:
            decoded = cmd.decode(command)
        except (cmd.UnknownCommand, RecursionError) as error:
            raise WireError("protocol", f"no command of this release: {error}") from error
        if not isinstance(decoded, cmd.Batch | cmd.OpenSession):
            raise WireError("protocol", "a command that only a leader may say")
        if isinstance(decoded, cmd.TimedBatch):
            process.leases.update(each.lease for each in decoded.operations if isinstance(each, cmd.OpenLease))
        process.commands.append(command)
        self._pass_on(process)
        self._node.engine.advanced = True  # that is all: no other part of the node has to do with it

    def _pass_on(self, process: _Process) -> None:
        """Send the leader what a process says, in the order in which it does, as far as there is room."""
        while process.commands and self._node.engine.forwarding.send(process.commands[0]):
            process.commands.popleft()

    def _answer_index(self, process: _Process, number: int, index: int | None) -> None:
        self._say(process, msg.IndexIs(number, index))

    # -- what they are sent -------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Send the processes what was applied, and notice which are gone."""
        now = self._node.engine.clock()
        if now >= self._accept_again:
            self._accept_again = float("inf")
            self._watch()
        if not self._processes:
            return
        for fd, process in list(self._processes.items()):
            if process.connection.dead:
                del self._processes[fd]
                self._gone(process)
        self._tell(now)
        for process in self._processes.values():
            if process.attached:
                self._pass_on(process)
                self._feed(process)

    def _gone(self, process: _Process) -> None:
        """Rule 3."""
        process.connection.close()
        if not process.attached:
            return
        self._told = None
        node = self._node
        logger.info("%s: process %s is gone: %s", node.engine.address, process.pid, process.connection.why)
        # Also those that this node has not seen granted yet: they may be on their way.
        if process.leases:
            node.leases.submit_for_sure(cmd.EndLeases(sorted(process.leases)))

    def _tell(self, now: float) -> None:
        """Say how this node stands, if that has changed, or some time has passed."""
        node, engine = self._node, self._node.engine
        route = engine.forwarding.route()
        if route != self._route:
            self._route = route
            self._routes += 1
            for process in self._processes.values():
                process.commands.clear()  # what was not answered is sent again
        peers = engine.peers.values()
        links = sum([peer.connections for peer in peers]), sum([peer.connected for peer in peers])
        told = self._routes, engine.role, engine.leader, engine.term, links, node.machine.level
        if told == self._told and now < self._tell_at:
            return
        self._told, self._tell_at = told, now + STANDING_EVERY
        level = node.feature_level
        too_high, final = "", False
        if level.current < LEVEL:
            too_high, final = level.why_not(LEVEL), level.refusal(LEVEL) is not None
        number = None if route is None else self._routes
        fresh_as_of = min(engine.read_index.fresh_as_of, now)  # what is acknowledged later is not in their copies yet
        standing = msg.Standing(number, node.status(), node.expiry.now(), now, fresh_as_of, too_high, final)
        body = msg.encode(standing)
        for process in self._processes.values():
            if process.attached and not process.connection.dead:
                process.connection.send(body)

    def _feed(self, process: _Process) -> None:
        """Rule 2."""
        engine, log, connection = self._node.engine, self._node.store.log, process.connection
        while not (connection.full or connection.dead):
            if process.rows is not None:
                self._send_rows(process)
            elif process.sent >= engine.last_applied:
                return
            elif process.sent < log.start.index:
                self._begin_state(process)
            else:
                connection.send(self._entries_from(process.sent + 1))
                process.sent = self._entries[1]

    def _entries_from(self, first: int) -> bytes:
        """A frame of entries: that of the last process, if it had the same ones."""
        applied = self._node.engine.last_applied
        if self._entries[0] != first or self._entries[1] < applied:
            entries = self._node.store.log.entries_from(first, CHUNK_BYTES)[: applied - first + 1]
            body = msg.encode(msg.Entries(first, [entry.command for entry in entries]))
            self._entries = first, first + len(entries) - 1, body
        return self._entries[2]

    def _begin_state(self, process: _Process) -> None:
        machine = self._node.machine
        sessions = [(number, each.sequence, each.used, list(each.replies)) for number, each in machine.sessions.items()]
        self._say(
            process,
            msg.State(machine.applied_index, machine.revision, machine.next_position, sessions, dict(machine.kept)),
        )
        process.rows, process.rows_sent, process.sent = list(machine.items.values()), 0, machine.applied_index

    def _send_rows(self, process: _Process) -> None:
        assert process.rows is not None
        rows, size = [], 0
        for item in islice(process.rows, process.rows_sent, process.rows_sent + ROWS_AT_ONCE):
            rows.append((item.position, item.key, item.value, item.revision))
            size += len(item.key) + len(item.value)
            if size >= CHUNK_BYTES:
                break
        process.rows_sent += len(rows)
        last = process.rows_sent == len(process.rows)
        self._say(process, msg.Rows(rows, last))
        if last:
            process.rows = None

    # -- requests, in threads of their own ----------------------------------------------------------------------------

    def _serve(self, process: _Process, request: msg.Request) -> None:
        try:
            said = self._said(request)
        except (ReplidictError, ValueError, OSError) as error:
            name = type(error).__name__
            known = hasattr(errors, name) or name in ("ValueError", "FileExistsError")
            said = msg.Said(request.number, error=name if known else "ReplidictError", text=str(error))
        except Exception:
            logger.exception("%s: could not do what process %s asked", self._node.engine.address, process.pid)
            why = "an internal error of the process that runs the node: see its log"
            said = msg.Said(request.number, error="ReplidictError", text=why)
        try:
            self._node.call(lambda: self._say(process, said))
        except ReplidictError:
            pass  # the node has stopped, and with it the connection

    def _said(self, request: msg.Request) -> msg.Said:
        match request:
            case msg.ChangeMembers(number, TransferTo(address), seconds):
                self._cluster.hand_over(address, seconds)
                return msg.Said(number)
            case msg.ChangeMembers(number, change, seconds):
                assert not isinstance(change, TransferTo)
                self._cluster.change(change, seconds)
                return msg.Said(number)
            case msg.GetMembers(number):
                return msg.Said(number, members=list(self._cluster.members()))
            case msg.MakeBackup(number, path):
                made = self._backups.make(path)
                backup = msg.BackupMade(str(made.path), made.revision, made.index, made.keys, made.size)
                return msg.Said(number, backup=backup)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of all: they look for another node, and keep their leases."""
        self._node.after_step = _nothing
        self._workers.close()
        if self._listener is not None:
            self._node.engine.poller.unsubscribe(self._listener.fileno())
            self._listener.close()
            self._listener = None
            try:
                (self._directory / unix.NAME).unlink(missing_ok=True)
            except OSError:
                pass  # the next one replaces it
        for process in self._processes.values():
            process.connection.close()
        self._processes = {}

    def join(self) -> None:
        """Wait for requests that are under way. The node must have stopped; not from within."""
        self._workers.join()

    def abandon(self) -> None:
        """Let go of the sockets in a forked child."""
        if self._listener is not None:
            self._listener.close()
        for process in self._processes.values():
            process.connection.abandon()


def _nothing() -> None:
    pass

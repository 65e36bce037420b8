"""All sockets of a node: moves bytes between them and their sessions, and closes them.

Rules this module keeps:

1. One event does a bounded amount of work; bytes of an unauthenticated connection are read in smaller pieces than a
   peer's.
2. Connections are closed in `bury`, never during a poll, so that no event can reach a socket it was not meant for.
3. Received bytes never raise; what the owner's callbacks raise passes through, since it must end the node.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from replidict.protocol.client_messages import Answer, Request
from replidict.protocol.peer_messages import Message
from replidict.transport.framing import WireError
from replidict.transport.handshake import Opened
from replidict.transport.routes import reason
from replidict.transport.tcp import SocketConnection, connected

HANDSHAKE_TIMEOUT = 2.0  # seconds for both sides to accept each other
READ_BYTES, READ_BYTES_UNAUTHENTICATED = 256 * 1024, 16 * 1024

_READ, _WRITE = POLL_EVENT_TYPE.READ | POLL_EVENT_TYPE.ERROR, POLL_EVENT_TYPE.WRITE


class Traffic:
    """The connections of one node. `heard` gets what a session yields, `moved` a connection whose session advanced,
    `ended` one that failed: the code, the text, and whether the peer said so."""

    def __init__(
        self,
        poller: Poller,
        clock: Callable[[], float],
        *,
        heard: Callable[[SocketConnection, Message | Request | Answer | Opened], None],
        moved: Callable[[SocketConnection], None],
        ended: Callable[[SocketConnection, str, str, bool], None],
    ) -> None:
        self._poller, self._clock = poller, clock
        self._heard, self._moved, self._ended = heard, moved, ended
        self.connections: dict[int, SocketConnection] = {}  # by file descriptor
        self.dead: list[SocketConnection] = []
        self._scratch = memoryview(bytearray(READ_BYTES))

    def add(self, connection: SocketConnection) -> None:
        """Take care of a connection from now on."""
        self.connections[connection.fd] = connection
        self._subscribe(connection)

    def queue(self, connection: SocketConnection, framed: bytes) -> None:
        """Send a frame, or queue it."""
        connection.queue(connection.session.seal(framed))
        connection.sent_at = self._clock()
        if not connection.wants_write:
            self._flush(connection)

    def say(self, connection: SocketConnection) -> None:
        """Send what the session itself has to say."""
        for framed in connection.session.take_output():
            connection.queue(framed)
        if not connection.wants_write:
            self._flush(connection)

    def fail(self, connection: SocketConnection, code: str, text: str, by_peer: bool = False) -> None:
        """Mark a connection as failed, report it, and have `bury` close it. The code is `ended` where the other end has
        closed it, and `lost` where it is unknown what became of that."""
        if not connection.dead:
            connection.dead, connection.ended = True, code in ("ended", "closed")
            self.dead.append(connection)
            self._ended(connection, code, text, by_peer)

    def bury(self) -> Iterator[SocketConnection]:
        """Close what failed; yields each that is closed."""
        while self.dead:
            connection = self.dead.pop()
            self._poller.unsubscribe(connection.fd)
            del self.connections[connection.fd]
            connection.sock.close()
            yield connection

    def abandon(self) -> None:
        """Close the descriptors of a forked child, and say nothing to anyone: the connections are the parent's."""
        for connection in self.connections.values():
            connection.sock.close()

    def _on_event(self, fd: int, mask: int) -> None:
        connection = self.connections.get(fd)
        if connection is None or connection.dead:
            return
        if connection.connecting:
            self._arrive(connection)
            return
        if mask & _WRITE:
            self._flush(connection)
        if mask & _READ and not connection.dead:
            self._read(connection)

    def _arrive(self, connection: SocketConnection) -> None:
        """A call may have come through."""
        try:
            if not connected(connection.sock):
                return
        except OSError as error:
            self.fail(connection, "absent", reason(error))
            return
        connection.connecting = connection.wants_write = False
        connection.deadline = self._clock() + HANDSHAKE_TIMEOUT
        self._subscribe(connection)
        connection.session.start()
        self.say(connection)

    def _read(self, connection: SocketConnection) -> None:
        room = READ_BYTES_UNAUTHENTICATED if connection.node is None else READ_BYTES
        try:
            count = connection.sock.recv_into(self._scratch, room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(connection, error)
            return
        if not count:
            self.fail(connection, "ended", "the other side closed it")
            return
        if connection.parting and _is_deaf(connection):
            return
        connection.heard_at = self._clock()
        try:
            for event in connection.session.receive(self._scratch[:count]):
                self._heard(connection, event)
                if connection.dead or (connection.parting and _is_deaf(connection)):
                    return
        except WireError as error:
            self.say(connection)
            self.fail(connection, error.code, error.text, error.by_peer)
        else:
            if connection.session.output or connection.session.tls is not None:
                self.say(connection)
            if connection.node is None:
                self._moved(connection)

    def _flush(self, connection: SocketConnection) -> None:
        waited = connection.wants_write
        try:
            connection.flush()
        except OSError as error:
            self._lose(connection, error)
        if connection.wants_write != waited and not connection.dead:
            self._subscribe(connection)

    def _lose(self, connection: SocketConnection, error: OSError) -> None:
        ended = error.errno in (errno.ECONNRESET, errno.EPIPE)
        self.fail(connection, "ended" if ended else "lost", f"lost: {reason(error)}")

    def _subscribe(self, connection: SocketConnection) -> None:
        self._poller.subscribe(connection.fd, self._on_event, _READ | (_WRITE if connection.wants_write else 0))


def _is_deaf(connection: SocketConnection) -> bool:
    """Whether a connection that is about to be closed is no longer read. The first message of an authenticated one
    still is (see `handshake`)."""
    return connection.parting and connection.session.farewell is None

"""Connections between processes of one machine, by a Unix socket in the node's directory.

Rules kept here:

1. The socket has mode 0600 from the moment it has its name, and the other end of a connection must have the same user
   id, as the operating system reports it.
2. A socket that a killed process left behind is replaced in one step by the next one to listen.
3. Nothing blocks. A connection that failed is only marked (`dead`), and closed by its owner between two polls.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from replidict.errors import ReplidictError
from replidict.transport.framing import FrameReader, WireError, frame

NAME = "attach"
"""Of the socket in a node's directory."""

PATH_MAX = 100
"""Bytes of a path that every system takes for a socket (Linux 107, others 103)."""

FRAME_MAX = 2**31
READ_BYTES = 256 * 1024
FULL_BYTES = 1024 * 1024
"""More than this waits to be sent, and the other end is given time."""

BACKLOG = 128


@contextmanager
def _short(directory: Path, name: str) -> Iterator[str]:
    """A path to something in a directory that is short enough for a socket. Raises `OSError`."""
    path = str(directory / name)
    if len(os.fsencode(path)) <= PATH_MAX:
        yield path
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise ReplidictError(
                f"{path}: too long for a socket, of which this system takes {PATH_MAX} bytes: share a dict in a "
                "directory with a shorter path"
            )
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def listen(directory: Path) -> socket.socket:
    """A listening, non-blocking socket in a directory that the caller has locked. Raises `OSError`."""
    made = f"{NAME}.new"
    (directory / made).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(directory, made) as path:
            sock.bind(path)
        os.chmod(directory / made, 0o600)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        os.rename(directory / made, directory / NAME)  # rule 2
    except BaseException:
        sock.close()
        raise
    return sock


def call(directory: Path) -> socket.socket:
    """Connect to the process that listens in a directory. Raises `OSError` if there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _short(directory, NAME) as path:
            sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def peer_of(sock: socket.socket) -> tuple[int, int | None]:
    """The user id at the other end of a connection, and the process id where the system tells it. Raises `OSError`."""
    if hasattr(socket, "SO_PEERCRED"):
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid, pid
    data = sock.getsockopt(0, 1, 76)  # LOCAL_PEERCRED gives `struct xucred`: version, uid, groups
    return struct.unpack_from("II", data)[1], None


class UnixConnection:
    """One end of a connection: whole frames in, whole frames out."""

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        hear: Callable[[bytearray], None],
        stirred: Callable[[], None] = lambda: None,
    ) -> None:
        """`hear` gets each frame; a `WireError` that it raises ends the connection. `stirred` is called when there is
        room again, or the connection has died, for owners that would not look otherwise."""
        self.sock, self._poller, self._hear, self._stirred = sock, poller, hear, stirred
        self._fd = sock.fileno()
        self._reader = FrameReader(FRAME_MAX)
        self._frames: deque[bytes | memoryview] = deque()
        self.queued = 0
        """Bytes that wait to be sent."""
        self.dead = False
        self.why = "the other end has closed it"
        self._writes = False
        self._watch()

    def _watch(self) -> None:
        mask = POLL_EVENT_TYPE.READ | POLL_EVENT_TYPE.ERROR | (POLL_EVENT_TYPE.WRITE if self._writes else 0)
        self._poller.subscribe(self._fd, self._on_event, mask)

    def _on_event(self, fd: int, mask: int) -> None:
        if self.dead:
            return
        if mask & POLL_EVENT_TYPE.WRITE:
            self.flush()
        if mask & (POLL_EVENT_TYPE.READ | POLL_EVENT_TYPE.ERROR):
            self._read()
        if self.dead or mask & POLL_EVENT_TYPE.WRITE:
            self._stirred()

    def _read(self) -> None:
        try:
            data = self.sock.recv(READ_BYTES)
            if not data:
                self.dead = True
                return
            self._reader.feed(data)
            while not self.dead and (body := self._reader.next()) is not None:
                self._hear(body)
        except (BlockingIOError, InterruptedError):
            pass
        except (OSError, WireError) as error:
            self.dead, self.why = True, str(error)

    def send(self, body: bytes) -> None:
        """Send a frame, now or as soon as the system takes it."""
        self._frames.append(frame(body))
        self.queued += len(body) + 4
        if not self._writes:
            self.flush()

    @property
    def full(self) -> bool:
        """Whether so much waits to be sent that nothing should be added."""
        return self.queued > FULL_BYTES

    def flush(self) -> None:
        """Send what the system takes now."""
        try:
            while self._frames and not self.dead:
                first = self._frames[0]
                sent = self.sock.send(first)
                self.queued -= sent
                if sent == len(first):
                    self._frames.popleft()
                else:
                    self._frames[0] = memoryview(first)[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.dead, self.why = True, str(error)
        if self._writes != bool(self._frames) and not self.dead:
            self._writes = not self._writes
            self._watch()

    def close(self) -> None:
        """Let go of it."""
        if not self.dead or self._fd >= 0:
            self.dead = True
            if self._fd >= 0:
                self._poller.unsubscribe(self._fd)
                self._fd = -1
            self.sock.close()

    def abandon(self) -> None:
        """Close the descriptor alone: in a forked child, where the poller is the parent's."""
        self.dead = True
        self.sock.close()

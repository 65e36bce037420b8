"""One TCP connection with its send queue, and the listener. Nothing here blocks, except opening the listener.

Rules this module keeps:

1. What waits to be sent to a peer is bounded: `SEND_QUEUE_BYTES` and one frame more.
2. One event does a bounded amount of work: one read, a few writes.
3. A connection that failed is only marked (`dead`): its owner closes it later, never inside a send, so that no
   file descriptor is used again while a poll that still reports it is under way.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from pysyncobj.node import Node
from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from replidict.errors import ReplidictError
from replidict.log_throttle import LogThrottle
from replidict.security import is_loopback, split_address
from replidict.transport.handshake import WireSession
from replidict.transport.routes import Target, numeric, reason, resolve

logger = logging.getLogger(__name__)

SEND_QUEUE_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 256 * 1024
FLUSH_ROUNDS = 8
ACCEPTS_PER_POLL = 16
ACCEPT_PAUSE = 1.0  # seconds without accepting, when the process is out of file descriptors
FRAME_OVERHEAD = 64  # what a queued frame costs besides its bytes, so that many tiny ones are bounded too

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SocketConnection:
    """A socket, its session, and what waits to be sent through it."""

    def __init__(
        self, sock: socket.socket, session: WireSession, remote: str, called: str | None, deadline: float
    ) -> None:
        self.sock, self.fd, self.session = sock, sock.fileno(), session
        self.remote = remote
        """The host at the other end, for the log."""
        self.called = called
        """The address that was dialled, or None for who called us."""
        self.node: Node | None = None
        """The peer, once both sides have accepted each other."""
        self.client: int | None = None
        """Or the number of the client."""
        self.parting = False
        """It is open only until the other side has heard the last words; what that says is not read."""
        self.taken = 0
        """How many bytes the system took from it."""
        self.connecting = called is not None
        self.deadline = deadline
        """When the connection must be open, on the owner's clock."""
        self.heard_at = self.sent_at = 0.0
        self.dead = False
        """It is to be closed, and used no more."""
        self.ended = False
        """The other end has closed it, or its system has."""
        self.wants_write = self.connecting
        self._frames: deque[bytes | memoryview] = deque()
        self.queued = 0
        """How many bytes wait to be sent."""
        self._on_wire: bytes | memoryview = b""  # encrypted already: goes first

    @property
    def full(self) -> bool:
        """Is the queue above its bound?"""
        return self.queued > SEND_QUEUE_BYTES

    @property
    def idle(self) -> bool:
        """Does nothing wait to be sent?"""
        return not self._frames and not self._on_wire

    def queue(self, framed: bytes) -> None:
        """Add one sealed frame; `flush` sends it."""
        self._frames.append(framed)
        self.queued += len(framed) + FRAME_OVERHEAD

    def flush(self) -> None:
        """Send what the system takes now; `wants_write` says whether something is left. `OSError` if it is lost."""
        try:
            for _ in range(FLUSH_ROUNDS):
                if not self._on_wire:
                    self._on_wire = self._chunk() if self._frames else b""
                    if self.session.tls is not None:
                        self._on_wire = self.session.encrypt(self._on_wire)
                    if not self._on_wire:
                        break
                sent = self.sock.send(self._on_wire)
                self.taken += sent
                self._on_wire = b"" if sent == len(self._on_wire) else memoryview(self._on_wire)[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        self.wants_write = bool(self._frames or self._on_wire)

    def _chunk(self) -> bytes | memoryview:
        """About as much of the queue as one write takes: small frames joined, large ones in slices."""
        frames = self._frames
        first = frames.popleft()
        if len(first) > CHUNK_BYTES:
            first = memoryview(first)
            frames.appendleft(first[CHUNK_BYTES:])
            self.queued -= CHUNK_BYTES
            return first[:CHUNK_BYTES]
        self.queued -= len(first) + FRAME_OVERHEAD
        if not frames:
            return first
        parts, size = [first], len(first)
        while frames and size + len(frames[0]) <= CHUNK_BYTES:
            parts.append(frames.popleft())
            size += len(parts[-1])
            self.queued -= len(parts[-1]) + FRAME_OVERHEAD
        return b"".join(parts)


class Listener:
    """Accepts connections at an address, from its creation (`ReplidictError` if that fails) until `close`."""

    def __init__(
        self,
        address: str,
        poller: Poller,
        clock: Callable[[], float],
        on_call: Callable[[socket.socket, str], None],
        log_throttle: LogThrottle,
    ) -> None:
        self._poller, self._clock, self._on_call, self._log_throttle = poller, clock, on_call, log_throttle
        self._again = float("inf")
        self._sockets = {sock.fileno(): sock for sock in listen(address)}
        _warn_if_only_here(address, [sock.getsockname()[0] for sock in self._sockets.values()])
        self._watch()

    def tick(self, now: float) -> None:
        """Take calls again after a pause."""
        if now >= self._again:
            self._again = float("inf")
            self._watch()

    def abandon(self) -> None:
        """Close the sockets alone: in a forked child, where poller and address are the parent's."""
        for sock in self._sockets.values():
            sock.close()

    def close(self) -> None:
        """Accept no more connections."""
        self._again = float("inf")
        for fd, sock in self._sockets.items():
            self._poller.unsubscribe(fd)
            sock.close()
        self._sockets = {}

    def _watch(self) -> None:
        for fd in self._sockets:
            self._poller.subscribe(fd, self._on_event, POLL_EVENT_TYPE.READ | POLL_EVENT_TYPE.ERROR)

    def _on_event(self, fd: int, mask: int) -> None:
        for _ in range(ACCEPTS_PER_POLL):
            listener = self._sockets.get(fd)
            if listener is None:
                return
            try:
                sock, remote = listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    # The caller stays in the system's queue, so watching on would report it again and again.
                    for watched in self._sockets:
                        self._poller.unsubscribe(watched)
                    self._again = self._clock() + ACCEPT_PAUSE
                    self._log_throttle.log("accept", self._clock(), f"can't take calls: {error.strerror}")
                return
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:  # on some systems, when the caller has gone already
                sock.close()
                continue
            self._on_call(sock, remote[0])


def listen(address: str) -> list[socket.socket]:
    """Listening, non-blocking sockets on all that `address` stands for; `ReplidictError` says what to do."""
    host, port = split_address(address)
    try:
        targets = numeric(host, port) or resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise ReplidictError(
            f"can't listen on {address}: the name {host!r} can't be resolved ({reason(error)}): check the name, or "
            "give an IP address"
        ) from error
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, target in targets:
        try:
            sockets.append(_listener(family, target))
        except OSError as error:
            # A name may stand for addresses that this machine lacks (::1 where IPv6 is off), as long as one is left;
            # but an address in use means that another node may already be there.
            failed = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        if sockets:
            return sockets
    for sock in sockets:
        sock.close()
    advice = {
        errno.EADDRINUSE: "another process listens there, perhaps this very node: stop it, or choose another port",
        errno.EADDRNOTAVAIL: "this machine has no such address: address= is where this node itself is reached",
        errno.EACCES: "this user may not: choose a port above 1023",
    }.get(failed.errno or 0 if failed else 0, "choose another address")
    raise ReplidictError(f"can't listen on {address}: {reason(failed)}: {advice}") from failed


def _warn_if_only_here(address: str, listening: list[str]) -> None:
    host, _ = split_address(address)
    if not is_loopback(host) and all(map(is_loopback, listening)):
        logger.warning(
            "%s: on this machine the name %s stands for %s, which no other machine reaches: mend what the name stands "
            "for (Debian has a line with 127.0.1.1 in /etc/hosts), or give an address that the others reach",
            address, host, ", ".join(listening),
        )  # fmt: skip


def _listener(family: socket.AddressFamily, target: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Lets a restarted node bind while connections of the last run linger; two live listeners still exclude
        # each other (on POSIX).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(target)
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


def dial(target: Target) -> socket.socket:
    """A socket on its way to `target`; `OSError` if that is already known to fail."""
    sock = socket.socket(target[0], socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = sock.connect_ex(target[1])
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def connected(sock: socket.socket) -> bool:
    """Has the dialled socket arrived? `OSError` if it failed."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    try:
        there = sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    if there == sock.getsockname():
        # TCP's simultaneous open: the port we were given is the very one that nobody listens on. Keeping it would
        # keep the peer from binding it.
        raise OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return True

"""`Client`: one connection of a program to one node, for requests and their answers.

Rules kept here:

1. Nothing waits for ever: connecting has a deadline; a request has its timeout, and a moment more for the answer to
   arrive; a node from which nothing comes for `SILENCE` seconds is given up (a node that is busy sends signs of life).
2. Errors of writes are exact: `NotCommitted` if the write was surely not done, `OutcomeUnknown` if it was sent and no
   answer came.
3. A connection that failed is closed, and every later request on it fails with the reason.
"""

from __future__ import annotations

import inspect
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import NoReturn, Self, TypeVar

from replidict import errors
from replidict.errors import (
    ClosedError,
    NotCommitted,
    OutcomeUnknown,
    ReadTimeout,
    ReplidictError,
    SecurityError,
    raise_anew,
)
from replidict.monotonic_clock import clock
from replidict.options import MiB, Options
from replidict.protocol import client_messages
from replidict.protocol.client_messages import Answer, Events, Failed, Keys, Piece, Request
from replidict.protocol.peer_messages import encode
from replidict.security import Security, is_loopback, split_address
from replidict.transport.framing import WireError, frame
from replidict.transport.handshake import OPENED, NodeIdentity, WireSession
from replidict.transport.routes import Lookup, Target, numeric, reason
from replidict.transport.tcp import connected

SILENCE = 10.0  # seconds in which a node that has something to do must say something
GRACE = 2.0  # seconds that an answer may take on its way
READ_BYTES = 256 * 1024
MAX_FRAME_BYTES = Options(max_value_bytes=512 * MiB, max_key_bytes=MiB).max_frame_bytes
"""What a node may send whose limits are as wide as they can be."""

Said = TypeVar("Said")

_KINDS: dict[str, type[Exception]] = {
    **{name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, ReplidictError)},
    "ValueError": ValueError,
}
_CREDENTIALS = ("secret", "mode", "certificate", "name", "tls")


class UnreachableError(ReplidictError):
    """There is no connection to the node, so the request was not sent."""


class Client:
    """A connection to one node of a cluster. For one thread at a time; a context manager.

    `make` of `request` and `stream` gets the id and the timeout, and makes the request:

        client.ask(lambda id, timeout: Get(id, timeout, key, linearizable=True), Value).value
    """

    def __init__(self, address: str, *, security: Security, timeout: float = 10.0) -> None:
        """Connect, to any address that the name stands for, within `timeout` seconds, which requests have as well.

        `security` is as for a node, see `security_for`. Raises `UnreachableError`, `SecurityError` (wrong credentials,
        or none where there must be some), and `ReplidictError` (it is no address, or no node of a known release).
        """
        self.address, self.timeout = address, timeout
        host, port = split_address(address)
        if security.loopback_only and not is_loopback(host):
            raise SecurityError(f"{address} is not a loopback address: connecting to it needs secret= or tls=")
        self.cluster_id = ""
        """Of the cluster that the node belongs to."""
        self.wrote = False
        """Was anything asked that leaves a trace (`client_messages.WRITES`)? From before the first byte of it is
        sent."""
        self._security = security
        self._closed: ReplidictError | None = None
        self._ids = 0
        self._heard: deque[Answer] = deque()
        deadline = clock() + timeout
        failed: ReplidictError = UnreachableError(f"no connection to {address} within {timeout:g} s")
        targets = _targets(address, host, port, deadline)
        for others, target in zip(range(len(targets))[::-1], targets, strict=True):
            now = clock()
            try:
                self._connect(target, now + (deadline - now) / (1 + others))  # so that one which hangs leaves time
                return
            except ReplidictError as error:
                if isinstance(failed, UnreachableError):  # somebody who answers tells more than nobody
                    failed = error
        raise failed

    def _connect(self, target: Target, deadline: float) -> None:
        try:
            self._socket = socket.socket(target[0], socket.SOCK_STREAM)
        except OSError as error:
            raise UnreachableError(f"no connection to {self.address}: {reason(error)}") from error
        try:
            self._socket.settimeout(_left(deadline))
            self._socket.connect(target[1])
            connected(self._socket)  # to somebody else, see there
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._session = WireSession(
                NodeIdentity("", "", ""),
                self._security,
                b"",
                called=self.address,
                max_frame_bytes=MAX_FRAME_BYTES,
                may_call=_nobody,
                admit=_nobody,
            )
            self._session.start()
            self._flush(deadline)
            opened = False
            while not opened:
                opened = self._receive(deadline)
                self._flush(deadline)
            assert self._session.peer is not None
            self.cluster_id = self._session.peer.cluster_id
        except WireError as error:
            self._socket.close()
            said = f"{self.address} refuses it: {error.text}" if error.by_peer else f"{self.address}: {error.text}"
            raise (SecurityError if error.code in _CREDENTIALS else ReplidictError)(said) from error
        except OSError as error:
            self._socket.close()
            late = isinstance(error, TimeoutError)
            why = f"nothing heard within {self.timeout:g} s" if late else reason(error)
            raise UnreachableError(
                f"no connection to {self.address}: {why}: check the address, and that a node is running there"
            ) from error
        except BaseException:
            self._socket.close()
            raise

    def request(
        self, make: Callable[[int, float], Request], answer: type[Said], *, timeout: float | None = None
    ) -> Said:
        """Ask something, and return the answer, which is of this type. Raises what the node says, and as rule 2."""
        request = self._send(make, timeout)
        said = self._next(request, clock() + request.timeout + GRACE)
        if not isinstance(said, answer):
            self._give_up(request, f"it answered a {type(said).__name__}", OutcomeUnknown)
        return said

    def stream(
        self, make: Callable[[int, float], Request], *, timeout: float | None = None
    ) -> Iterator[Keys | Piece | Events]:
        """Send a request that is answered in parts, and yield them; stopping half-way closes the client.

        `timeout` is for what the node waits for before it begins.
        """
        request = self._send(make, timeout)
        try:
            while not isinstance(said := self._next(request, float("inf")), client_messages.Done):
                if not isinstance(said, Keys | Piece | Events):
                    self._give_up(request, f"it answered a {type(said).__name__}", OutcomeUnknown)
                yield said
        except GeneratorExit:
            self.close()

    @property
    def lost(self) -> bool:
        """Whether the connection is lost, on whichever side: another node may be of use."""
        return self._closed is not None

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        self._end(ClosedError(f"this client of {self.address} is closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _end(self, reason: ReplidictError) -> None:
        if self._closed is None:
            self._closed = reason
            self._socket.close()

    def _send(self, make: Callable[[int, float], Request], timeout: float | None) -> Request:
        if self._closed is not None:
            raise_anew(self._closed)
        self._ids += 1
        request = make(
            self._ids, min(max(self.timeout if timeout is None else timeout, 0.0), client_messages.TIMEOUT_MAX)
        )
        self._look(request)
        framed = self._session.encrypt(self._session.seal(frame(encode(request), self._session.tag_bytes)))
        self.wrote = self.wrote or isinstance(request, client_messages.WRITES)
        try:
            self._socket.settimeout(request.timeout + GRACE)
            self._socket.sendall(framed)
        except OSError as error:  # part of a frame is none
            self._give_up(request, f"lost while {len(framed)} bytes were sent: {reason(error)}", NotCommitted)
        except BaseException:
            self.close()
            raise
        return request

    def _look(self, request: Request) -> None:
        """A node closes the connection when it stops, or when nothing was asked for long, and may say why."""
        try:
            while True:
                self._receive(None)
        except BlockingIOError:
            pass
        except (OSError, WireError) as error:
            if not self._heard:
                self._give_up(request, f"lost before this was asked: {reason(error)}", NotCommitted)
        if self._heard:
            self._next(request, 0.0)

    def _next(self, request: Request, deadline: float) -> Answer:
        """The next answer to a request; what it says went wrong is raised."""
        silent_at = clock() + SILENCE
        while not self._heard:
            try:
                self._receive(min(deadline, silent_at))
                silent_at = clock() + SILENCE
            except TimeoutError:
                self._give_up(request, "nothing was heard in time", OutcomeUnknown, ReadTimeout)
            except (OSError, WireError) as error:
                if not self._heard:
                    self._give_up(request, f"lost: {reason(error)}", OutcomeUnknown)
        said = self._heard.popleft()
        if isinstance(said, Failed):
            if not said.id:  # about this client, which is sent away: what it asked last was not heard
                self._give_up(request, said.text, NotCommitted)
            raise _KINDS.get(said.error, ReplidictError)(said.text, *said.numbers)
        if said.id != request.id:
            self._give_up(request, "it answered something else than was asked", OutcomeUnknown)
        return said

    def _give_up(
        self,
        request: Request,
        why: str,
        of_writes: type[NotCommitted | OutcomeUnknown],
        of_reads: type[ReplidictError] = ReplidictError,
    ) -> NoReturn:
        """Close the connection, and raise what that means for a request."""
        self._end(UnreachableError(f"no connection to {self.address} any more: {why}"))
        if not isinstance(request, client_messages.WRITES):
            raise of_reads(f"no answer from {self.address}: {why}")
        means = "may or may not be done" if of_writes is OutcomeUnknown else "is not done"
        raise of_writes(f"no answer from {self.address}: {why}. What was asked {means}")

    # -- the socket ---------------------------------------------------------------------------------------------------

    def _receive(self, deadline: float | None) -> bool:
        """Take what comes next, or is there already; whether that opened the session. `OSError` and `WireError`."""
        self._socket.settimeout(0 if deadline is None else _left(deadline))
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("the other side closed it")
        opened = False
        try:
            for event in self._session.receive(data):
                if event is OPENED:
                    opened = True
                else:
                    self._heard.append(event)  # type: ignore[arg-type]  # a client is told answers, and nothing else
        except WireError:
            self._flush(clock() + GRACE)  # perhaps it says why
            raise
        return opened

    def _flush(self, deadline: float) -> None:
        """Send what the session itself has to say."""
        out = b"".join(self._session.encrypt(framed) for framed in self._session.take_output())
        out += self._session.encrypt(b"")
        if out:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(out)


def _nobody(*said: str) -> None:
    """Nobody asks a client who may call it."""


def _left(deadline: float) -> float:
    """Seconds until then, for a socket; `TimeoutError` if there are none."""
    left = deadline - clock()
    if left <= 0:
        raise TimeoutError
    return left


def _targets(address: str, host: str, port: int, deadline: float) -> list[Target]:
    targets = numeric(host, port)
    if not targets:
        lookup = Lookup(host, port)
        if not lookup.done.wait(max(deadline - clock(), 0.0)):
            raise UnreachableError(f"no connection to {address}: the name {host!r} could not be looked up in time")
        if lookup.problem:
            raise UnreachableError(f"no connection to {address}: {lookup.problem}")
        targets = lookup.targets
    return targets

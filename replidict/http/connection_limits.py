"""Adds to uvicorn's HTTP connection the time limits and bounds that it lacks.

Rules kept here:

1. A client that sends nothing, sends its request bit by bit, or does not read its response is disconnected in bounded
   time.
2. The number of connections is limited: their memory and file descriptors stay bounded, and descriptors are left for
   the node's own sockets and files.
3. A refused client gets a response, and what else it sends is read and dropped for a while: closing the connection with
   unread bytes would reset it, and the response would be lost.
4. A client that closes its half of the connection after complete requests still gets their responses.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import sys
from http import HTTPStatus
from typing import Any

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from replidict.http.event_stream import END
from replidict.http.problems import MEDIA_TYPE, Problem
from replidict.http.request_heads import HEAD_BYTES, Heads

HEAD_SECONDS = 10.0
"""In which the head of a request must have come, and what is dropped be over."""
TAKING_SECONDS = 30.0
"""In which a client must have taken its answer."""
DROPPED_BYTES = 8 * 1024 * 1024
"""Of what nobody will read, before it is enough."""
MAX_CONNECTIONS = min(500, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
TURNED_AWAY = 100
"""Connections above that bound which are told so; those above that just end."""
CHECK_SECONDS = 1.0


class Connection(H11Protocol):
    """uvicorn's connection, with time limits and bounds."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = Heads(h11.SERVER, self.config.h11_max_incomplete_event_size or HEAD_BYTES)
        self._refused = False
        self._heard_all = False
        self._since = 0.0  # when what is waited for began
        self._dropped = 0
        self._check: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look_again()
        if len(self.connections) > MAX_CONNECTIONS + TURNED_AWAY:
            transport.abort()
        elif len(self.connections) > MAX_CONNECTIONS:
            self._refuse(Problem("busy", "too many connections to this node"))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._check is not None:
            self._check.cancel()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:  # a request begins
            self._since, self._dropped = self.loop.time(), 0
        if self._refused or (self._answered and self.conn.their_state is h11.SEND_BODY):
            self._dropped += len(data)
            if self._dropped > DROPPED_BYTES:
                self._cut()
                return
        if not self._refused:
            super().data_received(data)

    @override
    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to go on without what the client might have said."""
        self._heard_all = True
        return not self._refused and self.cycle is not None and not self._is_over

    @override
    def on_response_complete(self) -> None:
        self._since, self._dropped = self.loop.time(), 0
        super().on_response_complete()  # begins the next request, if it is there
        if self._heard_all and self._is_over:
            self.transport.close()

    @override
    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            size = self.config.h11_max_incomplete_event_size
            limit = f"headers and query may have {HEAD_BYTES} bytes, and with the path {size}"
            self._refuse(Problem("head-too-large", limit))
        else:
            self._refuse(Problem("malformed-request", f"this is not HTTP/1.1: {error}"))

    @override
    def shutdown(self) -> None:
        if self._refused:
            self.transport.abort()
            return
        super().shutdown()
        end: Any = (self.scope or {}).get(END)
        if end is not None:
            end()

    @override
    def resume_writing(self) -> None:
        self._since = self.loop.time()  # the client has taken something
        super().resume_writing()

    @property
    def _answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    @property
    def _is_over(self) -> bool:
        """Whether the client has closed its half and all its requests are answered."""
        return self._answered or self.conn.their_state is h11.SEND_BODY

    def _look_again(self) -> None:
        self._check = self.loop.call_later(CHECK_SECONDS, self._look)

    def _look(self) -> None:
        self._look_again()
        unsent = self.transport.get_write_buffer_size()
        if self.cycle is not None and self.cycle.response_started and not self._answered and not unsent:
            self._since = self.loop.time()  # a stream, of which the client has taken all
        waited = self.loop.time() - self._since
        idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if unsent > 0:
            if waited > TAKING_SECONDS:
                self._cut()
        elif waited > HEAD_SECONDS and not idle and not self.transport.is_closing():
            if self._refused or (self._answered and self.conn.their_state is not h11.IDLE):
                self._cut()
            elif self.cycle is None or self._answered:
                self._refuse(Problem("request-too-slow", f"no request came within {HEAD_SECONDS:g} s"))

    def _cut(self) -> None:
        """End it now. With no lingering, the system drops at once what it holds for the client, too."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Respond without the app, and read no more requests."""
        self._refused = True
        self._since = self.loop.time()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self._cut()  # what could be said would be taken for a part of the answer
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps(problem.body).encode()
        lines = [
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
            f"Content-Type: {MEDIA_TYPE}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in problem.headers.items()),
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.write_eof()
        self.flow.resume_reading()

"""The clients of a node (see `client_messages`): their number, their requests, and which of them must go.

Rules kept here:

1. At most `CLIENTS_MAX` clients are connected. For a new one, the client that has been idle longest is closed; if none
   is idle, the new one is refused.
2. A client has at most `REQUESTS_MAX` pending requests, and the requests of all clients together have at most `room`
   bytes: `BYTES_MAX` and one frame of the largest size. A client that exceeds this is closed.
3. Incomplete requests and answers that wait to be sent have as much room, for all clients together. When it is
   exceeded, one of the clients that use more than their share of `BYTES_MAX` is closed: the one that has been silent
   longest, in both directions. So one large request or answer always has room, and small ones are never in the way.
4. A client that reads nothing of its answers, or stops in the middle of a request, is closed after `STALL_MAX`.
5. A request is given to `on_over` when its timeout is over, and when its client is gone: if it has not begun, it need
   not wait for its turn.
6. A client never reaches the engine: its requests are passed to `on_request`, which must not block, and `answer` takes
   the answers. Both are called in the node's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from replidict.protocol.client_messages import Answer, Failed, Request
from replidict.protocol.peer_messages import encode
from replidict.transport.framing import frame
from replidict.transport.tcp import SocketConnection

CLIENTS_MAX = 64
REQUESTS_MAX = 16
BYTES_MAX = 64 * 1024 * 1024
IDLE_MAX = 60.0  # seconds without a request under way
STALL_MAX = 10.0  # seconds in which a client takes nothing of what waits for it, or says nothing amid a request
PING_INTERVAL = 0.5  # seconds of silence after which a client that waits is shown that this node is alive


class Asked(NamedTuple):
    """A pending request."""

    request: Request
    size: int
    begin_by: float  # on the node's clock


class ConnectedClient:
    """One client; its `number` is unique and never reused."""

    def __init__(self, number: int, connection: SocketConnection, now: float) -> None:
        self.number, self.connection = number, connection
        self.under_way: dict[int, Asked] = {}  # by the id of the request
        self.since = now  # when it became idle, or last took something
        self.taken = 0

    @property
    def held(self) -> int:
        """The bytes of rule 3."""
        return self.connection.session.held + self.connection.queued

    @property
    def idle(self) -> bool:
        """Does neither side wait for the other?"""
        return not self.under_way and self.connection.idle and not self.connection.session.held


class Clients:
    """The clients of one node. `queue` sends a frame; `part` sends a last message and closes; `drop` closes, for a
    reason."""

    def __init__(
        self,
        queue: Callable[[SocketConnection, bytes], None],
        part: Callable[[SocketConnection, bytes], None],
        drop: Callable[[SocketConnection, str, str], None],
        tag_bytes: int,
        max_frame_bytes: int,
    ) -> None:
        self._queue, self._part, self._drop, self._tag_bytes = queue, part, drop, tag_bytes
        self.room = BYTES_MAX + max_frame_bytes
        self.on_request: Callable[[int, Request], None] | None = None
        """Gets the number of a client and what it asks."""
        self.on_over: Callable[[int, Request], None] = lambda number, request: None
        """Gets a request that is not to be begun any more; it may have been long ago."""
        self._clients: dict[int, ConnectedClient] = {}
        self._bytes = 0
        self._last = 0

    def __len__(self) -> int:
        return len(self._clients)

    def come(self, connection: SocketConnection, now: float) -> None:
        """A client is authenticated."""
        if len(self._clients) >= CLIENTS_MAX:
            idle = [client for client in self._clients.values() if client.idle]
            if not idle:
                self._send_away(connection, f"this node has {CLIENTS_MAX} clients, its maximum: try another")
                return
            self._drop(min(idle, key=lambda client: client.since).connection, "dropped", "a new client takes its place")
        self._last += 1
        self._clients[self._last] = ConnectedClient(self._last, connection, now)
        connection.client = self._last

    def gone(self, number: int) -> None:
        """The connection of the client with this number is closed."""
        client = self._clients.pop(number)
        self._bytes -= sum(asked.size for asked in client.under_way.values())
        for asked in client.under_way.values():
            self.on_over(number, asked.request)

    def hear(self, number: int, request: Request, now: float) -> None:
        """It asks something."""
        client = self._clients[number]
        size = sum(len(part) for part in msgspec.structs.astuple(request) if isinstance(part, bytes | str))
        if request.id in client.under_way or not request.id:
            self._send_away(client.connection, f"the id {request.id} can't be used (again)")
        elif len(client.under_way) >= REQUESTS_MAX or self._bytes + size > self.room:
            self._send_away(client.connection, f"too much at once: wait for the answers to {REQUESTS_MAX} requests")
        elif self.on_request is None:
            self._send_away(client.connection, "this node is not ready yet: try again")
        else:
            client.under_way[request.id] = Asked(
                request, size, now + request.timeout if request.timeout else float("inf")
            )
            self._bytes += size
            client.since = now
            self.on_request(client.number, request)

    def answer(self, number: int, request_id: int, framed: bytes, last: bool) -> Literal["sent", "full", "gone"]:
        """Send what `frame` made of an answer; the `last` one ends the request. `full`: a part that is not sent, try
        again later."""
        client = self._clients.get(number)
        if client is None or client.connection.dead or request_id not in client.under_way:
            return "gone"
        if not last and client.connection.full:
            return "full"
        if last:
            self._bytes -= client.under_way.pop(request_id).size
        self._queue(client.connection, framed)
        self.check_room(number)
        return "sent"

    def check_room(self, number: int) -> None:
        """Rule 3, when more may be kept for this client than before."""
        client = self._clients.get(number)
        while client is not None and client.held and sum(each.held for each in self._clients.values()) > self.room:
            large = [each for each in self._clients.values() if each.held > BYTES_MAX // CLIENTS_MAX]
            victim = min(large, key=lambda each: max(each.since, each.connection.heard_at))
            if victim.connection.idle:
                victim.connection.session.forget()
                self._send_away(victim.connection, "too much is asked at once, by several: try again")
            else:
                self._drop(victim.connection, "stalled", "too much waits for it, and for others")

    def waits(self, number: int, request_id: int) -> bool:
        """Whether this client is still there, and waits for the answer. For any thread."""
        client = self._clients.get(number)
        return client is not None and request_id in client.under_way

    def frame(self, answer: Answer) -> bytes:
        """A message as `answer` takes it. For any thread."""
        return frame(encode(answer), self._tag_bytes)

    def attend(self, number: int, ping: bytes, now: float) -> float:
        """Send it away if it is time, or show it that this node is alive; when to come again."""
        client = self._clients[number]
        connection = client.connection
        if connection.taken != client.taken or (client.under_way and connection.idle):
            client.taken, client.since = connection.taken, now
        for asked in list(client.under_way.values()):
            if now >= asked.begin_by:
                self.on_over(client.number, asked.request)
        if not connection.idle:
            due, why = client.since + STALL_MAX, "it does not take its answers"
        elif connection.session.held:
            due, why = connection.heard_at + STALL_MAX, "it stopped in the middle of what it asks"
        else:
            due, why = client.since + IDLE_MAX, "it asks nothing"
        if now >= due:
            self._drop(connection, "dropped" if client.idle else "stalled", why)
        elif client.under_way and not connection.wants_write:
            if now >= connection.sent_at + PING_INTERVAL:
                self._queue(connection, ping)
            due = connection.sent_at + PING_INTERVAL
        return due

    def _send_away(self, connection: SocketConnection, why: str) -> None:
        self._part(connection, self.frame(Failed(0, "ReplidictError", why)))

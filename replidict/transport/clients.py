"""The guests of a node (see `asks`): how many there are, what they have asked, and when they must go.

Rules this module keeps:

1. At most `GUESTS_MAX` guests are connected. For a new one, the one that has been idle longest goes; if none is idle,
   the new one does.
2. A guest has at most `ASKS_MAX` asks under way, and all together at most `room` bytes of asks: `BYTES_MAX` and one
   frame of the largest size. A guest that asks more is sent away.
3. What is kept of asks that are still coming, and of answers that are not taken, has as much room, all guests together.
   Beyond it, one goes of those that take up more than their share of `BYTES_MAX`: the one that has neither said nor
   taken anything for longest. So one large ask or answer always has room, and small ones stand in nobody's way.
4. A guest goes that takes nothing of its answers, or says nothing in the middle of an ask, for `STALL_MAX`.
5. An ask is given back to `on_over` at the end of its timeout, and when its guest is gone: if it has not begun, it is
   not to wait for its turn.
6. A guest never reaches the engine: what it asks is handed to `on_ask`, which must not block; `answer` takes what comes
   of it. Both happen in the node's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from replidict.protocol.client_messages import Answer, Ask, Failed
from replidict.protocol.peer_messages import encode
from replidict.transport.framing import frame
from replidict.transport.tcp import SocketConnection

GUESTS_MAX = 64
ASKS_MAX = 16
BYTES_MAX = 64 * 1024 * 1024
IDLE_MAX = 60.0  # seconds without an ask under way
STALL_MAX = 10.0  # seconds in which a guest takes nothing of what waits for it, or says nothing in the middle of an ask
PING_INTERVAL = 0.5  # seconds of silence after which a guest that waits is shown that this node is alive


class Asked(NamedTuple):
    """An ask under way."""

    ask: Ask
    size: int
    begin_by: float  # on the node's clock


class Guest:
    """One of them; `number` is its own, and never another's."""

    def __init__(self, number: int, connection: SocketConnection, now: float) -> None:
        self.number, self.connection = number, connection
        self.under_way: dict[int, Asked] = {}  # by the id of the ask
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


class Guests:
    """Those of one node. `queue` sends a frame; `part` sends last words and closes; `drop` closes, for a reason."""

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
        self.on_ask: Callable[[int, Ask], None] | None = None
        """Gets the number of a guest and what it asks."""
        self.on_over: Callable[[int, Ask], None] = lambda number, ask: None
        """Gets an ask that is not to be begun any more; it may have been long ago."""
        self._guests: dict[int, Guest] = {}
        self._bytes = 0
        self._last = 0

    def __len__(self) -> int:
        return len(self._guests)

    def come(self, connection: SocketConnection, now: float) -> None:
        """A guest has proved itself."""
        if len(self._guests) >= GUESTS_MAX:
            idle = [guest for guest in self._guests.values() if guest.idle]
            if not idle:
                self._send_away(connection, f"this node has {GUESTS_MAX} guests, which is all it takes: try another")
                return
            self._drop(min(idle, key=lambda guest: guest.since).connection, "dropped", "a new guest takes its place")
        self._last += 1
        self._guests[self._last] = Guest(self._last, connection, now)
        connection.guest = self._last

    def gone(self, number: int) -> None:
        """The connection of the guest with this number is closed."""
        guest = self._guests.pop(number)
        self._bytes -= sum(asked.size for asked in guest.under_way.values())
        for asked in guest.under_way.values():
            self.on_over(number, asked.ask)

    def hear(self, number: int, ask: Ask, now: float) -> None:
        """It asks something."""
        guest = self._guests[number]
        size = sum(len(part) for part in msgspec.structs.astuple(ask) if isinstance(part, bytes | str))
        if ask.id in guest.under_way or not ask.id:
            self._send_away(guest.connection, f"the id {ask.id} can't be used (again)")
        elif len(guest.under_way) >= ASKS_MAX or self._bytes + size > self.room:
            self._send_away(guest.connection, f"too much at once: wait for the answers to {ASKS_MAX} asks")
        elif self.on_ask is None:
            self._send_away(guest.connection, "this node is not ready yet: try again")
        else:
            guest.under_way[ask.id] = Asked(ask, size, now + ask.timeout if ask.timeout else float("inf"))
            self._bytes += size
            guest.since = now
            self.on_ask(guest.number, ask)

    def answer(self, number: int, ask_id: int, framed: bytes, last: bool) -> Literal["sent", "full", "gone"]:
        """Send what `frame` made of an answer; the `last` one ends the ask. `full`: a part that is not sent, try again
        later."""
        guest = self._guests.get(number)
        if guest is None or guest.connection.dead or ask_id not in guest.under_way:
            return "gone"
        if not last and guest.connection.full:
            return "full"
        if last:
            self._bytes -= guest.under_way.pop(ask_id).size
        self._queue(guest.connection, framed)
        self.check_room(number)
        return "sent"

    def check_room(self, number: int) -> None:
        """Rule 3, when more may be kept for this guest than before."""
        guest = self._guests.get(number)
        while guest is not None and guest.held and sum(each.held for each in self._guests.values()) > self.room:
            large = [each for each in self._guests.values() if each.held > BYTES_MAX // GUESTS_MAX]
            victim = min(large, key=lambda each: max(each.since, each.connection.heard_at))
            if victim.connection.idle:
                victim.connection.session.forget()
                self._send_away(victim.connection, "too much is asked at once, by several: try again")
            else:
                self._drop(victim.connection, "stalled", "too much waits for it, and for others")

    def waits(self, number: int, ask_id: int) -> bool:
        """Whether this guest is still there, and waits for the answer. For any thread."""
        guest = self._guests.get(number)
        return guest is not None and ask_id in guest.under_way

    def frame(self, answer: Answer) -> bytes:
        """What `answer` takes. For any thread."""
        return frame(encode(answer), self._tag_bytes)

    def attend(self, number: int, ping: bytes, now: float) -> float:
        """Send it away if it is time, or show it that this node is alive; when to come again."""
        guest = self._guests[number]
        connection = guest.connection
        if connection.taken != guest.taken or (guest.under_way and connection.idle):
            guest.taken, guest.since = connection.taken, now
        for asked in list(guest.under_way.values()):
            if now >= asked.begin_by:
                self.on_over(guest.number, asked.ask)
        if not connection.idle:
            due, why = guest.since + STALL_MAX, "it does not take its answers"
        elif connection.session.held:
            due, why = connection.heard_at + STALL_MAX, "it stopped in the middle of what it asks"
        else:
            due, why = guest.since + IDLE_MAX, "it asks nothing"
        if now >= due:
            self._drop(connection, "dropped" if guest.idle else "stalled", why)
        elif guest.under_way and not connection.wants_write:
            if now >= connection.sent_at + PING_INTERVAL:
                self._queue(connection, ping)
            due = connection.sent_at + PING_INTERVAL
        return due

    def _send_away(self, connection: SocketConnection, why: str) -> None:
        self._part(connection, self.frame(Failed(0, "ReplidictError", why)))

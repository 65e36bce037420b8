"""A simulated network of TCP connections, as the transport sees it.

Rules kept here:

1. One connection per pair of nodes. Within one, messages arrive in order and once, each after a delay of its own.
2. The greater address calls; the lesser one, too, when it has missed a call for long (see `transport.peer_link`). Both
   sides check the other's identity, the called one first. A caller that is not a member is told `farewell`, and heard
   only on who the members are; a refused identity ends the connection without a message.
3. A connection that is cut loses a suffix of what was under way in each direction; each end learns of it when it does,
   and until then sends into the void. An end may have a new connection before the other has noticed: then that one is
   told "disconnected" and "connected" in one go.
4. Where a direction is blocked, messages wait (TCP sends them again) until it is open again, or the receiver gives the
   connection up because it heard nothing.
5. The connections of a process that ends are closed by its system, and a probe of its address is refused; nobody closes
   or refuses anything for a machine without power. A device between two nodes that refuses (`refuse`) looks to both as
   if the other's process had ended.
6. Messages are real bytes: encoded when sent, decoded when received.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Protocol

import msgspec

from replidict.protocol.peer_messages import Message, encode
from replidict.release import Release
from replidict.testing.simulator.loop import Loop, Timer, Trace
from replidict.testing.simulator.violation import Violation
from replidict.transport.peer_link import MISSED_CALL
from replidict.transport.probing import ROUND_INTERVAL, ROUNDS

SILENCE_TIMEOUT = HANDSHAKE_TIMEOUT = 2.0
"""Seconds of hearing nothing, or of waiting to be accepted, after which the real transport gives a connection up."""

MOST_MESSAGES = 300_000
"""In one run: thirty times what is usual. More are a storm, which feeds on itself."""


class Hello(msgspec.Struct, frozen=True):
    """What a node says of itself when it calls, or is called."""

    node_id: str
    release: Release
    may_hold_lease: bool


encode_hello = msgspec.msgpack.encode
decode_hello = msgspec.msgpack.Decoder(Hello).decode


class Channel:
    """One direction of a connection."""

    __slots__ = ("bytes", "delivered", "last_arrival", "lost_after", "sent", "stalled")

    def __init__(self) -> None:
        self.last_arrival = 0.0
        self.sent = self.delivered = 0
        self.bytes = 0
        self.lost_after: int | None = None  # messages with greater numbers never arrive
        self.stalled: list[tuple[int, Kind, bytes]] = []


class Connection:
    """One connection between two nodes. `ends` are their addresses, the caller first."""

    __slots__ = ("accepted_by", "called_by", "channels", "cut", "ends", "noticed", "number", "opened")

    def __init__(self, number: int, ends: tuple[str, str], called_by: Hello) -> None:
        self.number = number
        self.ends = ends
        self.called_by = called_by  # what the calling side says of itself
        self.accepted_by: Hello | None = None  # what the called side says of itself, once it has heard the call
        self.opened = False  # both sides have accepted each other
        self.cut = False
        self.noticed: set[str] = set()
        self.channels = {address: Channel() for address in ends}  # by receiver

    def hello(self, address: str) -> Hello:
        """What one of the two says of itself. Both have been heard."""
        said = self.called_by if address == self.ends[0] else self.accepted_by
        assert said is not None
        return said

    def other(self, address: str) -> str:
        """The other end."""
        return self.ends[1] if address == self.ends[0] else self.ends[0]


class End(Protocol):
    """What the network needs to know of a node."""

    @property
    def reachable(self) -> bool:
        """Whether the process runs and answers."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        ...

    @property
    def powered(self) -> bool:
        """Whether its machine runs, with or without the process."""
        ...

    @property
    def lag(self) -> float:
        """How far within the present step this node is."""
        ...

    def receive(self, event: Event) -> None:
        """Something arrived."""
        ...


class Caller(Protocol):
    """What the network needs to know of a node's transport."""

    address: str
    hello: Hello

    @property
    def wanted(self) -> Iterable[str]:
        """The addresses that it should be connected with."""
        ...


Kind = Literal["call", "answer", "farewell", "open", "message", "closed", "lost", "refused"]
Event = tuple[Kind, Connection, bytes]
"""What happens to a connection, and the bytes that say more: a message, or the other side's `Hello`."""


class Network:
    """All connections of a cluster."""

    def __init__(self, loop: Loop, trace: Trace, rng: random.Random) -> None:
        self.loop = loop
        self.trace = trace
        self.rng = rng
        self.ends: dict[str, End] = {}
        self.delay = (0.0002, 0.002)
        self.heavy_tail = 0.0  # how likely a message takes ten times as long
        self.capacity = 1 << 30  # bytes under way in one direction beyond which `send` refuses
        self.blocked: dict[tuple[str, str], int] = {}  # (sender, receiver) -> by how many faults
        self.slow: dict[tuple[str, str], float] = {}
        self.refusing: dict[frozenset[str], int] = {}  # pairs with a device between them -> by how many faults
        self.filter: Callable[[str, str, Message], bool] | None = None  # for tests by hand: False loses the message
        self._transports: dict[str, Caller] = {}  # those whose nodes run
        self._connections: dict[frozenset[str], Connection] = {}
        self._calls: dict[tuple[str, str], Timer] = {}  # by caller and called: the next attempt
        self._numbers = 0
        self.messages = 0
        self.cuts = 0
        self.farewells = 0
        self.refused = 0

    def add(self, address: str, end: End) -> None:
        """Add a node at an address."""
        self.ends[address] = end

    # -- calling ----------------------------------------------------------------------------------------------------

    def started(self, transport: Caller) -> None:
        """A node runs (again): it calls its peers, and they call it when they notice."""
        self._transports[transport.address] = transport
        for other in transport.wanted:
            self.call(transport.address, other, self.rng.uniform(0.001, 0.1))

    def call(self, caller: str, called: str, delay: float) -> None:
        """Have one node call another after a while, if that runs and still wants to by then."""
        if caller not in self._transports:
            return
        if caller < called:
            delay += MISSED_CALL
        pending = self._calls.get((caller, called))
        if pending is not None:
            pending.cancel()
        self._calls[caller, called] = self.loop.after(delay, partial(self._call, caller, called))

    def _call(self, caller: str, called: str) -> None:
        transport = self._transports.get(caller)
        if transport is None or called not in transport.wanted:
            return
        pair = frozenset((caller, called))
        present = self._connections.get(pair)
        if present is not None and caller not in present.noticed:
            if not present.opened:
                self._call_again(caller, called)  # the other one's call may come to nothing
            return
        reachable = called in self.ends and self.ends[called].reachable and self.ends[caller].reachable
        reachable = reachable and pair not in self.refusing
        if not reachable or self.blocked.get((caller, called)) or self.blocked.get((called, caller)):
            self._call_again(caller, called)
            return
        self._numbers += 1
        connection = self._connections[pair] = Connection(self._numbers, (caller, called), transport.hello)
        self.post(connection, called, "call", encode_hello(transport.hello))
        self.loop.after(HANDSHAKE_TIMEOUT, partial(self._too_late, connection))

    def _call_again(self, caller: str, called: str) -> None:
        delay = self.rng.uniform(0.2, 0.5)
        self._calls[caller, called] = self.loop.after(delay, partial(self._call, caller, called))

    def probe(self, connection: Connection, caller: str, rounds: int = ROUNDS) -> None:
        """Have one end of a connection that the other one has closed find out whether anybody listens there."""
        called = connection.other(caller)
        delay = self._delay(caller, called) + self._delay(called, caller)
        self.loop.after(delay, partial(self._probe, connection, caller, self._transports.get(caller), rounds - 1))

    def _probe(self, connection: Connection, caller: str, transport: Caller | None, rounds: int) -> None:
        called = connection.other(caller)
        if transport is None or self._transports.get(caller) is not transport:
            return
        refusing = frozenset(connection.ends) in self.refusing
        if not refusing and (self.blocked.get((caller, called)) or self.blocked.get((called, caller))):
            return  # no answer
        if refusing or (self.ends[called].powered and not self.ends[called].alive):
            self.trace.note("network", "refused", f"{caller} probes {called}")
            self.ends[caller].receive(("refused", connection, b""))
        elif self.ends[called].alive and rounds:
            self.loop.after(ROUND_INTERVAL, partial(self.probe, connection, caller, rounds))

    def _too_late(self, connection: Connection) -> None:
        if not connection.opened:
            self.cut(connection)

    def refuse(self, connection: Connection, why: str) -> None:
        """One side does not accept the other."""
        self.refused += 1
        self.trace.note("network", "refused", f"{connection.number} {connection.ends}: {why}")
        self.cut(connection)

    def bid_farewell(self, connection: Connection, data: bytes) -> None:
        """The called side does not know the caller as a member: last words for it."""
        self.farewells += 1
        self.trace.note("network", "farewell", f"{connection.number} {connection.ends}")
        self.post(connection, connection.ends[0], "farewell", data)
        self.loop.after(HANDSHAKE_TIMEOUT, partial(self.cut, connection))

    # -- connections ------------------------------------------------------------------------------------------------

    def died(self, address: str, *, silently: bool) -> None:
        """A node's process is gone; its system says so to the peers, unless that is gone, too."""
        self._transports.pop(address, None)
        for connection in list(self._connections.values()):
            if address in connection.ends:
                connection.noticed.add(address)
                self.cut(connection, slowly=silently)

    def cut(self, connection: Connection, *, slowly: bool = False) -> None:
        """End a connection; each end learns of it: soon, as it is closed or reset, or `slowly`, by hearing nothing."""
        if connection.cut:
            return
        connection.cut = True
        self.cuts += connection.opened
        self.trace.note("network", "cut", f"{connection.number} {connection.ends}")
        now = self.loop.now
        for address in connection.ends:
            channel = connection.channels[address]
            under_way = channel.sent - channel.delivered - len(channel.stalled)
            hopeless = channel.stalled or channel.last_arrival > now + SILENCE_TIMEOUT
            arrives = 0 if hopeless or self.rng.random() < 0.3 else self.rng.randint(0, under_way)
            channel.lost_after = channel.delivered + arrives
            channel.stalled.clear()
            if address in connection.noticed:
                continue
            delay = self.rng.uniform(0.1, SILENCE_TIMEOUT) if slowly else self.rng.uniform(0.0, 0.02)
            at = max(now + delay, channel.last_arrival if arrives else now)
            self.loop.at(at, partial(self._notice, connection, address, "lost" if slowly else "closed"))

    def _notice(self, connection: Connection, address: str, how: Kind) -> None:
        if address in connection.noticed:
            return
        connection.noticed.add(address)
        end = self.ends[address]
        if end.alive:
            end.receive((how, connection, b""))
        pause = (
            self.rng.choice((0.0, 0.2, 0.5)) * self.rng.random() if connection.opened else self.rng.uniform(0.2, 0.5)
        )
        self.call(address, connection.other(address), pause)

    def cut_some(self) -> bool:
        """Cut one connection. False if there is none."""
        whole = [connection for connection in self._connections.values() if not connection.cut]
        if whole:
            self.cut(self.rng.choice(whole), slowly=self.rng.random() < 0.4)
        return bool(whole)

    # -- partitions -------------------------------------------------------------------------------------------------

    def block(self, directions: Iterable[tuple[str, str]], *, give_up: bool = True) -> None:
        """Nothing goes from the first to the second of each any more; the receiver gives up, if it is to."""
        for direction in directions:
            self.blocked[direction] = self.blocked.get(direction, 0) + 1
            connection = self._connections.get(frozenset(direction))
            if give_up and connection is not None and not connection.cut:
                wait = self.rng.uniform(0.5, 1.25) * SILENCE_TIMEOUT
                self.loop.after(wait, partial(self._give_up, connection, direction))

    def refuse_between(self, pairs: Iterable[frozenset[str]]) -> None:
        """A device between each two resets what connects them, and refuses new connections."""
        for pair in pairs:
            self.refusing[pair] = self.refusing.get(pair, 0) + 1
            if (connection := self._connections.get(pair)) is not None:
                self.cut(connection)

    def let_through(self, pairs: Iterable[frozenset[str]]) -> None:
        """Undo one `refuse_between`."""
        for pair in pairs:
            self.refusing[pair] = self.refusing.get(pair, 1) - 1
            if self.refusing[pair] <= 0:
                del self.refusing[pair]

    def _give_up(self, connection: Connection, direction: tuple[str, str]) -> None:
        if self.blocked.get(direction):
            self.cut(connection, slowly=True)

    def unblock(self, directions: Iterable[tuple[str, str]]) -> None:
        """Undo one `block`."""
        for direction in directions:
            left = self.blocked.get(direction, 0) - 1
            if left > 0:
                self.blocked[direction] = left
                continue
            self.blocked.pop(direction, None)
            connection = self._connections.get(frozenset(direction))
            if connection is not None and connection.channels[direction[1]].stalled:
                self.loop.after(self.rng.uniform(0.0, 0.3), partial(self._flow, connection, direction))

    def _flow(self, connection: Connection, direction: tuple[str, str]) -> None:
        channel = connection.channels[direction[1]]
        if not self.blocked.get(direction) and not connection.cut:
            stalled, channel.stalled = channel.stalled, []
            for number, kind, data in stalled:
                self._arrive(connection, direction[1], number, kind, data)

    def heal(self) -> None:
        """No faults any more."""
        self.slow.clear()
        self.refusing.clear()
        self.heavy_tail = 0.0
        for direction in list(self.blocked):
            self.blocked[direction] = 1
            self.unblock([direction])
        for connection in list(self._connections.values()):
            if any(c.last_arrival > self.loop.now + SILENCE_TIMEOUT for c in connection.channels.values()):
                self.cut(connection)  # so slow that its ends have given it up

    # -- messages ---------------------------------------------------------------------------------------------------

    def _delay(self, sender: str, receiver: str) -> float:
        rng = self.rng
        delay = self.delay[0] + (self.delay[1] - self.delay[0]) * rng.random()
        if self.heavy_tail and rng.random() < self.heavy_tail:
            delay *= 10
        return delay * self.slow.get((sender, receiver), 1.0)

    def send(self, connection: Connection, sender: str, message: Message) -> bool:
        """Send into a connection that the sender believes to be whole."""
        receiver = connection.other(sender)
        if connection.channels[receiver].bytes > self.capacity:
            return False
        data = encode(message)
        self.messages += 1
        if self.messages > MOST_MESSAGES:
            raise Violation("storm", f"{self.messages:,} messages, the last one {type(message).__name__}")
        self.trace.message(f"{sender}>{receiver}", "send", data, message)
        if not connection.cut and (self.filter is None or self.filter(sender, receiver, message)):
            self.post(connection, receiver, "message", data)
        return True

    def post(self, connection: Connection, receiver: str, kind: Kind, data: bytes = b"") -> None:
        """Have something arrive at one end of a connection, after all that was sent there before."""
        if connection.cut:
            return
        sender, channel = connection.other(receiver), connection.channels[receiver]
        channel.sent += 1
        channel.bytes += len(data)
        now = self.loop.now + self.ends[sender].lag
        channel.last_arrival = at = max(channel.last_arrival, now + self._delay(sender, receiver))
        self.loop.at(at, partial(self._arrive, connection, receiver, channel.sent, kind, data))

    def _arrive(self, connection: Connection, receiver: str, number: int, kind: Kind, data: bytes) -> None:
        channel = connection.channels[receiver]
        if channel.lost_after is not None and number > channel.lost_after:
            return
        if channel.stalled or self.blocked.get((connection.other(receiver), receiver)):
            if not connection.cut:
                channel.stalled.append((number, kind, data))
            return
        channel.delivered += 1
        channel.bytes -= len(data)
        end = self.ends[receiver]
        if end.alive and receiver not in connection.noticed:
            end.receive((kind, connection, data))

"""A network of TCP connections, as seen from above the transport.

Rules kept here:

1. One connection per pair of nodes. Within one, messages arrive in order and once, each after a delay of its own.
2. A connection that is cut loses a suffix of what was under way in each direction; each end learns of it when it does,
   and until then sends into the void. The end that calls (the greater address, as in the real transport) may have a
   new connection before the other has noticed: then that one is told "disconnected" and "connected" in one go.
3. Where a direction is blocked, messages wait (TCP sends them again) until it is open again, or the receiver gives the
   connection up because it heard nothing.
4. Messages are real bytes: encoded when sent, decoded when received.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from pysyncobj.node import Node
from pysyncobj.transport import Transport
from typing_extensions import override

from replidict.raft.messages import Message, decode, encode
from tests.simulator.loop import Loop, Trace

SILENCE_TIMEOUT = 2.0
"""Seconds of hearing nothing after which the real transport gives a connection up."""


class Channel:
    """One direction of a connection."""

    __slots__ = ("bytes", "delivered", "last_arrival", "lost_after", "sent", "stalled")

    def __init__(self, opens_at: float) -> None:
        self.last_arrival = opens_at
        self.sent = self.delivered = 0
        self.bytes = 0
        self.lost_after: int | None = None  # messages with greater numbers never arrive
        self.stalled: list[tuple[int, bytes]] = []


class Connection:
    """One connection between two nodes. `ends` are their addresses, the caller first."""

    __slots__ = ("channels", "cut", "ends", "noticed", "number")

    def __init__(self, number: int, ends: tuple[str, str], opens_at: dict[str, float]) -> None:
        self.number = number
        self.ends = ends
        self.cut = False
        self.noticed: set[str] = set()
        self.channels = {address: Channel(opens_at[address]) for address in ends}  # by receiver

    def other(self, address: str) -> str:
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
    def lag(self) -> float:
        """How far within the present step this node is."""
        ...

    def receive(self, event: Event) -> None:
        """Something arrived."""
        ...


Event = tuple[str, Connection, bytes]
"""("open" | "message" | "lost", the connection, the message's bytes)"""


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
        self.filter: Callable[[str, str, Message], bool] | None = None  # for tests by hand: False loses the message
        self._connections: dict[tuple[str, str], Connection] = {}
        self._numbers = 0
        self.messages = 0
        self.cuts = 0

    def add(self, address: str, end: End) -> None:
        self.ends[address] = end

    # -- connections ------------------------------------------------------------------------------------------------

    def started(self, address: str) -> None:
        """A node runs (again): it calls those whom it is to call, and the others call it when they notice."""
        for other in self.ends:
            if other != address:
                pair = (max(address, other), min(address, other))
                if address == pair[0] or pair not in self._connections:
                    self.loop.after(self.rng.uniform(0.001, 0.1), partial(self._call, pair))

    def died(self, address: str, *, silently: bool) -> None:
        """A node's process is gone; its system says so to the peers, unless that is gone, too."""
        for pair, connection in list(self._connections.items()):
            if address in pair:
                connection.noticed.add(address)
                self.cut(connection, slowly=silently)

    def _call(self, pair: tuple[str, str]) -> None:
        caller, called = self.ends[pair[0]], self.ends[pair[1]]
        present = self._connections.get(pair)
        if not caller.alive or (present is not None and pair[0] not in present.noticed):
            return
        if not (caller.reachable and called.reachable) or self.blocked.get(pair) or self.blocked.get(pair[::-1]):
            self.loop.after(self.rng.uniform(0.2, 0.5), partial(self._call, pair))
            return
        self._numbers += 1
        now = self.loop.now
        opens_at = {address: now + self._delay(pair[1], pair[0]) for address in pair}
        connection = self._connections[pair] = Connection(self._numbers, pair, opens_at)
        for address in pair:
            self.loop.at(opens_at[address], partial(self._open, connection, address))

    def _open(self, connection: Connection, address: str) -> None:
        end = self.ends[address]
        if end.alive and address not in connection.noticed:
            end.receive(("open", connection, b""))

    def cut(self, connection: Connection, *, slowly: bool = False) -> None:
        """End a connection; each end learns of it sooner or later."""
        if connection.cut:
            return
        connection.cut = True
        self.cuts += 1
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
            self.loop.at(at, partial(self._notice, connection, address))
        if connection.ends[0] in connection.noticed:  # it died: it calls again when it is back
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        if self._connections.get(connection.ends) is connection:
            del self._connections[connection.ends]

    def _notice(self, connection: Connection, address: str) -> None:
        if address in connection.noticed:
            return
        connection.noticed.add(address)
        end = self.ends[address]
        if end.alive:
            end.receive(("lost", connection, b""))
        if address == connection.ends[0]:
            self._forget(connection)
            self.loop.after(self.rng.choice((0.0, 0.2, 0.5)) * self.rng.random(), partial(self._call, connection.ends))

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
            pair = (max(direction), min(direction))
            connection = self._connections.get(pair)
            if give_up and connection is not None and not connection.cut:
                wait = self.rng.uniform(0.5, 1.25) * SILENCE_TIMEOUT
                self.loop.after(wait, partial(self._give_up, connection, direction))

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
            connection = self._connections.get((max(direction), min(direction)))
            if connection is not None and connection.channels[direction[1]].stalled:
                self.loop.after(self.rng.uniform(0.0, 0.3), partial(self._flow, connection, direction))

    def _flow(self, connection: Connection, direction: tuple[str, str]) -> None:
        channel = connection.channels[direction[1]]
        if not self.blocked.get(direction) and not connection.cut:
            stalled, channel.stalled = channel.stalled, []
            for number, data in stalled:
                self._arrive(connection, direction[1], number, data)

    def heal(self) -> None:
        """No faults any more."""
        self.slow.clear()
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
        channel = connection.channels[receiver]
        if channel.bytes > self.capacity:
            return False
        data = encode(message)
        self.messages += 1
        self.trace.message(f"{sender}>{receiver}", "send", data, message)
        if connection.cut or (self.filter is not None and not self.filter(sender, receiver, message)):
            return True
        channel.sent += 1
        channel.bytes += len(data)
        now = self.loop.now + self.ends[sender].lag
        channel.last_arrival = at = max(channel.last_arrival, now + self._delay(sender, receiver))
        self.loop.at(at, partial(self._arrive, connection, receiver, channel.sent, data))
        return True

    def _arrive(self, connection: Connection, receiver: str, number: int, data: bytes) -> None:
        channel = connection.channels[receiver]
        if channel.lost_after is not None and number > channel.lost_after:
            return
        if channel.stalled or self.blocked.get((connection.other(receiver), receiver)):
            if not connection.cut:
                channel.stalled.append((number, data))
            return
        channel.delivered += 1
        channel.bytes -= len(data)
        end = self.ends[receiver]
        if end.alive and receiver not in connection.noticed:
            end.receive(("message", connection, data))


class SimulatedTransport(Transport):
    """PySyncObj's `Transport` of one node, over the simulated network."""

    def __init__(
        self, network: Network, address: str, on_send: Callable[[str, Message], None], sync_obj: Any, self_node: Node,
        other_nodes: Iterable[Node],
    ) -> None:  # fmt: skip
        super().__init__(sync_obj, self_node, other_nodes)
        self._network = network
        self._address = address
        self._on_send = on_send
        self._nodes: dict[str, Node] = {}
        self._live: dict[str, Connection] = {}
        self._destroyed = False

    @override
    def addNode(self, node: Node) -> None:
        self._nodes[node.id] = node

    @override
    def dropNode(self, node: Node) -> None:
        self._nodes.pop(node.id, None)
        connection = self._live.pop(node.id, None)
        if connection is not None:
            self._network.cut(connection)
            self._onNodeDisconnected(node)

    @override
    def send(self, node: Node, message: Message) -> bool:
        connection = self._live.get(node.id)
        if connection is None:
            return False
        self._on_send(node.id, message)
        return self._network.send(connection, self._address, message)

    def tick(self, now: float) -> None:
        """Nothing is ever due: the network keeps its own time."""

    def next_deadline(self) -> float:
        """Never."""
        return float("inf")

    @override
    def destroy(self) -> None:
        if not self._destroyed:
            self._destroyed = True
            self.setOnMessageReceivedCallback(None)
            self.setOnNodeConnectedCallback(None)
            self.setOnNodeDisconnectedCallback(None)
            self._live.clear()

    def handle(self, event: Event) -> None:
        """What a poll does: tell the engine what arrived."""
        kind, connection, data = event
        address = connection.other(self._address)
        node = self._nodes.get(address)
        if node is None:
            return
        live = self._live.get(address)
        if kind == "message":
            if live is connection:
                self._onMessageReceived(node, decode(data))
        elif kind == "open":
            if live is not None:
                self._onNodeDisconnected(node)
            self._live[address] = connection
            self._onNodeConnected(node)
        elif live is connection:
            del self._live[address]
            self._onNodeDisconnected(node)

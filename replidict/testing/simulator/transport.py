"""The transport of a simulated node: the decisions of `transport.links` and `transport.handshake`, without bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pysyncobj.node import Node
from pysyncobj.transport import Transport
from typing_extensions import override

from replidict.protocol.peer_messages import MembersAre, Message, decode, encode
from replidict.release import FIRST, Release
from replidict.testing.simulator.network import Connection, Event, Hello, Kind, Network, decode_hello


class Member(Protocol):
    """What the transport needs to know of an engine."""

    def admit(self, address: str, node_id: str) -> str | None:
        """Why the node with this identity may not be the one at this address; None if it may."""
        ...

    def meet(self, address: str, release: Release) -> str | None:
        """Why a node of this release may not be the one at this address; None if it may."""
        ...

    def members_are(self) -> MembersAre:
        """The message for a caller that is not a member."""
        ...

    def peer_closed(self, address: str, may_hold_lease: bool) -> None:
        """The connection that was just lost was closed by its other end."""
        ...

    def peer_refused(self, address: str) -> None:
        """Nobody listens at the address of a peer that has closed its connection."""
        ...

    def hear_from_non_member(self, message: MembersAre) -> None:
        """Words of such a caller."""
        ...


class SimulatedTransport(Transport):
    """PySyncObj's `Transport` of one node, over the simulated network."""

    def __init__(
        self, network: Network, address: str, hello: Hello, on_send: Callable[[str, Message], None], engine: Any,
        self_node: Node, other_nodes: Iterable[Node],
    ) -> None:  # fmt: skip
        super().__init__(engine, self_node, other_nodes)
        self.address = address
        self.hello = hello
        self.wanted: dict[str, Node] = {}
        """Those it is to be connected with, by address."""
        self._network = network
        self._engine: Member = engine
        self._on_send = on_send
        self._live: dict[str, Connection] = {}
        self._closed: dict[str, Connection] = {}  # by their other end; the last one
        self._parting: set[Connection] = set()  # called by a node that is no member
        self._destroyed = False

    @override
    def addNode(self, node: Node) -> None:
        self.wanted[node.id] = node
        self._network.call(self.address, node.id, self._network.rng.uniform(0.001, 0.1))

    @override
    def dropNode(self, node: Node) -> None:
        self.wanted.pop(node.id, None)
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
        return self._network.send(connection, self.address, message)

    def probe(self, node: Node) -> None:
        """Find out whether anybody listens there, if this release can do that."""
        if self.hello.release.level > FIRST.level:
            self._network.probe(self._closed[node.id], self.address)

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

    def abandon(self) -> None:
        """Nothing forks here."""
        raise NotImplementedError

    def handle(self, event: Event) -> None:
        """Do what a poll does: tell the engine what arrived."""
        kind, connection, data = event
        address = connection.other(self.address)
        node, live = self.wanted.get(address), self._live.get(address)
        if kind == "call":
            self._called(connection, node, decode_hello(data))
        elif connection in self._parting:
            self._parted(connection, kind, data)
        elif node is None:
            self._network.cut(connection)
        elif kind == "message":
            if live is connection:
                self._onMessageReceived(node, decode(data))
        elif kind in ("lost", "closed"):
            if live is connection:
                self._lose(connection, node, kind)
        elif kind == "refused":
            if live is None and self._closed.get(address) is connection:
                self._engine.peer_refused(address)
        elif kind == "open":
            self._open(connection, node)
        elif (refused := self._refusal(address, connection.accepted_by)) is not None:
            self._network.refuse(connection, refused)
        elif kind == "answer":
            self._network.post(connection, address, "open")
            self._open(connection, node)
        else:
            self._open(connection, node)
            self._onMessageReceived(node, decode(data))

    def _lose(self, connection: Connection, node: Node, kind: Kind) -> None:
        del self._live[node.id]
        self._onNodeDisconnected(node)
        if kind == "closed":
            self._closed[node.id] = connection
            self._engine.peer_closed(node.id, connection.hello(node.id).may_hold_lease)

    def _called(self, connection: Connection, node: Node | None, hello: Hello) -> None:
        """Another node calls this one."""
        connection.accepted_by = self.hello
        if node is None:
            self._parting.add(connection)
            self._network.bid_farewell(connection, encode(self._engine.members_are()))
        elif (refused := self._refusal(node.id, hello)) is not None:
            self._network.refuse(connection, refused)
        else:
            self._network.post(connection, node.id, "answer")

    def _refusal(self, address: str, hello: Hello | None) -> str | None:
        assert hello is not None
        return self._engine.meet(address, hello.release) or self._engine.admit(address, hello.node_id)

    def _parted(self, connection: Connection, kind: Kind, data: bytes) -> None:
        """The connection with a non-member ends; its first message is heard."""
        self._parting.discard(connection)
        self._network.cut(connection)
        if kind == "message" and isinstance(message := decode(data), MembersAre):
            self._engine.hear_from_non_member(message)

    def _open(self, connection: Connection, node: Node) -> None:
        connection.opened = True
        if node.id in self._live:
            self._onNodeDisconnected(node)
        self._live[node.id] = connection
        self._onNodeConnected(node)

"""The network side of a node: its listener, one connection to each peer, and who may connect.

Rules this module keeps:

1. Everything runs in the thread that polls and ticks, and nothing in it blocks (but the constructor, which binds).
2. The engine hears of a peer only once both sides have accepted each other (see `handshake`): connected, then messages
   in order, then disconnected, once each and in turn; disconnected comes from `tick` or the poll, never inside `send`.
3. One connection per pair (see `peer_link`). A new one replaces the old one.
4. Whatever an unauthenticated caller does (see `unauthenticated`) costs bounded memory, bounded work per poll, and one
   line in the log per host and minute; whatever a peer does, few lines a minute.
5. A client (see `clients`) and a caller that is no member never reach the engine, but for what such a caller says of
   the members.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from pysyncobj.node import Node
from pysyncobj.poller import Poller
from pysyncobj.transport import Transport
from typing_extensions import override

from replidict.log_throttle import LogThrottle
from replidict.logging_thread import Logger
from replidict.protocol.client_messages import Answer, Request
from replidict.protocol.peer_messages import MembersAre, Message, encode
from replidict.release import Release
from replidict.security import Security, split_address
from replidict.transport.clients import Clients
from replidict.transport.connections import HANDSHAKE_TIMEOUT, Traffic
from replidict.transport.dialing import Dialing
from replidict.transport.framing import TAG_BYTES, frame
from replidict.transport.handshake import CLOSE, OPENED, PING, NodeIdentity, Opened, State, WireSession
from replidict.transport.peer_link import Pair
from replidict.transport.probing import Probes
from replidict.transport.tcp import Listener, SocketConnection
from replidict.transport.unauthenticated import UnauthenticatedConnections

logger = Logger(__name__)

PING_INTERVAL = 0.5  # seconds of silence after which this side says something
SILENCE_TIMEOUT = 2.0  # seconds of hearing nothing after which a peer is given up


class TcpTransport(Transport):
    """PySyncObj's `Transport` over TCP. Listens from the constructor on; `ReplidictError` if it can't."""

    def __init__(
        self,
        sync_obj: Any,
        self_node: Node,
        other_nodes: Iterable[Node],
        *,
        poller: Poller,
        identity: NodeIdentity,
        security: Security,
        clock: Callable[[], float],
        max_frame_bytes: int,
        admit: Callable[[str, str], str | None],
        farewell: Callable[[], Message | None],
        hear_of_members: Callable[[MembersAre], None],
        denied: Callable[[str], None],
        closed: Callable[[str, bool], None],
        refused: Callable[[str], None],
        meet: Callable[[str, Release], str | None] = lambda address, release: None,
    ) -> None:
        """`admit`, `meet` and `farewell` as in `WireSession`, but `admit` gives the text alone. `hear_of_members` gets
        what a proven caller that is no member says of them: all that this node knew may have been replaced meanwhile.
        `denied` gets the address of a proven caller that knows another identity at this node's address. `closed` gets
        that of a peer whose connection is lost, as the engine was told, because it has closed it, and whether that may
        read under a lease; `refused` that of a peer where a `probe` found nobody."""
        super().__init__(sync_obj, self_node, other_nodes)
        self._me, self._security, self._clock, self._admit = identity, security, clock, admit
        self._meet = meet
        self._farewell, self._hear_of_members, self._denied, self._closed = farewell, hear_of_members, denied, closed
        self._max_frame_bytes = max_frame_bytes
        self._key = security.stretch(identity.cluster_id)
        self._tag_bytes = TAG_BYTES if security.mode == "secret" else 0
        self._peers: dict[str, Pair] = {}
        self._traffic = Traffic(poller, clock, heard=self._hear, moved=self._moved, ended=self._ended)
        self._connections = self._traffic.connections
        self._unauthenticated = UnauthenticatedConnections()
        self._probes = Probes(poller, security.loopback_only, refused)
        self._announced: dict[str, SocketConnection] = {}  # the connections that the engine knows of, by address
        self._log_throttle = LogThrottle(identity.address)
        self._dialing = Dialing(self._add, self._log_throttle)
        self._encoded: tuple[Message | None, bytes] = (None, b"")
        self._last_tick = clock()
        self._ping = frame(PING, self._tag_bytes)
        self.clients = Clients(self._traffic.queue, self._part, self._traffic.fail, self._tag_bytes, max_frame_bytes)
        self._wake = float("-inf")
        self._destroyed = False
        self._cut = frozenset[str]()
        for node in other_nodes:
            split_address(node.id)
            self.addNode(node)
        self._listener = Listener(identity.address, poller, clock, self._on_call, self._log_throttle)

    # -- what the engine calls --------------------------------------------------------------------------------------

    @override
    def addNode(self, node: Node) -> None:
        """Let a node in, and call it if that is for this side to do."""
        if not self._destroyed and node.id != self._me.address and node.id not in self._peers:
            self._peers[node.id] = Pair(self._me.address, node, self._security.loopback_only, self._clock())
            self._wake = float("-inf")

    @override
    def dropNode(self, node: Node) -> None:
        """Close the connection to a node, and let it in no more."""
        self.close_peer(node)
        peer = self._peers.pop(node.id, None)
        self._probes.cancel(node.id)
        if peer is not None and peer.calling is not None:
            self._traffic.fail(peer.calling, "dropped", "it is no member any more")

    def close_peer(self, node: Node) -> None:
        """Close the connection to a node, if there is one; it may come back at once."""
        peer = self._peers.get(node.id)
        if peer is not None and peer.live is not None:
            connection = peer.live
            self._traffic.queue(connection, frame(CLOSE, self._tag_bytes))
            self._traffic.fail(connection, "dropped", "closed by this node")

    def cut(self, addresses: Iterable[str]) -> None:
        """Have no connection with these members from now on, as if there were no way to them: for tests of that."""
        self._cut = frozenset(addresses)
        for peer in list(self._peers.values()):
            if peer.node.id in self._cut:
                self.close_peer(peer.node)
                if peer.calling is not None:
                    self._traffic.fail(peer.calling, "dropped", "there is no way to it")
        self._wake = float("-inf")

    @override
    def send(self, node: Node, message: Message) -> bool:
        """Send, or queue, a message. False, and nothing is sent, if there is no connection or its queue is full."""
        peer = self._peers.get(node.id)
        connection = peer.live if peer is not None else None
        if connection is None or connection.full:
            return False
        if message is not self._encoded[0]:
            if not isinstance(message, msgspec.Struct):
                raise TypeError(f"not a message: {type(message)}")
            self._encoded = message, frame(encode(message), self._tag_bytes)
        framed = self._encoded[1]
        if len(framed) + self._tag_bytes > self._max_frame_bytes + 4:
            logger.error("%s: a message of %d bytes is too large to send", self._me.address, len(framed))
            return False
        self._traffic.queue(connection, framed)
        return not connection.dead

    def probe(self, node: Node) -> None:
        """Find out whether anybody listens at the address of a node that has closed its connection."""
        peer = self._peers.get(node.id)
        if peer is not None and peer.live is None and node.id not in self._cut and not self._destroyed:
            self._probes.begin(node.id)

    def tick(self, now: float) -> None:
        """Everything that is due: closing, calling, pings, deadlines."""
        self._encoded = (None, b"")
        self._bury()
        self._probes.tick(now)
        paused = now - self._last_tick - PING_INTERVAL
        self._last_tick = now
        if paused > 0:
            # This thread stood still (a long write, a stopped process): what the peers sent meanwhile is not read
            # yet, so their silence says nothing.
            for connection in self._connections.values():
                connection.heard_at = min(now, connection.heard_at + paused)
                connection.deadline += paused
        if now < self._wake or self._destroyed:
            return
        self._wake = now + PING_INTERVAL
        self._listener.tick(now)
        for connection in list(self._connections.values()):
            self._attend(connection, now)
        for peer in list(self._peers.values()):
            if peer.should_call(now) and not self._dialing.call(peer, now):
                self._wake = min(self._wake, peer.route.due)
        self._log_throttle.tick(now)
        self._bury()

    def next_deadline(self) -> float:
        """The clock time at which `tick` wants to run next."""
        if self._destroyed:
            return float("inf")
        return self._last_tick if self._traffic.dead else min(self._wake, self._probes.due)

    @override
    def destroy(self) -> None:
        """Close everything; the engine hears no more. Idempotent."""
        if self._destroyed:
            return
        self._destroyed = True
        self.setOnMessageReceivedCallback(None)
        self.setOnNodeConnectedCallback(None)
        self.setOnNodeDisconnectedCallback(None)
        for peer in list(self._peers.values()):
            self.dropNode(peer.node)
        self._probes.close()
        self._listener.close()
        for connection in list(self._connections.values()):
            self._traffic.fail(connection, "dropped", "this node is closing")
        self._bury()
        self._dialing.close(self._probes.lookups)

    def abandon(self) -> None:
        """Close the descriptors of a forked child, and say nothing to anyone: the connections are the parent's."""
        self._destroyed = True
        self._listener.abandon()
        self._probes.abandon()
        self._traffic.abandon()

    # -- connections ------------------------------------------------------------------------------------------------

    def _hear(self, connection: SocketConnection, event: Message | Request | Answer | Opened) -> None:
        """A session yielded something."""
        if event is OPENED:
            self._open(connection)
        elif connection.session.farewell is not None:
            connection.session.farewell = None  # these were its first words
            if isinstance(event, MembersAre):
                self._hear_of_members(event)
        elif connection.node is not None:
            self._onMessageReceived(connection.node, event)
        else:
            assert connection.client is not None and isinstance(event, Request)
            self.clients.hear(connection.client, event, connection.heard_at)

    def _moved(self, connection: SocketConnection) -> None:
        """A session got further."""
        session = connection.session
        if connection.client is not None:
            self.clients.check_room(connection.client)
        elif session.state is State.AWAIT_PING and session.peer is not None and session.unwelcome is None:
            self._expect(connection, session.peer.address)

    def _open(self, connection: SocketConnection) -> None:
        """Both sides have accepted each other: tell the engine."""
        # What the session has to say was sealed first, so it must be queued before what the engine says.
        self._traffic.say(connection)
        session, now = connection.session, self._clock()
        if session.is_client:
            self._unauthenticated.gone(connection)
            self.clients.come(connection, now)
            return
        if session.farewell is not None:
            self._complain(connection, "member", session.unwelcome or "")
            self._part(connection, frame(encode(session.farewell), self._tag_bytes))
            return
        peer = self._peers.get(session.peer.address) if session.peer is not None else None
        if peer is None or peer.node.id in self._cut:
            self._traffic.fail(connection, "dropped", "it is no member any more" if peer is None else "no way to it")
            return
        address = peer.node.id
        if peer.live is not None:
            self._traffic.fail(peer.live, "replaced", "the peer made a new one")
        self._tell_lost(address)
        self._probes.cancel(address)
        self._unauthenticated.gone(connection)
        if peer.calling is not None and peer.calling is not connection:
            self._traffic.fail(peer.calling, "replaced", "the peer made one first")
        peer.opened(connection, now)
        connection.node = peer.node
        self._announced[address] = connection
        self._dialing.connected(address, now)
        self._onNodeConnected(peer.node)

    def _expect(self, connection: SocketConnection, address: str) -> None:
        """A peer that called was accepted here, and has yet to accept this side."""
        peer = self._peers.get(address)
        if peer is not None:
            peer.coming = connection
            if peer.calling is not None and peer.greater:  # it can't be open there yet: this side says the last word
                self._traffic.fail(peer.calling, "replaced", "the peer made one first")

    def _part(self, connection: SocketConnection, framed: bytes) -> None:
        """Say these last words, and close it when the other side has heard them: closed at once, with words of that
        side unread, some systems would take them back."""
        self._traffic.queue(connection, framed)
        self._traffic.queue(connection, frame(CLOSE, self._tag_bytes))
        if not connection.dead:
            self._forget(connection)
            connection.parting = True
            connection.deadline = self._clock() + HANDSHAKE_TIMEOUT
            self._wake = min(self._wake, connection.deadline)
            self._come(connection)

    def _forget(self, connection: SocketConnection) -> None:
        """It is nobody's any more whom this node lets in."""
        self._unauthenticated.gone(connection)
        hello = connection.session.peer
        peer = self._peers.get(hello.address) if hello is not None else None
        if peer is not None and peer.coming is connection:
            peer.coming = None
        if connection.client is not None:
            self.clients.gone(connection.client)
            connection.client = None

    def _tell_lost(self, address: str) -> None:
        connection = self._announced.pop(address, None)
        if connection is not None and connection.node is not None:
            self._onNodeDisconnected(connection.node)
            if connection.ended and connection.session.peer is not None:
                self._closed(address, connection.session.peer.may_hold_lease)

    def _ended(self, connection: SocketConnection, code: str, text: str, by_peer: bool) -> None:
        """A connection failed: log why."""
        self._forget(connection)
        if code == "identity" and by_peer and connection.session.proven and connection.session.peer is not None:
            self._denied(connection.session.peer.address)
        address = connection.called if connection.node is None else connection.node.id
        peer = self._peers.get(address) if address is not None else None
        if peer is None:
            self._complain(connection, code, text)
            return
        now = self._clock()
        if peer.live is connection:
            brief = peer.lost(now)
            if code in ("protocol", "tag", "tls"):
                self._log_throttle.log(peer.node.id, now, f"dropped {peer.node.id}: {text}")
            else:
                level = logging.INFO if code == "dropped" or (code == "closed" and brief) else logging.WARNING
                self._dialing.log(peer, now, level, text)
            self._wake = min(self._wake, peer.route.due)
        if peer.calling is connection:
            peer.calling = None
            if code != "replaced":
                self._dialing.failed(peer, now, code, f"it refuses this node: {text}" if by_peer else text)
                self._wake = min(self._wake, peer.route.due)

    def _complain(self, connection: SocketConnection, code: str, text: str) -> None:
        """Log what an unauthenticated caller did, unless it just went away."""
        if code in ("lost", "ended", "dropped", "closed", "crossed"):
            return
        session = connection.session
        who = connection.remote
        if session.peer is not None:
            who += f" (as {session.peer.address or 'a client'})"
        # An unauthenticated connection may go by any number of names; without secret and TLS all are.
        proven = session.proven and self._security.mode != "plain"
        key = who if proven else connection.remote
        self._log_throttle.log(key, self._clock(), f"refused a connection from {who}: {text}")

    def _bury(self) -> None:
        """Close what failed, and tell the engine."""
        for connection in self._traffic.bury():
            if connection.node is not None and self._announced.get(connection.node.id) is connection:
                self._tell_lost(connection.node.id)

    def _attend(self, connection: SocketConnection, now: float) -> None:
        """Deadlines and pings of one connection."""
        if connection.dead:
            return
        if connection.client is not None:
            due = self.clients.attend(connection.client, self._ping, now)
        elif connection.node is None:
            due = connection.deadline
            if now >= due:
                what = "no answer" if connection.connecting else "the handshake took too long"
                self._traffic.fail(connection, "dropped" if connection.parting else "timeout", what)
        elif now >= connection.heard_at + SILENCE_TIMEOUT:
            self._traffic.fail(connection, "silent", f"nothing heard for {SILENCE_TIMEOUT:.0f} s")
            return
        else:
            due = connection.heard_at + SILENCE_TIMEOUT
            if not connection.wants_write:  # else what is queued tells the peer that this node is alive
                if now >= connection.sent_at + PING_INTERVAL:
                    self._traffic.queue(connection, self._ping)
                due = min(due, connection.sent_at + PING_INTERVAL)
        self._wake = min(self._wake, due)

    # -- accepting --------------------------------------------------------------------------------------------------

    def _add(self, sock: socket.socket, remote: str, called: str | None, deadline: float) -> SocketConnection:
        session = WireSession(
            self._me,
            self._security,
            self._key,
            called=called,
            max_frame_bytes=self._max_frame_bytes,
            may_call=self._may_call,
            admit=self._admit_as,
            meet=self._meet,
            farewell=self._farewell,
        )
        connection = SocketConnection(sock, session, remote, called, deadline)
        self._traffic.add(connection)
        self._wake = min(self._wake, deadline)
        return connection

    def _may_call(self, address: str) -> str | None:
        if address not in self._peers:
            return f"{address!r} is no member of the cluster that {self._me.address} is in: add it, or check peers="
        return None

    def _admit_as(self, address: str, node_id: str) -> tuple[str, str] | None:
        if (problem := self._admit(address, node_id)) is not None:
            return "identity", problem
        peer = self._peers.get(address)
        if peer is not None and peer.crossed(self._clock()):
            return "crossed", f"{self._me.address} and {address} called each other, and one call is enough"
        return None

    def _on_call(self, sock: socket.socket, remote: str) -> None:
        """Somebody called."""
        self._come(self._add(sock, remote, None, self._clock() + HANDSHAKE_TIMEOUT))

    def _come(self, connection: SocketConnection) -> None:
        victim = self._unauthenticated.come(connection)
        if victim is not None:
            self._traffic.fail(victim, "crowd", "too many connections wait to be accepted")

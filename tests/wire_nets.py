"""Transports over real sockets on loopback, without engines, and strangers that call them.

Time is a counter that moves a millisecond per round of the loop, so seconds of timeouts take no seconds to test.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
from pysyncobj.node import Node
from pysyncobj.poller import Poller, PollPoller

from replidict.protocol.peer_messages import MembersAre, Message, TimeoutNow
from replidict.security import Mode, Security
from replidict.transport import tcp
from replidict.transport.framing import frame
from replidict.transport.handshake import OPENED, NodeIdentity, WireSession
from replidict.transport.links import TcpTransport
from tests.wire_support import Certificates

MAX_FRAME = 6 * 1024 * 1024
Event = tuple[str, str]


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


_ports = iter(random.SystemRandom().sample(range(10_000, 30_000), 3000))


def free_port() -> int:
    """A port that is free, and below those the system hands out to callers, which would take it now and then."""
    for port in _ports:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def addresses(count: int, host: str = "127.0.0.1") -> list[str]:
    """In ascending order: each calls those before it."""
    return sorted(f"{host}:{free_port()}" for _ in range(count))


class Net:
    """A clock, the nodes on it, and the loop that drives both."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.now = 1000.0
        self.hosts: list[Host] = []  # those that run
        self.made: list[Host] = []

    def host(self, address: str, peers: list[str], security: Security, **how: Any) -> Host:
        host = Host(self, address, [peer for peer in peers if peer != address], security, **how)
        self.hosts.append(host)
        self.made.append(host)
        return host

    def mesh(self, count: int, mode: Mode, **how: Any) -> list[Host]:
        peers = addresses(count)
        mesh = [self.host(address, peers, self.certificates.security(mode), **how) for address in peers]
        self.run(lambda: all(len(host.up) == count - 1 for host in mesh))
        return mesh

    def round(self) -> None:
        self.now += 0.001
        for host in self.hosts:
            host.poller.poll(0)
            host.wire.tick(self.now)

    def run(self, until: Callable[[], object], seconds: float = 20.0) -> float:
        """Drive until something holds; the seconds that took, on the clock."""
        start = self.now
        while not until():
            assert self.now - start < seconds, [(host.address, host.events) for host in self.hosts]
            self.round()
        return self.now - start

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.round()

    def stop(self, host: Host) -> None:
        self.hosts.remove(host)
        host.wire.destroy()


class Host:
    """A transport with its poller, and what its engine would see."""

    def __init__(
        self,
        net: Net,
        address: str,
        peers: list[str],
        security: Security,
        *,
        node_id: str = "",
        cluster: str = "c1",
        may_hold_lease: bool = True,
        poller: Callable[[], Poller] = PollPoller,
        admit: Callable[[str, str], str | None] = lambda address, node_id: None,
        farewell: Callable[[], Message | None] = lambda: None,
    ) -> None:
        self.address, self.poller = address, poller()
        self.events: list[Event] = []
        self.heard: list[tuple[str, Message]] = []
        self.members: list[MembersAre] = []  # from callers that are none
        self.denied: list[str] = []  # who knows another node here
        self.closed: list[tuple[str, bool]] = []  # who closed a connection, and whether it may hold a lease
        self.refused: list[str] = []  # where a probe found nobody
        self.on_connected: Callable[[Node], object] = lambda node: None
        self.on_message: Callable[[Node, Message], None] = lambda node, message: None
        self.wire = TcpTransport(
            None, Node(address), [Node(peer) for peer in peers], poller=self.poller,
            identity=NodeIdentity(cluster, node_id or f"id of {address}", address, may_hold_lease), security=security,
            clock=lambda: net.now, max_frame_bytes=MAX_FRAME, admit=admit, farewell=farewell,
            hear_of_members=self.members.append, denied=self.denied.append,
            closed=lambda address, may_hold_lease: self.closed.append((address, may_hold_lease)),
            refused=self.refused.append,
        )  # fmt: skip
        self.wire.setOnMessageReceivedCallback(self._hear)
        self.wire.setOnNodeConnectedCallback(lambda node: self._event("+", node))
        self.wire.setOnNodeDisconnectedCallback(lambda node: self._event("-", node))

    def _hear(self, node: Node, message: Message) -> None:
        assert node.id in self.up
        self.heard.append((node.id, message))
        self.on_message(node, message)

    def _event(self, sign: str, node: Node) -> None:
        assert (node.id in self.up) == (sign == "-"), "connected and disconnected come in turn"
        self.events.append((sign, node.id))
        if sign == "+":
            self.on_connected(node)

    @property
    def up(self) -> set[str]:
        last = {address: sign for sign, address in self.events}
        return {address for address, sign in last.items() if sign == "+"}

    def send(self, to: Host | str, message: Message) -> bool:
        return self.wire.send(Node(to if isinstance(to, str) else to.address), message)

    def messages_of(self, other: Host) -> list[Message]:
        return [message for address, message in self.heard if address == other.address]


@contextmanager
def a_net(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> Iterator[Net]:
    """Checks at the end that nothing is left: no file descriptor, no thread, no error in the log."""
    before, threads = open_descriptors(), threading.active_count()
    net = Net(certificates)
    yield net
    for host in net.made:
        host.wire.destroy()
        host.wire.destroy()
        assert host.wire.next_deadline() == float("inf")
        assert not host.send("127.0.0.1:1", TimeoutNow(1))
    assert open_descriptors() == before
    assert threading.active_count() == threads
    assert all(record.levelno <= logging.WARNING for record in caplog.records)


def warnings(caplog: pytest.LogCaptureFixture, host: Host | None = None) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line for line in lines if host is None or line.startswith(f"{host.address}: ")]


def live(host: Host, address: str) -> tcp.SocketConnection:
    connection = host.wire._peers[address].live
    assert connection is not None
    return connection


def serves(net: Net, hosts: list[Host]) -> None:
    """Every one of them hears every other one, and no connection is lost meanwhile."""
    everyone = {host.address for host in hosts}
    net.run(lambda: all(host.up | {host.address} >= everyone for host in hosts), seconds=1.0)
    events = [list(host.events) for host in hosts]
    message = TimeoutNow(random.getrandbits(60))
    for one in hosts:
        for two in hosts:
            assert one is two or one.send(two, message)
    wanted = len(hosts) - 1
    net.run(lambda: all([m for _, m in host.heard].count(message) == wanted for host in hosts), seconds=1.0)
    assert [host.events for host in hosts] == events


class Stranger:
    """Raw sockets that call a node."""

    def __init__(self, target: Host) -> None:
        host, port = target.address.rsplit(":", 1)
        self._there = host, int(port)
        self.sockets: list[socket.socket] = []

    def call(self, data: bytes = b"", source: str = "") -> socket.socket:
        sock = socket.socket()
        if source:
            sock.bind((source, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the system's clock runs slowly here
        self.sockets.append(sock)
        sock.setblocking(False)
        sock.connect_ex(self._there)
        if data:
            sock.send(data)
        return sock

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in self.sockets:
            sock.close()


def closed(sock: socket.socket) -> bool:
    """Has the other side closed it? (What it said before is read.)"""
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def handshake_of(net: Net, target: Host, address: str, mode: Mode) -> bytes:
    """The first bytes of a caller."""
    session = session_for(net, target, address, mode)
    session.start()
    return b"".join(bytes(session.encrypt(out)) for out in session.take_output()) + bytes(session.encrypt(b""))


@lru_cache
def key_of(security: Security) -> bytes:
    return security.stretch("c1")


def session_for(net: Net, target: Host, address: str, mode: Mode) -> WireSession:
    security = net.certificates.security(mode)
    return WireSession(
        NodeIdentity("c1", "raw", address) if address else NodeIdentity("", "", ""), security, key_of(security),
        called=target.address,
        max_frame_bytes=MAX_FRAME, may_call=lambda address: None, admit=lambda address, node_id: None,
    )  # fmt: skip


class RawPeer:
    """A proven peer, driven by hand: it records what it says, and reads only if asked to."""

    def __init__(self, net: Net, stranger: Stranger, target: Host, address: str, mode: Mode) -> None:
        self.session = session_for(net, target, address, mode)
        self.sock = stranger.call()
        self.said = bytearray()
        self.session.start()
        self.opened = False
        net.run(self._handshake)

    def _handshake(self) -> bool:
        self._flush()
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return self.opened
        for event in self.session.receive(data):
            self.opened = self.opened or event is OPENED
        self._flush()
        return self.opened

    def _flush(self) -> None:
        for out in self.session.take_output():
            self.write(out)
        self.write(b"")

    def write(self, framed: bytes) -> None:
        out = bytes(self.session.encrypt(framed))
        self.said += out
        if out:
            self.sock.send(out)

    def say(self, body: bytes) -> None:
        self.write(self.session.seal(frame(body, self.session.tag_bytes)))


def with_a_raw_peer(net: Net, mode: Mode) -> tuple[list[Host], str]:
    """Two nodes that expect a third, which is greater than both and so calls them."""
    hosts = [net.host(p, ["127.0.0.1:9797"], net.certificates.security(mode)) for p in addresses(2)]
    for host, other in (hosts, hosts[::-1]):
        host.wire.addNode(Node(other.address))
    net.run(lambda: all(host.up for host in hosts))
    return hosts, "127.0.0.1:9797"


def held_back(host: Host) -> Callable[[], None]:
    """Keep a node from calling; what is returned lets it call again."""
    dialing = host.wire._dialing
    real = dialing.call
    dialing.call = lambda peer, now: True  # type: ignore[method-assign]

    def release() -> None:
        dialing.call = real  # type: ignore[method-assign]

    return release

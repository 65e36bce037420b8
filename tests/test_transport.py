"""The wire over real sockets on loopback: peers meet, part and meet again, and strangers change nothing.

Time is a counter that moves a millisecond per round of the loop, so seconds of timeouts take no seconds to test.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import select
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import trustme
from pysyncobj.node import Node
from pysyncobj.poller import POLL_EVENT_TYPE, Poller, PollPoller, SelectPoller

from replidict.errors import ReplidictError
from replidict.raft import asks, complaints, guests, messages, routes, sockets, transport
from replidict.raft.complaints import Complaints
from replidict.raft.framing import WireError, frame
from replidict.raft.guests import ASKS_MAX, GUESTS_MAX
from replidict.raft.messages import MembersAre, Message, Propose, TimeoutNow
from replidict.raft.pairs import MISSED_CALL
from replidict.raft.routes import Route
from replidict.raft.sockets import SEND_QUEUE_BYTES, connected
from replidict.raft.strangers import STRANGERS_MAX
from replidict.raft.transport import TcpTransport
from replidict.raft.wire import OPENED, PING, Identity, Session
from replidict.security import Mode, Security, security_for
from tests.wire_support import MODES, SECRET, Certificates

MAX_FRAME = 6 * 1024 * 1024
Event = tuple[str, str]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


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
        poller: Callable[[], Poller] = PollPoller,
        admit: Callable[[str, str], str | None] = lambda address, node_id: None,
        farewell: Callable[[], Message | None] = lambda: None,
    ) -> None:
        self.address, self.poller = address, poller()
        self.events: list[Event] = []
        self.heard: list[tuple[str, Message]] = []
        self.on_connected: Callable[[Node], object] = lambda node: None
        self.on_message: Callable[[Node, Message], None] = lambda node, message: None
        self.wire = TcpTransport(
            None, Node(address), [Node(peer) for peer in peers], poller=self.poller,
            identity=Identity(cluster, node_id or f"id of {address}", address), security=security,
            clock=lambda: net.now, max_frame_bytes=MAX_FRAME, admit=admit, farewell=farewell,
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


@pytest.fixture
def net(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> Iterator[Net]:
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


def live(host: Host, address: str) -> sockets.Connection:
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


# -- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poller", [PollPoller, SelectPoller])
@pytest.mark.parametrize("mode", MODES)
def test_peers_meet(net: Net, mode: Mode, poller: Callable[[], Poller]) -> None:
    """Each node hears of each other node once, soon, and over one connection per pair."""
    hosts = net.mesh(3, mode, poller=poller)
    serves(net, hosts)
    net.pass_time(5)
    assert all(len(host.events) == 2 and len(host.wire._connections) == 2 for host in hosts)


@pytest.mark.parametrize("mode", MODES)
def test_messages_arrive_once_and_in_order(net: Net, mode: Mode) -> None:
    """Small and large messages in both directions arrive once each and in the order in which they were sent."""
    one, two = net.mesh(2, mode)
    rng = random.Random(7)
    said = [Propose(i, rng.randbytes(rng.choice((0, 10, 1000, 100_000, 900_000)))) for i in range(60)]
    waiting = {one: list(said), two: list(said)}

    def done() -> bool:
        for host, other in ((one, two), (two, one)):
            while waiting[host] and host.send(other, waiting[host][0]):
                waiting[host].pop(0)
        return len(one.heard) == len(two.heard) == len(said)

    net.run(done)
    assert one.messages_of(two) == two.messages_of(one) == said


@pytest.mark.parametrize("mode", MODES)
def test_largest_message(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """A message of the largest size passes; a larger one is refused by send, and the connection stays."""
    one, two = net.mesh(2, mode)
    overhead = len(messages.encode(Propose(1, bytes(100_000)))) - 100_000 + one.wire._tag_bytes
    assert one.send(two, Propose(1, bytes(MAX_FRAME - overhead)))
    net.run(lambda: two.heard)
    assert not one.send(two, Propose(1, bytes(MAX_FRAME - overhead + 1)))
    assert "too large" in caplog.text
    caplog.clear()
    serves(net, [one, two])


def test_one_message_to_many_is_encoded_once(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same message to two peers in a row is encoded once."""
    one, two, three = net.mesh(3, "secret")
    calls: list[Message] = []

    def counted(message: Message) -> bytes:
        calls.append(message)
        encoded: bytes = messages.encode(message)
        return encoded

    monkeypatch.setattr(transport, "encode", counted)
    message = Propose(1, b"x")
    assert one.send(two, message) and one.send(three, message)
    assert calls == [message]
    net.run(lambda: two.heard and three.heard)


def test_only_messages_are_sent(net: Net) -> None:
    """What is no message, such as PySyncObj's own dicts, is refused where it is sent."""
    one, two = net.mesh(2, "plain")
    with pytest.raises(TypeError, match="not a message"):
        one.send(two, {"type": "append_entries"})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_restarted_peer_is_back_within_a_second(
    net: Net, mode: Mode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a peer is away there is neither a busy loop nor a line per attempt; when it returns it is soon back."""
    one, two = net.mesh(2, mode)
    calls: list[float] = []

    def counted(target: routes.Target) -> socket.socket:
        calls.append(net.now)
        return sockets.dial(target)

    monkeypatch.setattr(transport, "dial", counted)
    net.stop(one)
    net.run(lambda: not two.up)
    caplog.clear()
    net.pass_time(20)
    assert 20 / 0.55 < len(calls) < 20 / 0.45
    assert len(warnings(caplog)) == 1 and "Connection refused" in caplog.text
    again = net.host(one.address, [two.address], net.certificates.security(mode))
    assert net.run(lambda: again.up and two.up) < 1.0
    assert two.events == [("+", one.address), ("-", one.address), ("+", one.address)]
    serves(net, [again, two])
    net.stop(two)  # and the other way round: who calls comes back
    net.run(lambda: not again.up)
    back = net.host(two.address, [one.address], net.certificates.security(mode))
    assert net.run(lambda: again.up and back.up) < 1.0


def test_the_address_can_be_bound_again_at_once(net: Net) -> None:
    """A node that restarts binds at once, although connections of its last run linger; two at once can't."""
    one, two = net.mesh(2, "plain")
    security = net.certificates.security("plain")
    with pytest.raises(ReplidictError, match="another process listens there"):
        net.host(one.address, [], security)
    for _ in range(3):
        net.stop(one)
        one = net.host(one.address, [two.address], security)
        net.run(lambda one=one: one.up and two.up)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("192.0.2.1:7000", "this machine has no such address"),
        ("no-such-host.invalid:7000", "can't be resolved"),
        ("127.0.0.1", "must end in a port"),
        ("a" * 80 + ".example:7000", "can't be resolved"),
    ],
)
def test_addresses_that_can_not_be_bound(net: Net, address: str, what: str) -> None:
    """The constructor says why it can't listen, and leaves nothing open."""
    security = net.certificates.security("secret")
    with pytest.raises(ReplidictError, match=what):
        net.host(address, [], security)
    with pytest.raises(ReplidictError, match="must end in a port"):
        net.host("127.0.0.1:7000", ["peer"], security)


def test_a_silent_peer_is_given_up(net: Net) -> None:
    """A peer that stands still is lost within seconds, and is back when it moves on."""
    one, two, three = net.mesh(3, "secret")
    net.hosts.remove(two)
    took = net.run(lambda: two.address not in one.up | three.up)
    assert 1.4 < took < 2.1
    net.hosts.append(two)
    net.run(lambda: len(two.events) == 6 and len(two.up) == 2)
    serves(net, [one, two, three])


def test_standing_still_oneself_loses_nobody(net: Net) -> None:
    """A node whose thread stood still does not take its own silence for that of its peers."""
    hosts = net.mesh(3, "plain")
    net.now += 10
    net.pass_time(3)
    serves(net, hosts)
    assert all(len(host.events) == 2 for host in hosts)


@pytest.mark.parametrize("mode", MODES)
def test_idle_nodes_sleep(net: Net, mode: Mode) -> None:
    """Nodes with nothing to say keep their connections for hours on a few pings a second."""
    hosts = net.mesh(3, mode)
    net.pass_time(1)
    rounds, end = 0, net.now + 60
    while net.now < end:
        rounds += 1
        net.now = max(net.now, min(host.wire.next_deadline() for host in hosts))
        for _ in range(3):
            for host in hosts:
                host.poller.poll(0)
                host.wire.tick(net.now)
    assert rounds < 60 * 20
    assert all(len(host.events) == 2 for host in hosts)


def test_close_peer_and_come_back(net: Net) -> None:
    """A connection closed on purpose is reported as lost on both sides, once, and made anew."""
    one, two = net.mesh(2, "secret")
    one.wire.close_peer(Node(two.address))
    one.wire.close_peer(Node(two.address))
    assert one.events == [("+", two.address)], "the disconnect comes from tick, never from inside a call"
    assert not one.send(two, TimeoutNow(1))
    net.run(lambda: len(one.events) == len(two.events) == 3)
    serves(net, [one, two])


def test_dropped_nodes_stay_out(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """A node that was dropped gets no connection, whichever side calls, until it is added again."""
    one, two, three = net.mesh(3, "secret")
    two.wire.dropNode(Node(one.address))
    two.wire.dropNode(Node(three.address))
    assert not two.send(one, TimeoutNow(1))
    net.run(lambda: not two.up and len(one.up) == len(three.up) == 1)
    caplog.clear()
    net.pass_time(10)
    assert not two.up
    assert [line for line in warnings(caplog, three) if "refuses this node" in line and "no member" in line]
    assert len(warnings(caplog)) <= 4
    two.wire.addNode(Node(one.address))
    two.wire.addNode(Node(three.address))
    two.wire.addNode(Node(two.address))
    net.run(lambda: len(two.up) == 2)
    serves(net, [one, two, three])


def test_drop_and_add_at_once(net: Net) -> None:
    """A node dropped and added in one step is first reported lost, then connected."""
    one, two = net.mesh(2, "plain")
    for host, other in ((one, two), (two, one)) * 3:
        seen = len(host.events)
        host.wire.dropNode(Node(other.address))
        host.wire.addNode(Node(other.address))
        net.run(lambda host=host, seen=seen: len(host.events) == seen + 2)  # type: ignore[misc]
        net.run(lambda: one.up and two.up)


@pytest.mark.parametrize("mode", MODES)
def test_the_first_words(net: Net, mode: Mode) -> None:
    """What the engine sends the moment it hears of a peer arrives first, on both sides."""
    peers = addresses(2)
    hosts = [net.host(p, peers, net.certificates.security(mode)) for p in peers]
    for host in hosts:
        host.on_connected = lambda node, host=host: host.send(node.id, TimeoutNow(1))  # type: ignore[misc]
    net.run(lambda: all(host.heard for host in hosts))
    serves(net, hosts)
    assert all(len(host.events) == 1 and host.heard[0][1] == TimeoutNow(1) for host in hosts)


@pytest.mark.parametrize("poller", [PollPoller, SelectPoller])
def test_callbacks_may_do_anything(net: Net, poller: Callable[[], Poller]) -> None:
    """Inside a message callback the engine may send, close, drop and add; nothing arrives from a closed connection."""
    one, two, three = net.mesh(3, "plain", poller=poller)

    def react(node: Node, message: Message) -> None:
        assert two.send(node.id, message)
        if message.term == 3:
            for other in (one, three):
                two.wire.close_peer(Node(other.address))
                assert not two.send(other, message)
            two.wire.dropNode(Node(three.address))
            two.wire.addNode(Node(three.address))

    two.on_message = react
    for term in range(6):
        assert one.send(two, TimeoutNow(term))
    net.run(lambda: len(two.events) == 6 and len(two.up) == 2)
    two.on_message = lambda node, message: None
    assert [message.term for message in two.messages_of(one)] == [0, 1, 2, 3]
    assert [message.term for message in one.messages_of(two)] == [0, 1, 2, 3]
    serves(net, [one, two, three])


def test_a_lost_connection_inside_send(net: Net) -> None:
    """A send that finds the connection lost returns False, and the engine hears of the loss from tick."""
    one, two = net.mesh(2, "plain")
    live(one, two.address).sock.shutdown(socket.SHUT_WR)
    assert not one.send(two, TimeoutNow(1))
    assert one.events == [("+", two.address)]
    one.wire.tick(net.now)
    assert one.events == [("+", two.address), ("-", two.address)]
    net.run(lambda: len(one.events) == 3)


def test_what_the_engine_raises_passes_through(net: Net) -> None:
    """An error of the engine's own callback leaves the poll: it must end the node, not vanish."""
    one, two = net.mesh(2, "plain")

    def fail(node: Node, message: Message) -> None:
        raise RuntimeError("disk")

    two.on_message = fail
    one.send(two, TimeoutNow(1))
    with pytest.raises(RuntimeError, match="disk"):
        net.pass_time(1)
    two.on_message = lambda node, message: None
    serves(net, [one, two])


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_ipv6_and_localhost(net: Net, host: str) -> None:
    """IPv6 in brackets and localhost work as addresses."""
    peers = addresses(2, host)
    hosts = [net.host(address, peers, net.certificates.security("plain")) for address in peers]
    net.run(lambda: all(host.up for host in hosts))
    serves(net, hosts)


def test_names_may_change_their_address(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer's name is looked up for every call, so a peer that moves is found again."""
    known = {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]}
    real = socket.getaddrinfo

    def lookup(host: str, port: int, **how: Any) -> Any:
        if host.endswith(".test") and not how["flags"] & socket.AI_NUMERICHOST:
            return [found for ip in known[host] for found in real(ip, port, **how)]
        return real(host, port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    a, b = f"a.test:{free_port()}", f"b.test:{free_port()}"
    security = net.certificates.security("secret")
    one, two = net.host(a, [b], security), net.host(b, [a], security)
    net.run(lambda: one.up and two.up)
    net.stop(one)
    known["a.test"] = ["127.0.0.9", "127.0.0.2"]  # the first of them is dead: the other one is tried at once
    net.run(lambda: not two.up)
    monkeypatch.setitem(known, "a.test", ["127.0.0.2"])
    moved = net.host(a, [b], security)
    known["a.test"] = ["127.0.0.9", "127.0.0.2"]
    net.run(lambda: moved.up and two.up)
    serves(net, [moved, two])


def test_a_hanging_resolver_blocks_nothing(
    net: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a name is being looked up the node goes on, with one thread for it, which is gone after destroy."""
    hanging, asked = threading.Event(), []
    real = socket.getaddrinfo

    def lookup(host: str, port: int, **how: Any) -> Any:
        if host.endswith(".test") and not how["flags"] & socket.AI_NUMERICHOST:
            asked.append(host)
            assert hanging.wait(30)
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return real(host, port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    one, two = addresses(2, "localhost")
    security = net.certificates.security("secret")
    hosts = [net.host(address, [one, two, "a.test:7000"], security) for address in (one, two)]
    net.run(lambda: all(host.up for host in hosts))
    net.pass_time(5)
    assert len(asked) == 2
    serves(net, hosts)
    hanging.set()
    net.run(lambda: len(asked) > 4, seconds=600)
    assert len([line for line in warnings(caplog) if "can't be resolved" in line]) == 2


def test_destroy_waits_for_a_lookup(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup under way when the node is closed is waited for, so that no thread outlives the node."""
    hanging = threading.Event()
    real = socket.getaddrinfo

    def lookup(host: str, port: int, **how: Any) -> Any:
        if host.endswith(".test") and not how["flags"] & socket.AI_NUMERICHOST:
            assert hanging.wait(30)
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return real(host, port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    host = net.host(f"localhost:{free_port()}", ["a.test:7000"], net.certificates.security("secret"))
    net.pass_time(0.1)
    assert "replidict-lookup" in {thread.name for thread in threading.enumerate()}
    released = threading.Timer(0.1, hanging.set)
    released.start()
    net.stop(host)
    assert "replidict-lookup" not in {thread.name for thread in threading.enumerate()}
    released.join()


def test_patience_with_a_peer() -> None:
    """The pause between two attempts grows from 0.2 to 0.5 seconds, and begins anew once the peer was there."""
    route = Route("127.0.0.1:7000", loopback_only=True)
    pauses = []
    for now in range(10):
        assert route.take(float(now)) is not None
        route.failed(float(now))
        assert route.take(float(now)) is None
        pauses.append(route.due - now)
    assert pauses[0] == pytest.approx(0.2) and pauses[-1] == pytest.approx(0.5) and pauses == sorted(pauses)
    route.arrived()
    route.failed(10.0)
    assert route.due == pytest.approx(10.2)


def test_loopback_nodes_call_no_one_elsewhere(
    net: Net, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without credentials calls no one off loopback: whoever answered there would be believed."""
    monkeypatch.setattr(transport, "dial", lambda target: pytest.fail("called"))
    net.host(f"127.0.0.1:{free_port()}", ["10.0.0.1:7000"], security_for("127.0.0.1:7000", None, None, False))
    net.pass_time(3)
    assert len(warnings(caplog)) == 1 and "off loopback" in caplog.text


def test_a_socket_connected_to_itself_is_none() -> None:
    """TCP can connect a port to itself; that is no peer, and would keep the peer from binding its port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", free_port()))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError):
            connected(sock)


# -- who is refused ---------------------------------------------------------------------------------------------------


def refuse(net: Net, caplog: pytest.LogCaptureFixture, mesh: list[Host], intruder: Host, what: str) -> None:
    """For ten seconds the intruder gets nowhere, everyone else goes on, and each side says so, once each way."""
    caplog.clear()
    net.pass_time(10)
    assert intruder.events == [] and all(len(host.events) == len(mesh) - 1 for host in mesh)
    serves(net, mesh)
    assert what in caplog.text
    for host in mesh:
        assert len(warnings(caplog, host)) <= 2, "one as the caller, one as the called"
    assert len(warnings(caplog, intruder)) <= 2 * len(mesh)


@pytest.mark.parametrize("rank", [0, 2], ids=["called by the mesh", "calls the mesh"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["cluster", "identity", "mode"])
def test_nodes_that_do_not_belong(net: Net, mode: Mode, what: str, rank: int, caplog: pytest.LogCaptureFixture) -> None:
    """A node of another cluster, one whose disk was wiped, one in another mode: refused, counted nowhere."""
    peers = addresses(3)
    address = peers[rank]

    def admit(claimed: str, node_id: str) -> str | None:
        return f"{claimed} was wiped" if node_id == "new" else None

    mesh = [net.host(p, peers, net.certificates.security(mode), admit=admit) for p in peers if p != address]
    net.run(lambda: all(host.up for host in mesh))
    other: Mode = {"plain": "secret", "secret": "tls", "tls": "plain"}[mode] if what == "mode" else mode  # type: ignore
    intruder = net.host(
        address, peers, net.certificates.security(other),
        cluster="c2" if what == "cluster" else "c1", node_id="new" if what == "identity" else "",
    )  # fmt: skip
    said = {"cluster": "another cluster", "identity": "was wiped", "mode": "the same tls= or secret="}[what]
    refuse(net, caplog, mesh, intruder, said)


@pytest.mark.parametrize("rank", [0, 2], ids=["called by the mesh", "calls the mesh"])
@pytest.mark.parametrize("what", ["secret", "another authority", "expired", "name"])
def test_bad_credentials(net: Net, what: str, rank: int, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong secret, another authority's certificate, an expired one, one for another host: refused."""
    peers = addresses(3)
    good = net.certificates.security("secret" if what == "secret" else "tls")
    mesh = [net.host(p, peers, good) for p in peers if p != peers[rank]]
    net.run(lambda: all(host.up for host in mesh))
    if what == "secret":
        bad = security_for(peers[rank], None, SECRET + "!", False)
    else:
        issued = net.certificates.issue(
            what, "10.0.0.9" if what == "name" else "127.0.0.1",
            expired=what == "expired", by=trustme.CA() if what == "another authority" else None,
        )  # fmt: skip
        bad = security_for(peers[rank], issued, None, False)
    said = {"secret": "the same secret=", "another authority": "certificate", "expired": "expired",
            "name": "names neither"}[what]  # fmt: skip
    refuse(net, caplog, mesh, net.host(peers[rank], peers, bad), said)


class Stranger:
    """Raw sockets that call a node."""

    def __init__(self, target: Host) -> None:
        host, port = target.address.rsplit(":", 1)
        self._there = host, int(port)
        self.sockets: list[socket.socket] = []

    def call(self, data: bytes = b"") -> socket.socket:
        sock = socket.socket()
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


class Exploit:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


GARBAGE = {
    "4 GiB": b"\xff\xff\xff\xff" + b"x" * 100,
    "4 KiB and one": b"\x00\x00\x10\x01",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100ce010000ca0303") + bytes(200),
    "TLS alert": bytes.fromhex("15030100020230"),
    "noise": random.Random(1).randbytes(5000),
    "zeros": bytes(5000),
    "ping": frame(PING),
    "status": zlib.compress(pickle.dumps(["status"])),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", [*GARBAGE, "pickle"])
def test_garbage(net: Net, mode: Mode, what: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A hundred connections that speak something else, PySyncObj's pickles too: closed, one line logged, no harm."""
    data = GARBAGE.get(what, b"")
    if what == "pickle":
        body = zlib.compress(pickle.dumps(Exploit(tmp_path / "mark")), 3)
        data = struct.pack("i", len(body)) + body
    hosts = net.mesh(3, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        for _ in range(100):
            sock = stranger.call(data)
            net.run(lambda sock=sock: closed(sock), seconds=3.0)  # type: ignore[misc]
        serves(net, hosts)
        assert len(warnings(caplog)) == 1 and "refused a connection from 127.0.0.1" in caplog.text
        assert not hosts[0].wire._strangers and len(hosts[0].wire._connections) == 2
        assert all(len(host.events) == 2 for host in hosts)
        caplog.clear()
        net.pass_time(61)
        assert len(warnings(caplog)) == 1 and "99 more" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_idle_connections(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand connections that say nothing few are kept, for seconds; meanwhile a peer gets in."""
    peers = addresses(3)
    hosts = [net.host(p, peers, net.certificates.security(mode)) for p in peers[:2]]
    net.run(lambda: all(host.up for host in hosts))
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        for _ in range(1000):
            stranger.call()
            net.round()
            assert len(hosts[0].wire._strangers) <= STRANGERS_MAX
        hosts.append(net.host(peers[2], peers, net.certificates.security(mode)))
        net.run(lambda: all(len(host.up) == 2 for host in hosts), seconds=1.0)
        serves(net, hosts)
        net.run(lambda: len(hosts[0].wire._connections) == 2, seconds=3.0)
        assert all(len(host.events) == 2 for host in hosts)
        assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_slow_handshake(net: Net, mode: Mode) -> None:
    """A handshake that trickles in, a byte at a time and never at rest, is cut off after two seconds."""
    hosts = net.mesh(3, mode)
    said = handshake_of(net, hosts[0], "127.0.0.1:40000", mode)
    with Stranger(hosts[0]) as stranger:
        sock = stranger.call()
        start = net.now
        for byte in said[:-1]:
            if closed(sock):
                break
            sock.send(bytes([byte]))
            net.pass_time(0.05)
        assert 1.9 < net.now - start < 2.2
        serves(net, hosts)
        assert all(len(host.events) == 2 for host in hosts)


def handshake_of(net: Net, target: Host, address: str, mode: Mode) -> bytes:
    """The first bytes of a caller."""
    session = session_for(net, target, address, mode)
    session.start()
    return b"".join(bytes(session.encrypt(out)) for out in session.take_output()) + bytes(session.encrypt(b""))


@lru_cache
def key_of(security: Security) -> bytes:
    return security.stretch("c1")


def session_for(net: Net, target: Host, address: str, mode: Mode) -> Session:
    security = net.certificates.security(mode)
    return Session(
        Identity("c1", "raw", address) if address else Identity("", "", ""), security, key_of(security),
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
    hosts = [net.host(p, ["127.0.0.1:50000"], net.certificates.security(mode)) for p in addresses(2)]
    for host, other in (hosts, hosts[::-1]):
        host.wire.addNode(Node(other.address))
    net.run(lambda: all(host.up for host in hosts))
    return hosts, "127.0.0.1:50000"


@pytest.mark.parametrize("mode", ["secret", "tls"])
def test_a_recorded_session_is_worth_nothing(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """All that a proven peer ever said, said again over a new connection, opens nothing and is not heard."""
    hosts, address = with_a_raw_peer(net, mode)
    with Stranger(hosts[0]) as stranger:
        peer = RawPeer(net, stranger, hosts[0], address, mode)
        peer.say(messages.encode(Propose(1, b"once")))
        net.run(lambda: hosts[0].heard)
        events = list(hosts[0].events)
        caplog.clear()
        for _ in range(3):
            sock = stranger.call(bytes(peer.said))
            net.run(lambda sock=sock: closed(sock), seconds=3.0)  # type: ignore[misc]
        assert hosts[0].events == events and len(hosts[0].heard) == 1
        assert len(warnings(caplog)) == 1
        serves(net, hosts)


def held_back(host: Host) -> Callable[[], None]:
    """Keep a node from calling; what is returned lets it call again."""
    real = host.wire._call
    host.wire._call = lambda peer, now: None  # type: ignore[method-assign]

    def release() -> None:
        host.wire._call = real  # type: ignore[method-assign]

    return release


@pytest.mark.parametrize("mode", MODES)
def test_the_lesser_address_calls_when_it_is_not_called(net: Net, mode: Mode) -> None:
    """Who waits in vain for the call of the greater address calls itself, and the one connection stays."""
    peers = addresses(2)
    one, two = (net.host(p, peers, net.certificates.security(mode)) for p in peers)
    release = held_back(two)
    assert net.run(lambda: one.up and two.up) > MISSED_CALL
    release()
    serves(net, [one, two])
    net.pass_time(10)
    assert len(one.events) == len(two.events) == 1
    assert len(one.wire._connections) == len(two.wire._connections) == 1


def one_event(host: Host, rng: random.Random) -> None:
    """Have one node take a tick, or the next thing that happened on one of its sockets."""
    listener, connections = host.wire._listener, host.wire._connections
    fd = rng.choice([None, *listener._sockets, *connections])
    if fd is None:
        host.wire.tick(host.wire._clock())
        return
    write = [fd] if fd in connections and connections[fd].wants_write else []
    readable, writable, _ = select.select([fd], write, [], 0)
    mask = POLL_EVENT_TYPE.READ * len(readable) | POLL_EVENT_TYPE.WRITE * len(writable)
    if mask and fd in connections:
        host.wire._traffic._on_event(fd, mask)
    elif mask:
        listener._on_event(fd, mask)


@pytest.mark.parametrize("mode", MODES)
def test_simultaneous_calls_settle(net: Net, mode: Mode) -> None:
    """Two nodes that call each other at the same time, in whatever order things happen, end with one connection,
    made once on either side."""
    peers = addresses(2)
    for seed in (*range(300), 1962) if mode == "plain" else range(10):
        rng = random.Random(seed)
        one, two = (net.host(p, peers, net.certificates.security(mode)) for p in peers)
        releases = [held_back(one), held_back(two)]
        net.pass_time(MISSED_CALL + 0.1)
        for release in releases:
            release()
        one.wire._wake = two.wire._wake = 0.0
        for _ in range(60):
            one_event(rng.choice((one, two)), rng)
            net.now += 0.001
        net.run(lambda one=one, two=two: one.up and two.up, seconds=0.15)  # type: ignore[misc]
        net.pass_time(0.5)
        assert (one.events, two.events) == ([("+", two.address)], [("+", one.address)]), seed
        assert len(one.wire._connections) == len(two.wire._connections) == 1
        net.stop(one)
        net.stop(two)


def test_a_call_is_given_up_when_the_peer_has_called(net: Net) -> None:
    """A call under way ends as soon as the peer's own has come through."""
    hosts, address = with_a_raw_peer(net, "plain")
    with Stranger(hosts[0]) as stranger, socket.create_server(("127.0.0.1", 50000), backlog=0) as deaf:
        net.run(lambda: hosts[0].wire._peers[address].calling)
        RawPeer(net, stranger, hosts[0], address, "plain")
        net.run(lambda: len(hosts[0].wire._connections) == 2, seconds=0.1)
        deaf.close()


def test_a_late_call_of_the_lesser_address_counts(net: Net) -> None:
    """The greater node believes the lesser one that it has lost their connection, unless it was made just now."""
    one, two = net.mesh(2, "plain")
    for late in (False, True):
        if late:
            net.pass_time(MISSED_CALL)
        seen = len(two.events)
        peer = one.wire._peers[two.address]
        old, peer.live = peer.live, None  # it has forgotten
        one.wire._tell_lost(two.address)
        one.wire._call(peer, net.now + 1)
        net.run(lambda peer=peer: peer.calling is None)  # type: ignore[misc]
        assert (peer.live is not None) == late
        assert len(two.events) == seen + (2 if late else 0)
        if not late:
            peer.live = old
            assert old is not None
            one.wire._announced[two.address] = old
            one.events.append(("+", two.address))
    serves(net, [one, two])


# -- who is told farewell ---------------------------------------------------------------------------------------------


FAREWELL = MembersAre(7, 12, ["127.0.0.1:1"], [], {}, [])


@pytest.mark.parametrize("rank", [0, 2], ids=["less than the others", "greater"])
@pytest.mark.parametrize("mode", MODES)
def test_who_was_removed_is_told(net: Net, mode: Mode, rank: int, caplog: pytest.LogCaptureFixture) -> None:
    """A node that is no member hears from those it calls who is; their engines hear nothing of it, and one line is
    logged for all its calls."""
    peers = addresses(3)
    security = net.certificates.security(mode)
    mesh = [net.host(p, peers, security, farewell=lambda: FAREWELL) for p in peers if p != peers[rank]]
    for host in mesh:
        host.wire.dropNode(Node(peers[rank]))
    net.run(lambda: all(host.up for host in mesh))
    caplog.clear()
    gone = net.host(peers[rank], peers, security)
    gone.on_connected = lambda node: gone.send(node.id, Propose(1, b"not to be heard"))
    net.run(lambda: all(gone.messages_of(host) for host in mesh))
    net.pass_time(5)
    assert all(message == FAREWELL for _, message in gone.heard)
    assert all(host.heard == [] and len(host.events) == 1 for host in mesh)
    assert all(len(warnings(caplog, host)) == 1 for host in mesh) and "no member" in caplog.text
    assert warnings(caplog, gone) == []
    serves(net, mesh)
    net.stop(gone)
    net.run(lambda: all(len(host.wire._connections) == 1 for host in mesh), seconds=3.0)


@pytest.mark.parametrize("what", ["secret", "another cluster"])
def test_farewell_is_for_the_proven(net: Net, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who has another secret, or is of another cluster, is told nothing of the members."""
    peers = addresses(2)
    asked = []
    host = net.host(peers[0], [], net.certificates.security("secret"), farewell=lambda: asked.append(1))
    other = security_for(peers[1], None, SECRET + "!", False) if what == "secret" else host.wire._security
    stranger = net.host(peers[1], peers, other, cluster="c1" if what == "secret" else "c2")
    net.run(lambda: what in caplog.text)
    assert stranger.events == [] and asked == []


def test_last_words_are_not_waited_for_long(net: Net) -> None:
    """A connection with who is no member ends within seconds, whatever that one does, and nothing of it is read."""
    host = net.host(addresses(1)[0], [], net.certificates.security("plain"), farewell=lambda: FAREWELL)
    with Stranger(host) as stranger:
        peer = RawPeer(net, stranger, host, "127.0.0.1:40000", "plain")
        net.run(lambda: host.wire._strangers)
        start = net.now
        while not closed(peer.sock):
            peer.say(messages.encode(Propose(1, b"x")))
            net.pass_time(0.05)
            assert net.now < start + 3
        assert net.now > start + 1 and host.heard == [] and host.events == []


def test_dropped_while_it_is_let_in(net: Net) -> None:
    """A node that ceases to be a member in the midst of its handshake is not let in."""
    peers = addresses(2)
    security = net.certificates.security("secret")

    def drop(address: str, node_id: str) -> None:
        one.wire.dropNode(Node(address))

    one, two = net.host(peers[0], peers, security, admit=drop), net.host(peers[1], peers, security)
    net.run(lambda: two.events == [("+", one.address), ("-", one.address)])
    assert one.events == []


@pytest.mark.parametrize("mode", MODES)
def test_a_new_connection_replaces_the_old(net: Net, mode: Mode) -> None:
    """A peer that calls again before its old connection is known to be dead gets the new one."""
    hosts, address = with_a_raw_peer(net, mode)
    with Stranger(hosts[0]) as stranger:
        old = RawPeer(net, stranger, hosts[0], address, mode)
        net.run(lambda: address in hosts[0].up)
        new = RawPeer(net, stranger, hosts[0], address, mode)
        net.run(lambda: hosts[0].events[1:] == [("+", address), ("-", address), ("+", address)])
        net.run(lambda: closed(old.sock))
        new.say(messages.encode(TimeoutNow(5)))
        net.run(lambda: hosts[0].heard == [(address, TimeoutNow(5))])
        serves(net, hosts)


@pytest.mark.parametrize("mode", MODES)
def test_a_peer_that_never_reads(net: Net, mode: Mode) -> None:
    """What waits for a peer that does not read is bounded; send says so, and the others are served."""
    hosts, address = with_a_raw_peer(net, mode)
    with Stranger(hosts[0]) as stranger:
        peer = RawPeer(net, stranger, hosts[0], address, mode)
        net.run(lambda: address in hosts[0].up)
        connection = live(hosts[0], address)
        message, sent = Propose(1, bytes(1_000_000)), 0
        for _ in range(500):
            sent += hosts[0].send(address, message)
            peer.say(PING)
            net.round()
            assert connection._queued < SEND_QUEUE_BYTES + 1_100_000
        assert 8 <= sent < 100 and not hosts[0].send(address, message)
        assert hosts[0].send(hosts[1], message)
        net.run(lambda: hosts[1].heard)
        serves(net, hosts)
        peer.sock.close()
        net.run(lambda: address not in hosts[0].up)


def test_tiny_messages_are_bounded_too(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of many small messages is bounded by what it costs, not by its bytes alone."""
    monkeypatch.setattr(sockets, "SEND_QUEUE_BYTES", 100_000)
    one, two = net.mesh(2, "plain")
    live(one, two.address).sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    live(two, one.address).sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    net.hosts.remove(two)
    sent = 0
    while one.send(two, TimeoutNow(1)):
        sent += 1
    assert len(live(one, two.address)._frames) <= 100_000 // sockets.FRAME_OVERHEAD + 1
    net.hosts.append(two)
    net.run(lambda: len(two.heard) == sent)


@pytest.mark.parametrize("mode", MODES)
def test_a_proven_peer_gone_mad(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """A proven peer that sends what is no message loses its connection each time, and gets one line in the log."""
    hosts, address = with_a_raw_peer(net, mode)
    caplog.clear()
    rng = random.Random(3)
    with Stranger(hosts[0]) as stranger:
        for count in range(30):
            peer = RawPeer(net, stranger, hosts[0], address, mode)
            net.run(lambda: address in hosts[0].up)
            peer.say(b"\xc1" + rng.randbytes(count + 1))
            net.run(lambda: address not in hosts[0].up)
        assert hosts[0].heard == []
        assert len(warnings(caplog)) == 1 and "no message" in caplog.text
        serves(net, hosts)


# -- guests -----------------------------------------------------------------------------------------------------------


class RawGuest(RawPeer):
    """A guest, driven by hand, and what it is answered."""

    def __init__(self, net: Net, stranger: Stranger, target: Host, mode: Mode) -> None:
        self.heard: list[asks.Answer] = []
        self.gone = False
        super().__init__(net, stranger, target, "", mode)

    def ask(self, number: int, timeout: float = 1.0, prefix: str = "") -> None:
        self.say(messages.encode(asks.ListKeys(number, timeout, prefix, None, 1, False)))

    def read(self) -> list[asks.Answer]:
        """All answers so far."""
        while not self.gone:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            try:
                for said in self.session.receive(data):
                    self.heard.append(said)  # type: ignore[arg-type]
            except WireError:
                self.gone = True
            self.gone = self.gone or not data
        return self.heard


def with_a_desk(net: Net, mode: Mode) -> tuple[list[Host], list[tuple[int, asks.Ask]]]:
    """Two nodes, and what guests ask the first one."""
    hosts = net.mesh(2, mode)
    asked: list[tuple[int, asks.Ask]] = []
    hosts[0].wire.guests.on_ask = lambda guest, ask: asked.append((guest, ask))
    return hosts, asked


def answer(host: Host, guest: int, said: asks.Answer, last: bool = True) -> str:
    return host.wire.guests.answer(guest, said.id, host.wire.guests.frame(said), last)


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_asks(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """What a guest asks is heard in order, and each answer reaches the guest that asked; the engine hears nothing."""
    hosts, asked = with_a_desk(net, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        three = [RawGuest(net, stranger, hosts[0], mode) for _ in range(3)]
        for turn in range(1, 4):
            for guest in three:
                guest.ask(turn)
        net.run(lambda: len(asked) == 9)
        asked.sort(key=lambda each: each[1].id)  # stable: the order among those of one guest is seen in the answers
        for number, ask in reversed(asked):
            assert answer(hosts[0], number, asks.Keys(ask.id, [b"%d" % number]), last=False) == "sent"
            assert answer(hosts[0], number, asks.Done(ask.id)) == "sent"
            assert answer(hosts[0], number, asks.Done(ask.id)) == "gone", "an ask is ended once"
        net.run(lambda: all(len(guest.read()) == 6 for guest in three))
        for place, guest in enumerate(three):
            assert guest.heard[::2] == [asks.Keys(turn, [b"%d" % asked[place][0]]) for turn in (3, 2, 1)]
        assert hosts[0].heard == [] and len(hosts[0].events) == 1
        serves(net, hosts)
    net.run(lambda: len(hosts[0].wire.guests) == 0)
    assert answer(hosts[0], asked[0][0], asks.Done(1)) == "gone"
    assert warnings(caplog) == []


def test_a_guest_that_waits_is_pinged_and_one_that_rests_is_dropped(net: Net) -> None:
    """While a guest waits for an answer it hears that the node is alive; without an ask it may stay for a minute."""
    hosts, asked = with_a_desk(net, "secret")
    with Stranger(hosts[0]) as stranger:
        guest = RawGuest(net, stranger, hosts[0], "secret")
        guest.ask(1)
        net.run(lambda: asked)
        before = live_guest(hosts[0]).taken
        net.pass_time(20)
        assert 35 < (live_guest(hosts[0]).taken - before) / (4 + 1 + 16) < 45
        answer(hosts[0], asked[0][0], asks.Done(1))
        net.run(lambda: guest.read())
        assert 58 < net.run(lambda: len(hosts[0].wire.guests) == 0, seconds=70) < 62
        net.run(lambda: guest.read() and guest.gone)
        serves(net, hosts)


def live_guest(host: Host) -> sockets.Connection:
    (guest,) = host.wire.guests._guests.values()
    return guest.connection


@pytest.mark.parametrize("what", ["too many", "too large", "twice", "zero", "no desk"])
def test_a_guest_that_asks_too_much_is_sent_away(net: Net, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that has too much under way, or breaks the rules, is told so and closed; the next one is welcome."""
    hosts, asked = with_a_desk(net, "plain")
    if what == "no desk":
        hosts[0].wire.guests.on_ask = None
    with Stranger(hosts[0]) as stranger:
        guest = RawGuest(net, stranger, hosts[0], "plain")
        if what == "too large":
            monkeypatch.setattr(guests, "BYTES_MAX", 100 * ASKS_MAX)
        for number in range(1, ASKS_MAX + 1):
            guest.ask(number, prefix="x" * (100 if what == "too large" else 0))
            net.round()
        if what == "too large":
            net.run(lambda: len(asked) == ASKS_MAX)
            answer(hosts[0], *(asked[0][0], asks.Done(asked.pop(0)[1].id)))
        if what != "no desk":
            guest.ask({"twice": 3, "zero": 0}.get(what, ASKS_MAX + 1), prefix="x" * 101)
        net.run(lambda: guest.read() and guest.gone)
        said = guest.heard[-1]
        assert isinstance(said, asks.Failed) and (said.id, said.error) == (0, "ReplidictError")
        assert len(asked) == {"no desk": 0, "too large": ASKS_MAX - 1}.get(what, ASKS_MAX)
        assert hosts[0].wire.guests._bytes == 0 == len(hosts[0].wire.guests)
        hosts[0].wire.guests.on_ask = lambda guest, ask: asked.append((guest, ask))
        RawGuest(net, stranger, hosts[0], "plain").ask(1)
        seen = len(asked)
        net.run(lambda: len(asked) > seen)
        serves(net, hosts)


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_guests(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand guests that rest the last few stay; one that waits for an answer stays, too."""
    hosts, asked = with_a_desk(net, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        waiting = RawGuest(net, stranger, hosts[0], mode)
        waiting.ask(1)
        net.run(lambda: asked)
        for _ in range(1000 if mode == "plain" else 200):
            RawGuest(net, stranger, hosts[0], mode)
            assert len(hosts[0].wire.guests) <= GUESTS_MAX
        assert answer(hosts[0], asked[0][0], asks.Done(1)) == "sent"
        net.run(lambda: asks.Done(1) in waiting.read())
        serves(net, hosts)
        assert len(hosts[0].wire._connections) <= GUESTS_MAX + 1
        assert warnings(caplog) == []


def test_busy_guests_keep_their_places(net: Net) -> None:
    """When all guests wait for answers a new one is told that there is no room."""
    hosts, asked = with_a_desk(net, "plain")
    with Stranger(hosts[0]) as stranger:
        busy = [RawGuest(net, stranger, hosts[0], "plain") for _ in range(GUESTS_MAX)]
        for guest in busy:
            guest.ask(1)
        net.run(lambda: len(asked) == GUESTS_MAX)
        late = RawGuest(net, stranger, hosts[0], "plain")
        net.run(lambda: late.read() and late.gone)
        assert isinstance(late.heard[0], asks.Failed) and "guests" in late.heard[0].text
        for number, _ in asked:
            assert answer(hosts[0], number, asks.Done(1)) == "sent"
        net.run(lambda: all(guest.read() for guest in busy))


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_that_never_reads(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """What waits for a guest that does not read is bounded, and then it is dropped."""
    hosts, asked = with_a_desk(net, mode)
    with Stranger(hosts[0]) as stranger:
        guest = RawGuest(net, stranger, hosts[0], mode)
        guest.ask(1)
        net.run(lambda: asked)
        connection, piece = live_guest(hosts[0]), asks.Piece(1, 1 << 40, bytes(1_000_000))
        while answer(hosts[0], asked[0][0], piece, last=False) == "sent":
            net.round()
            assert connection._queued < SEND_QUEUE_BYTES + 1_100_000
        assert answer(hosts[0], asked[0][0], piece, last=False) == "full"
        assert answer(hosts[0], asked[0][0], asks.Done(1)) == "full", "later, perhaps"
        net.run(lambda: len(hosts[0].wire.guests) == 0, seconds=11.0)
        assert answer(hosts[0], asked[0][0], asks.Done(1)) == "gone"
        assert "does not take its answers" in caplog.text
        serves(net, hosts)


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_gone_mad(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """Guests that speak as members do, or nothing at all, or of 4 GiB, are closed with one line in the log."""
    hosts, asked = with_a_desk(net, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        for body in (messages.encode(TimeoutNow(1)), messages.encode(Propose(1, b"x")), b"\xc1\xc1", b"\x07"):
            guest = RawGuest(net, stranger, hosts[0], mode)
            guest.say(body)
            net.run(lambda guest=guest: guest.read() or guest.gone)  # type: ignore[misc]
        guest = RawGuest(net, stranger, hosts[0], mode)
        guest.write(b"\xff\xff\xff\xff")
        net.run(lambda: guest.read() or guest.gone)
        assert asked == [] and hosts[0].heard == [] and len(hosts[0].wire.guests) == 0
        assert len(warnings(caplog)) == 1 and "a guest" in caplog.text
        serves(net, hosts)


def test_out_of_descriptors(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """When the process is out of file descriptors the listener rests, instead of spinning, and then takes calls."""

    class Exhausted:
        calls = 0

        def __init__(self, real: socket.socket) -> None:
            self.close = real.close

        def accept(self) -> Any:
            Exhausted.calls += 1
            raise OSError(24, os.strerror(24))

    hosts = net.mesh(2, "plain")
    caplog.clear()
    listener = hosts[0].wire._listener
    ((fd, real),) = listener._sockets.items()
    listener._sockets = {fd: Exhausted(real)}  # type: ignore[dict-item]
    with Stranger(hosts[0]) as stranger:
        stranger.call()
        net.pass_time(5)
        assert 3 <= Exhausted.calls <= 7 and len(warnings(caplog)) == 1
        serves(net, hosts)
        listener._sockets = {fd: real}
        net.run(lambda: len(hosts[0].wire._connections) == 2, seconds=2.0)


def test_complaints_are_counted_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """One line a minute per host, with what was left out, for a bounded number of hosts."""
    said = Complaints("me")
    for second in range(100):
        said.log("h1", float(second), "bad")
        said.tick(float(second))
    assert warnings(caplog) == ["me: bad", "me: 59 more like that about h1 within a minute", "me: bad"]
    said.tick(1000.0)
    assert warnings(caplog)[3:] == ["me: 39 more like that about h1 within a minute"]
    caplog.clear()
    for host in range(complaints.KEYS_MAX * 2):
        said.log(f"h{host}", 2000.0, "bad")
    assert len(said._said) == complaints.KEYS_MAX + 1 == len(warnings(caplog))
    said.tick(3000.0)
    assert said._said == {} and "1023 more like that about other hosts" in caplog.text

"""The wire over real sockets on loopback: peers meet, part and meet again, over one connection a pair."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pysyncobj.node import Node
from pysyncobj.poller import POLL_EVENT_TYPE, Poller, PollPoller, SelectPoller

from replidict import log_throttle
from replidict.errors import ReplidictError
from replidict.log_throttle import LogThrottle
from replidict.protocol import peer_messages
from replidict.protocol.peer_messages import Message, Propose, TimeoutNow
from replidict.security import Mode, security_for
from replidict.transport import dialing, links, tcp
from replidict.transport.handshake import PING
from replidict.transport.peer_link import MISSED_CALL
from replidict.transport.routes import Route, Target
from replidict.transport.tcp import SEND_QUEUE_BYTES, connected
from tests.wire_nets import (
    MAX_FRAME,
    Host,
    Net,
    RawPeer,
    Stranger,
    addresses,
    closed,
    free_port,
    held_back,
    live,
    serves,
    warnings,
    with_a_raw_peer,
)
from tests.wire_support import MODES

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
    overhead = len(peer_messages.encode(Propose(1, bytes(100_000)))) - 100_000 + one.wire._tag_bytes
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
        encoded: bytes = peer_messages.encode(message)
        return encoded

    monkeypatch.setattr(links, "encode", counted)
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

    def counted(target: Target) -> socket.socket:
        calls.append(net.now)
        return tcp.dial(target)

    monkeypatch.setattr(dialing, "dial", counted)
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
    monkeypatch.setattr(dialing, "dial", lambda target: pytest.fail("called"))
    net.host(f"127.0.0.1:{free_port()}", ["10.0.0.1:7000"], security_for("127.0.0.1:7000", None, None, False))
    net.pass_time(3)
    assert len(warnings(caplog)) == 1 and "not a loopback address" in caplog.text


def test_a_socket_connected_to_itself_is_none() -> None:
    """TCP can connect a port to itself; that is no peer, and would keep the peer from binding its port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", free_port()))
        sock.connect(sock.getsockname())
        with pytest.raises(ConnectionRefusedError):
            connected(sock)


@pytest.mark.parametrize("mode", MODES)
def test_the_lesser_address_calls_when_it_is_not_called(net: Net, mode: Mode) -> None:
    """A node that waits in vain for the call of the greater address calls itself, and the one connection stays."""
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
    with Stranger(hosts[0]) as stranger, socket.create_server(("127.0.0.1", 9797), backlog=0) as deaf:
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
        one.wire._dialing.call(peer, net.now + 1)
        net.run(lambda peer=peer: peer.calling is None)  # type: ignore[misc]
        assert (peer.live is not None) == late
        assert len(two.events) == seen + (2 if late else 0)
        if not late:
            peer.live = old
            assert old is not None
            one.wire._announced[two.address] = old
            one.events.append(("+", two.address))
    serves(net, [one, two])


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
        new.say(peer_messages.encode(TimeoutNow(5)))
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
            assert connection.queued < SEND_QUEUE_BYTES + 1_100_000
        assert 8 <= sent < 100 and not hosts[0].send(address, message)
        assert hosts[0].send(hosts[1], message)
        net.run(lambda: hosts[1].heard)
        serves(net, hosts)
        peer.sock.close()
        net.run(lambda: address not in hosts[0].up)


def test_tiny_messages_are_bounded_too(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of many small messages is bounded by what it costs, not by its bytes alone."""
    monkeypatch.setattr(tcp, "SEND_QUEUE_BYTES", 100_000)
    one, two = net.mesh(2, "plain")
    live(one, two.address).sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    live(two, one.address).sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    net.hosts.remove(two)
    sent = 0
    while one.send(two, TimeoutNow(1)):
        sent += 1
    assert len(live(one, two.address)._frames) <= 100_000 // tcp.FRAME_OVERHEAD + 1
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
        assert len(warnings(caplog)) == 1 and "not a message" in caplog.text
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
    said = LogThrottle("me")
    for second in range(100):
        said.log("h1", float(second), "bad")
        said.tick(float(second))
    assert warnings(caplog) == ["me: bad", "me: 59 more like that about h1 within a minute", "me: bad"]
    said.tick(1000.0)
    assert warnings(caplog)[3:] == ["me: 39 more like that about h1 within a minute"]
    caplog.clear()
    for host in range(log_throttle.KEYS_MAX * 2):
        said.log(f"h{host}", 2000.0, "bad")
    assert len(said._said) == log_throttle.KEYS_MAX + 1 == len(warnings(caplog))
    said.tick(3000.0)
    assert said._said == {} and "1023 more like that about other hosts" in caplog.text

"""Clients of a node over real sockets: programs that are no members, and what they may ask at once."""

from __future__ import annotations

import pytest

from replidict.protocol import client_messages, peer_messages
from replidict.protocol.peer_messages import Propose, TimeoutNow
from replidict.security import Mode
from replidict.transport import clients, tcp
from replidict.transport.clients import CLIENTS_MAX, REQUESTS_MAX
from replidict.transport.framing import WireError, frame
from replidict.transport.tcp import SEND_QUEUE_BYTES
from tests.wire_nets import (
    MAX_FRAME,
    Host,
    Net,
    RawPeer,
    Stranger,
    serves,
    warnings,
)
from tests.wire_support import MODES

# -- clients -----------------------------------------------------------------------------------------------------------


class RawClient(RawPeer):
    """A client, driven by hand, and what it is answered."""

    def __init__(self, net: Net, stranger: Stranger, target: Host, mode: Mode) -> None:
        self.heard: list[client_messages.Answer] = []
        self.gone = False
        super().__init__(net, stranger, target, "", mode)

    def request(self, number: int, timeout: float = 1.0, prefix: str = "") -> None:
        self.say(peer_messages.encode(client_messages.ListKeys(number, timeout, prefix, None, 1, False)))

    def read(self) -> list[client_messages.Answer]:
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


def with_a_handler(net: Net, mode: Mode) -> tuple[list[Host], list[tuple[int, client_messages.Request]]]:
    """Two nodes, and what clients ask the first one."""
    hosts = net.mesh(2, mode)
    asked: list[tuple[int, client_messages.Request]] = []
    hosts[0].wire.clients.on_request = lambda client, request: asked.append((client, request))
    return hosts, asked


def answer(host: Host, client: int, said: client_messages.Answer, last: bool = True) -> str:
    return host.wire.clients.answer(client, said.id, host.wire.clients.frame(said), last)


@pytest.mark.parametrize("mode", MODES)
def test_a_client_asks(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """What a client asks is heard in order, and each answer reaches the client that asked; the engine hears nothing."""
    hosts, asked = with_a_handler(net, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        three = [RawClient(net, stranger, hosts[0], mode) for _ in range(3)]
        for turn in range(1, 4):
            for client in three:
                client.request(turn)
        net.run(lambda: len(asked) == 9)
        asked.sort(key=lambda each: each[1].id)  # stable: the order among those of one client is seen in the answers
        for number, request in reversed(asked):
            assert answer(hosts[0], number, client_messages.Keys(request.id, [b"%d" % number]), last=False) == "sent"
            assert answer(hosts[0], number, client_messages.Done(request.id)) == "sent"
            assert answer(hosts[0], number, client_messages.Done(request.id)) == "gone", "a request is ended once"
        net.run(lambda: all(len(client.read()) == 6 for client in three))
        for place, client in enumerate(three):
            assert client.heard[::2] == [client_messages.Keys(turn, [b"%d" % asked[place][0]]) for turn in (3, 2, 1)]
        assert hosts[0].heard == [] and len(hosts[0].events) == 1
        serves(net, hosts)
    net.run(lambda: len(hosts[0].wire.clients) == 0)
    assert answer(hosts[0], asked[0][0], client_messages.Done(1)) == "gone"
    assert warnings(caplog) == []


def test_a_client_that_waits_is_pinged_and_one_that_rests_is_dropped(net: Net) -> None:
    """While a client waits for an answer it hears that the node is alive; without a request it may stay for a
    minute."""
    hosts, asked = with_a_handler(net, "secret")
    with Stranger(hosts[0]) as stranger:
        client = RawClient(net, stranger, hosts[0], "secret")
        client.request(1)
        net.run(lambda: asked)
        before = live_client(hosts[0]).taken
        net.pass_time(20)
        assert 35 < (live_client(hosts[0]).taken - before) / (4 + 1 + 16) < 45
        answer(hosts[0], asked[0][0], client_messages.Done(1))
        net.run(lambda: client.read())
        assert 58 < net.run(lambda: len(hosts[0].wire.clients) == 0, seconds=70) < 62
        net.run(lambda: client.read() and client.gone)
        serves(net, hosts)


def live_client(host: Host) -> tcp.SocketConnection:
    (client,) = host.wire.clients._clients.values()
    return client.connection


@pytest.mark.parametrize("what", ["too many", "too large", "twice", "zero", "no handler"])
def test_a_client_that_asks_too_much_is_sent_away(net: Net, what: str) -> None:
    """A client that has too much under way, or breaks the rules, is told so and closed; the next one is welcome."""
    hosts, asked = with_a_handler(net, "plain")
    if what == "no handler":
        hosts[0].wire.clients.on_request = None
    with Stranger(hosts[0]) as stranger:
        client = RawClient(net, stranger, hosts[0], "plain")
        if what == "too large":
            hosts[0].wire.clients.room = 100 * REQUESTS_MAX
        for number in range(1, REQUESTS_MAX + 1):
            client.request(number, prefix="x" * (100 if what == "too large" else 0))
            net.round()
        if what == "too large":
            net.run(lambda: len(asked) == REQUESTS_MAX)
            answer(hosts[0], *(asked[0][0], client_messages.Done(asked.pop(0)[1].id)))
        if what != "no handler":
            client.request({"twice": 3, "zero": 0}.get(what, REQUESTS_MAX + 1), prefix="x" * 101)
        net.run(lambda: client.read() and client.gone)
        said = client.heard[-1]
        assert isinstance(said, client_messages.Failed) and (said.id, said.error) == (0, "ReplidictError")
        assert len(asked) == {"no handler": 0, "too large": REQUESTS_MAX - 1}.get(what, REQUESTS_MAX)
        assert hosts[0].wire.clients._bytes == 0 == len(hosts[0].wire.clients)
        hosts[0].wire.clients.on_request = lambda client, request: asked.append((client, request))
        RawClient(net, stranger, hosts[0], "plain").request(1)
        seen = len(asked)
        net.run(lambda: len(asked) > seen)
        serves(net, hosts)


@pytest.mark.parametrize("mode", MODES)
def test_a_thousand_clients(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand clients that rest the last few stay; one that waits for an answer stays, too."""
    hosts, asked = with_a_handler(net, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        waiting = RawClient(net, stranger, hosts[0], mode)
        waiting.request(1)
        net.run(lambda: asked)
        for _ in range(1000 if mode == "plain" else 200):
            RawClient(net, stranger, hosts[0], mode)
            assert len(hosts[0].wire.clients) <= CLIENTS_MAX
        assert answer(hosts[0], asked[0][0], client_messages.Done(1)) == "sent"
        net.run(lambda: client_messages.Done(1) in waiting.read())
        serves(net, hosts)
        assert len(hosts[0].wire._connections) <= CLIENTS_MAX + 1
        assert warnings(caplog) == []


def test_busy_clients_keep_their_places(net: Net) -> None:
    """When all clients wait for answers a new one is told that there is no room."""
    hosts, asked = with_a_handler(net, "plain")
    with Stranger(hosts[0]) as stranger:
        busy = [RawClient(net, stranger, hosts[0], "plain") for _ in range(CLIENTS_MAX)]
        for client in busy:
            client.request(1)
        net.run(lambda: len(asked) == CLIENTS_MAX)
        late = RawClient(net, stranger, hosts[0], "plain")
        net.run(lambda: late.read() and late.gone)
        assert isinstance(late.heard[0], client_messages.Failed) and "clients" in late.heard[0].text
        for number, _ in asked:
            assert answer(hosts[0], number, client_messages.Done(1)) == "sent"
        net.run(lambda: all(client.read() for client in busy))


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_never_reads(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """What waits for a client that does not read is bounded: parts of answers are held back; then it is dropped."""
    hosts, asked = with_a_handler(net, mode)
    with Stranger(hosts[0]) as stranger:
        client = RawClient(net, stranger, hosts[0], mode)
        client.request(1)
        net.run(lambda: asked)
        connection, piece = live_client(hosts[0]), client_messages.Piece(1, 1 << 40, bytes(1_000_000))
        while answer(hosts[0], asked[0][0], piece, last=False) == "sent":
            net.round()
            assert connection.queued < SEND_QUEUE_BYTES + 1_100_000
        assert answer(hosts[0], asked[0][0], piece, last=False) == "full"
        assert answer(hosts[0], asked[0][0], client_messages.Done(1)) == "sent", "the end holds nobody up"
        net.run(lambda: len(hosts[0].wire.clients) == 0, seconds=11.0)
        assert answer(hosts[0], asked[0][0], client_messages.Done(1)) == "gone"
        assert "does not take its answers" in caplog.text
        serves(net, hosts)


# -- what is kept for them --------------------------------------------------------------------------------------------

LARGE = 5 * 1024 * 1024  # of the `MAX_FRAME` that a client may say at once


def in_little_room(
    net: Net, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Host], list[client_messages.Request]]:
    """Two nodes, the first with room for one large frame, and little more; and what clients ask that one."""
    monkeypatch.setattr(clients, "BYTES_MAX", 1024 * 1024)
    hosts = net.mesh(2, mode)
    asked: list[client_messages.Request] = []
    hosts[0].wire.clients.on_request = lambda client, request: asked.append(request)
    return hosts, asked


def kept(host: Host) -> int:
    connections = [each for each in host.wire._connections.values() if not each.dead]
    return sum(each.session.held + each.queued for each in connections)


def large_request(client: RawClient, number: int) -> bytes:
    """A large request as it goes on the wire."""
    body = peer_messages.encode(client_messages.Set(number, 1.0, b"key", bytes(LARGE)))
    return bytes(client.session.encrypt(client.session.seal(frame(body, client.session.tag_bytes))))


def push(net: Net, host: Host, client: RawClient, data: bytes) -> None:
    """Send all of this, or until the node has closed the connection; what the node keeps stays within bounds."""
    left = memoryview(data)

    def sent() -> bool:
        nonlocal left
        assert kept(host) <= host.wire.clients.room
        client.read()
        try:
            left = left[client.sock.send(left[:100_000]) :]
        except BlockingIOError:
            pass
        except OSError:
            client.gone = True
        return client.gone or not left

    net.run(sent, seconds=60.0)
    for _ in range(300):  # what the system still holds
        net.round()
        assert kept(host) <= host.wire.clients.room


@pytest.mark.parametrize("mode", MODES)
def test_halves_of_asks_have_a_bound(net: Net, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that stop half-way take up a bounded amount of memory, all together: for another one's large request the
    one that has been silent longest goes, and is told why. Small requests are heard all the while, and members are
    not."""
    hosts, asked = in_little_room(net, mode, monkeypatch)
    with Stranger(hosts[0]) as stranger:
        small, patient, *halves = [RawClient(net, stranger, hosts[0], mode) for _ in range(5)]
        begun = large_request(patient, 1)[:100]
        push(net, hosts[0], patient, begun)
        for number, half in enumerate(halves, 1):
            push(net, hosts[0], half, large_request(half, 1)[: LARGE - 1000])
            small.request(number)
            net.run(lambda number=number: len(asked) == number)  # type: ignore[misc]
        net.run(lambda: all(half.read() and half.gone for half in halves[:2]))
        for half in halves[:2]:
            assert (
                isinstance(half.heard[-1], client_messages.Failed)
                and "too much is asked at once" in half.heard[-1].text
            )
        whole = RawClient(net, stranger, hosts[0], mode)
        push(net, hosts[0], whole, large_request(whole, 1))
        net.run(
            lambda: any(isinstance(request, client_messages.Set) and len(request.value) == LARGE for request in asked)
        )
        assert kept(hosts[0]) <= len(begun), "nothing is kept of a request that was heard"
        assert len(hosts[0].wire.clients) == 3, "who has said little may take its time"
        serves(net, hosts)


def test_two_asks_half_way_at_once(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two large requests that come side by side, and for which there is no room together, one is heard."""
    hosts, asked = in_little_room(net, "plain", monkeypatch)
    with Stranger(hosts[0]) as stranger:
        two = [RawClient(net, stranger, hosts[0], "plain") for _ in range(2)]
        said = [large_request(client, 1) for client in two]
        for start in range(0, len(said[0]), 200_000):
            for client, data in zip(two, said, strict=True):
                if not client.gone:
                    push(net, hosts[0], client, data[start : start + 200_000])
        net.run(lambda: len(asked) == 1)
        net.run(lambda: any(client.read() and client.gone for client in two))


def test_a_client_that_stops_half_way_is_dropped(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """A request may take its time, as long as more of it comes; when nothing does, the client goes, and a line says
    why."""
    hosts, asked = with_a_handler(net, "plain")
    with Stranger(hosts[0]) as stranger:
        slow, stuck = (RawClient(net, stranger, hosts[0], "plain") for _ in range(2))
        said = large_request(slow, 1)[:100] + b"x"
        stuck.write(said)
        for place in range(10):
            slow.sock.send(said[10 * place :][:10])
            net.pass_time(8)
            assert len(hosts[0].wire.clients) == (2 if place == 0 else 1)
        assert "stopped in the middle of what it asks" in caplog.text
        net.run(lambda: stuck.read() or stuck.gone)
        net.run(lambda: len(hosts[0].wire.clients) == 0, seconds=4.0)
        assert asked == []


@pytest.mark.parametrize("mode", MODES)
def test_answers_that_nobody_takes_have_a_bound(net: Net, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask and never read take up a bounded amount of memory, all together; one that reads is answered."""
    hosts, asked = with_a_handler(net, mode)
    monkeypatch.setattr(clients, "BYTES_MAX", 1024 * 1024)
    hosts[0].wire.clients.room = room = 2 * MAX_FRAME
    with Stranger(hosts[0]) as stranger:
        reads, *deaf = [RawClient(net, stranger, hosts[0], mode) for _ in range(6)]
        for turn in range(1, 5):  # the system itself takes some of it
            for client in deaf:
                try:
                    client.request(turn)
                except OSError:
                    pass  # it is gone
            net.pass_time(0.1)
            while asked:
                number, request = asked.pop()
                answer(hosts[0], number, client_messages.Value(request.id, bytes(LARGE), 1))
                assert kept(hosts[0]) <= room
                net.round()
        assert 1 <= len(hosts[0].wire.clients) < 6
        reads.request(1)
        net.run(lambda: asked)
        assert answer(hosts[0], asked[0][0], client_messages.Value(1, bytes(LARGE), 1)) == "sent"
        assert kept(hosts[0]) <= room
        net.run(lambda: reads.read())
        assert isinstance(reads.heard[0], client_messages.Value)
        serves(net, hosts)


def test_an_ask_is_given_back_in_time(net: Net) -> None:
    """When its timeout is over, and when its client is gone, a request is given back, to be begun no more."""
    hosts, asked = with_a_handler(net, "plain")
    over: list[int] = []
    hosts[0].wire.clients.on_over = lambda client, request: over.append(request.id)
    with Stranger(hosts[0]) as stranger:
        client = RawClient(net, stranger, hosts[0], "plain")
        client.request(1, timeout=3.0)
        client.request(2, timeout=60.0)
        client.request(3, timeout=0.0)
        net.run(lambda: len(asked) == 3)
        assert 2.9 < net.run(lambda: over) < 3.6
        assert set(over) == {1}
        assert answer(hosts[0], asked[0][0], client_messages.Done(1)) == "sent"
        over.clear()
        net.pass_time(2)
        assert over == []
    net.run(lambda: len(hosts[0].wire.clients) == 0)
    assert sorted(over) == [2, 3]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_gone_mad(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """Clients that speak as members do, or nothing at all, or of 4 GiB, are closed with one line in the log."""
    hosts, asked = with_a_handler(net, mode)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        for body in (peer_messages.encode(TimeoutNow(1)), peer_messages.encode(Propose(1, b"x")), b"\xc1\xc1", b"\x07"):
            client = RawClient(net, stranger, hosts[0], mode)
            client.say(body)
            net.run(lambda client=client: client.read() or client.gone)  # type: ignore[misc]
        client = RawClient(net, stranger, hosts[0], mode)
        client.write(b"\xff\xff\xff\xff")
        net.run(lambda: client.read() or client.gone)
        assert asked == [] and hosts[0].heard == [] and len(hosts[0].wire.clients) == 0
        assert len(warnings(caplog)) == 1 and "a client" in caplog.text
        serves(net, hosts)

"""Guests of a node over real sockets: programs that are no members, and what they may ask at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from replidict.raft import asks, guests, messages, sockets
from replidict.raft.framing import WireError
from replidict.raft.guests import ASKS_MAX, GUESTS_MAX
from replidict.raft.messages import Propose, TimeoutNow
from replidict.raft.sockets import SEND_QUEUE_BYTES
from replidict.security import Mode
from tests.wire_nets import (
    Host,
    Net,
    RawPeer,
    Stranger,
    a_net,
    serves,
    warnings,
)
from tests.wire_support import MODES, Certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def net(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> Iterator[Net]:
    with a_net(certificates, caplog) as net:
        yield net


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

"""What a node finds out about a peer that has closed its connection, over real sockets on loopback."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import pytest
from pysyncobj.node import Node
from pysyncobj.poller import PollPoller

from replidict.security import Mode
from replidict.transport import probing, routes, tcp
from replidict.transport.probing import ROUND_INTERVAL, ROUNDS, Probes
from tests.wire_nets import Host, Net, free_port, serves
from tests.wire_support import MODES


def ask(host: Host, other: Host) -> None:
    """As the engine does when its leader has closed its connection."""
    host.wire.probe(Node(other.address))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_a_process_that_ends(net: Net, mode: Mode, which: int) -> None:
    """Its peers are told that it closed its connections, and that nobody listens there; whoever calls whom."""
    hosts = net.mesh(3, mode)
    gone = hosts[which]
    others = [host for host in hosts if host is not gone]
    net.stop(gone)
    net.run(lambda: not any(gone.address in host.up for host in others))
    assert [host.closed for host in others] == [[(gone.address, True)]] * 2
    for host in others:
        ask(host, gone)
    net.run(lambda: all(host.refused for host in others), seconds=0.1)
    assert [host.refused for host in others] == [[gone.address]] * 2


def test_a_peer_that_lives(net: Net) -> None:
    """A node that closes one connection is told of as such, and found to listen; it is back as it always is."""
    one, two = net.mesh(2, "secret")
    one.wire.close_peer(Node(two.address))
    net.run(lambda: not two.up)
    ask(two, one)
    net.run(lambda: two.up and one.up)
    net.pass_time(1)
    assert (two.closed, one.closed, two.refused) == ([(one.address, True)], [], [])
    serves(net, [one, two])


@pytest.mark.parametrize("may_hold_lease", [False, True])
def test_whether_it_may_hold_a_lease(net: Net, may_hold_lease: bool) -> None:
    """A node says as it connects whether it may read under a lease."""
    one, two = net.mesh(2, "tls", may_hold_lease=may_hold_lease)
    net.stop(one)
    net.run(lambda: two.closed)
    assert two.closed == [(one.address, may_hold_lease)]


def test_silence_is_not_told(net: Net) -> None:
    """A peer that stands still has closed nothing, though its connection is given up, and refuses nothing, though it
    takes no calls."""
    one, two = net.mesh(2, "plain")
    net.hosts.remove(one)
    net.run(lambda: not two.up)
    ask(two, one)
    net.pass_time(3)
    assert (two.closed, two.refused) == ([], [])


def told(monkeypatch: pytest.MonkeyPatch, *targets: Callable[[], socket.socket]) -> bool:
    """Whether it is told that a name with these targets refuses."""
    refused: list[str] = []
    monkeypatch.setattr(probing, "numeric", lambda host, port: list(range(len(targets))))
    monkeypatch.setattr(probing, "dial", lambda target: targets[target]())
    poller, now = PollPoller(), 0.0
    probes = Probes(poller, True, refused.append)
    probes.begin("localhost:1")
    while probes.due < float("inf"):
        poller.poll(0.01)
        now += max(0.01, probes.due - now)
        probes.tick(now)
    return refused == ["localhost:1"]


def refuses() -> socket.socket:
    return tcp.dial((socket.AF_INET, ("127.0.0.1", free_port())))


def has_no_way() -> socket.socket:
    raise OSError(errno.EAFNOSUPPORT, "no such family")


def fails() -> socket.socket:
    raise OSError(errno.EHOSTUNREACH, "no route")


def test_all_that_an_address_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for several addresses: all must refuse, but for those that this machine has no way to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answers() -> socket.socket:
            return tcp.dial((socket.AF_INET, listening.getsockname()))

        assert told(monkeypatch, refuses)
        assert told(monkeypatch, refuses, refuses)
        assert told(monkeypatch, refuses, has_no_way)
        assert not told(monkeypatch, has_no_way)
        assert not told(monkeypatch, answers)
        assert not told(monkeypatch, refuses, answers)
        assert not told(monkeypatch, answers, refuses)
        assert not told(monkeypatch, fails, refuses)


def test_who_answers_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener of a process that ends may be closed after its connections; one that goes on listening is left in
    peace soon."""
    tried: list[float] = []

    def closes_after(rounds: int) -> bool:
        tried.clear()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = listening.getsockname()

            def answers() -> socket.socket:
                tried.append(0.0)
                if len(tried) > rounds:
                    listening.close()
                return tcp.dial((socket.AF_INET, address))

            return told(monkeypatch, answers)

    assert closes_after(3) and len(tried) == 4
    assert not closes_after(1000) and len(tried) == ROUNDS
    assert ROUNDS * ROUND_INTERVAL < 0.2


def test_names_are_looked_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up in a thread before the peer is asked; what it stands for then must refuse."""
    two = net.mesh(2, "secret")[1]
    monkeypatch.setattr(
        routes, "resolve", lambda host, port, flags=0: [] if flags else [(socket.AF_INET, ("127.0.0.1", port))]
    )
    monkeypatch.setattr(probing, "numeric", lambda host, port: [])
    name = f"a-name.example:{free_port()}"
    two.wire.addNode(Node(name))
    two.wire.probe(Node(name))
    net.run(lambda: two.refused, seconds=60)
    assert two.refused == [name]

"""Unauthenticated connections: none gets in, none disturbs the members, and few lines are logged."""

from __future__ import annotations

import logging
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import trustme
from pysyncobj.node import Node

from replidict.protocol import peer_messages
from replidict.protocol.peer_messages import MembersAre, Propose, encode
from replidict.security import Mode, security_for
from replidict.transport import unauthenticated
from replidict.transport.dialing import LINES_PER_PEER
from replidict.transport.framing import WireError, frame
from replidict.transport.handshake import PING, Refused
from replidict.transport.unauthenticated import UNAUTHENTICATED_MAX
from tests.wire_nets import (
    Host,
    Net,
    RawPeer,
    Stranger,
    addresses,
    closed,
    handshake_of,
    held_back,
    serves,
    session_for,
    warnings,
    with_a_raw_peer,
)
from tests.wire_support import MODES, SECRET

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
        assert not hosts[0].wire._unauthenticated and len(hosts[0].wire._connections) == 2
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
            assert len(hosts[0].wire._unauthenticated) <= UNAUTHENTICATED_MAX
        hosts.append(net.host(peers[2], peers, net.certificates.security(mode)))
        net.run(lambda: all(len(host.up) == 2 for host in hosts), seconds=1.0)
        serves(net, hosts)
        net.run(lambda: len(hosts[0].wire._connections) == 2, seconds=3.0)
        assert all(len(host.events) == 2 for host in hosts)
        assert len(warnings(caplog)) == 1


def test_many_names_are_one_line(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """A caller with one invented address after another, none of them proved, gets one line in the log, not one each."""
    host = net.mesh(2, "secret")[0]
    caplog.clear()
    with Stranger(host) as stranger:
        for port in range(40000, 40020):
            stranger.call().sendall(handshake_of(net, host, f"127.0.0.1:{port}", "secret"))
            net.pass_time(0.05)
        net.run(lambda: len(host.wire._connections) == 1, seconds=3.0)
    assert len(warnings(caplog, host)) == 1


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


@pytest.mark.parametrize("mode", ["secret", "tls"])
def test_a_recorded_session_is_worth_nothing(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """All that a proven peer ever said, said again over a new connection, opens nothing and is not heard."""
    hosts, address = with_a_raw_peer(net, mode)
    with Stranger(hosts[0]) as stranger:
        peer = RawPeer(net, stranger, hosts[0], address, mode)
        peer.say(peer_messages.encode(Propose(1, b"once")))
        net.run(lambda: hosts[0].heard)
        events = list(hosts[0].events)
        caplog.clear()
        for _ in range(3):
            sock = stranger.call(bytes(peer.said))
            net.run(lambda sock=sock: closed(sock), seconds=3.0)  # type: ignore[misc]
        assert hosts[0].events == events and len(hosts[0].heard) == 1
        assert len(warnings(caplog)) == 1
        serves(net, hosts)


# -- floods -----------------------------------------------------------------------------------------------------------


def back_in_a_flood(net: Net, mode: Mode, source: str, said: bytes | None, slowness: int) -> float:
    """A member returns while eight calls a millisecond come to another; how long it takes. `said` by these, or a hello
    in its name; it sees to its sockets only every so many milliseconds."""
    host, returning = net.mesh(2, mode)
    held_back(host)  # or it would be in by that one's call
    net.stop(returning)
    net.run(lambda: not host.up)
    with Stranger(host) as stranger:

        def flood() -> None:
            for _ in range(8):
                stranger.call(handshake_of(net, host, returning.address, mode) if said is None else said, source)
            for sock in stranger.sockets[:-200]:
                sock.close()
            del stranger.sockets[:-200]
            net.round()

        while len(host.wire._unauthenticated) < UNAUTHENTICATED_MAX:
            flood()
        again = net.host(returning.address, [host.address], net.certificates.security(mode))
        net.hosts.remove(again)
        start = net.now
        while not host.up:
            assert net.now < start + 60, "it is kept out"
            for _ in range(slowness):
                flood()
            again.poller.poll(0)
            again.wire.tick(net.now)
        assert len(host.wire._unauthenticated) <= UNAUTHENTICATED_MAX
        return net.now - start


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("said", [b"", None], ids=["silent", "in its name"])
def test_a_flood_from_another_host(net: Net, mode: Mode, said: bytes | None) -> None:
    """However many calls come from another host, a member that is slow gets in with its first one."""
    assert back_in_a_flood(net, mode, "127.0.0.2", said, 50) < 1.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("said", [b"", None], ids=["silent", "in its name"])
def test_a_flood_from_the_same_host(net: Net, mode: Mode, said: bytes | None) -> None:
    """A member gets in although more calls come from its own host, during its handshake, than are kept."""
    back_in_a_flood(net, mode, "127.0.0.1", said, 20 if said is not None else 4)


@pytest.mark.parametrize("mode", MODES)
def test_who_has_said_who_it_is_stays(net: Net, mode: Mode) -> None:
    """A caller in the midst of its handshake does not go for callers from its host that say nothing."""
    hosts = net.mesh(3, mode)
    with Stranger(hosts[0]) as stranger:
        said = stranger.call(handshake_of(net, hosts[0], hosts[2].address, mode))
        net.run(lambda: len(hosts[0].wire._connections) == 3)
        for _ in range(5 * UNAUTHENTICATED_MAX):
            stranger.call()
            net.round()
        assert len(hosts[0].wire._unauthenticated) == UNAUTHENTICATED_MAX and not closed(said)
        serves(net, hosts)


def test_hosts_of_ipv6_are_networks() -> None:
    """All addresses of a network of 64 bits are one host; those of IPv4 are one each."""
    hosts = [
        unauthenticated._host(remote)
        for remote in ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "fe80::1%eth0", "10.0.0.1", "10.0.0.2")
    ]
    assert hosts[0] == hosts[1] and len(set(hosts)) == 5


@pytest.mark.parametrize("mode", MODES)
def test_a_member_that_comes_and_goes(net: Net, mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    """A member that connects and hangs up, over and over, gets a few lines in the log, and then a count."""
    caplog.set_level(logging.INFO)
    hosts, address = with_a_raw_peer(net, mode)
    net.pass_time(61)
    caplog.clear()
    with Stranger(hosts[0]) as stranger:
        for _ in range(30):
            peer = RawPeer(net, stranger, hosts[0], address, mode)
            net.run(lambda: address in hosts[0].up)
            peer.sock.close()
            net.run(lambda: address not in hosts[0].up)
        assert 1 < len(caplog.records) <= 2 * LINES_PER_PEER
        net.pass_time(61)
        assert f"more like that about {address} within a minute" in caplog.text
        serves(net, hosts)


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


@pytest.mark.parametrize("mode", MODES)
def test_who_is_no_member_says_who_is(net: Net, mode: Mode) -> None:
    """The first words of a caller that is no member are heard if they are about the members: it may be the called node
    that was away while all that it knew were replaced. Nothing else of it is heard."""
    low, high = addresses(2)
    security = net.certificates.security(mode)
    called = net.host(low, [], security, farewell=lambda: FAREWELL)
    caller = net.host(high, [low], security)
    caller.on_connected = lambda node: [caller.send(low, word) for word in (FAREWELL, Propose(1, b"no"), FAREWELL)]
    net.run(lambda: bool(called.members) and bool(caller.heard))
    net.pass_time(0.1)
    assert called.members == [FAREWELL]
    assert called.heard == [] and called.events == []


@pytest.mark.parametrize("what", ["secret", "another cluster"])
def test_farewell_is_for_the_proven(net: Net, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """A caller with another secret, or of another cluster, is told nothing of the members."""
    peers = addresses(2)
    asked = []
    host = net.host(peers[0], [], net.certificates.security("secret"), farewell=lambda: asked.append(1))
    other = security_for(peers[1], None, SECRET + "!", False) if what == "secret" else host.wire._security
    stranger = net.host(peers[1], peers, other, cluster="c1" if what == "secret" else "c2")
    net.run(lambda: what in caplog.text)
    assert stranger.events == [] and asked == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("who", ["a stranger", "a client", "a node"])
def test_who_is_believed_to_know_another_node_here(
    net: Net, mode: Mode, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That a node took another's place is heard from proven nodes of the cluster, of which it may know none."""
    low, high = addresses(2)
    host = net.host(low, [], net.certificates.security(mode), farewell=lambda: FAREWELL)
    session = session_for(net, host, "" if who == "a client" else high, mode)
    lie = frame(encode(Refused("identity", "another was here")))
    if who == "a stranger":
        session._say_proof = lambda: session.output.append(lie)  # type: ignore[method-assign]
    else:
        session._check_proof = lambda proof: session._refuse("identity", "another was here")  # type: ignore[method-assign]
    with Stranger(host) as stranger:
        sock = stranger.call()
        session.start()

        def refused() -> bool:
            for out in [*session.take_output(), b""]:
                if encrypted := bytes(session.encrypt(out)):
                    sock.send(encrypted)
            try:
                for _ in session.receive(sock.recv(65536)):
                    raise AssertionError("it is not let in")
            except (BlockingIOError, WireError):
                pass
            return "another was here" in caplog.text

        net.run(refused)
    assert host.denied == ([high] if who == "a node" else [])


def test_last_words_are_not_waited_for_long(net: Net) -> None:
    """A connection with who is no member ends within seconds, whatever that one does, and nothing of it is read."""
    host = net.host(addresses(1)[0], [], net.certificates.security("plain"), farewell=lambda: FAREWELL)
    with Stranger(host) as stranger:
        peer = RawPeer(net, stranger, host, "127.0.0.1:40000", "plain")
        net.run(lambda: host.wire._unauthenticated)
        start = net.now
        while not closed(peer.sock):
            peer.say(peer_messages.encode(Propose(1, b"x")))
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

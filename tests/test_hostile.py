"""Attacks on a cluster that serves: nothing is believed, nothing is disturbed, nothing is unpickled (promise 7).

What one connection or one session can be told is tested in `test_wire`, `test_transport`, `test_unauthenticated` and
`test_network_clients`. Here three nodes write all the while, under one term and one leader, and each attack must leave
that as it was, with a line or two in the log. A million frames at once are `tests.fuzz_wire`.
"""

from __future__ import annotations

import _pickle
import io
import logging
import pickle
import random
import resource
import select
import shutil
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pysyncobj.pickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pysyncobj.utility import TcpUtility, UtilityException

from replidict import NotCommitted, Options, OutcomeUnknown, ReplicatedDict, ReplidictError, log_throttle, thread_pool
from replidict.machine import commands as cmd
from replidict.protocol import peer_messages
from replidict.raft.replication import MESSAGE_BYTES
from replidict.security import Mode
from replidict.storage import state_table
from replidict.transport import connections, dialing, links, tcp
from replidict.transport.dialing import LINES_PER_PEER
from replidict.transport.framing import WireError, frame
from replidict.transport.routes import PAUSE_LAST
from replidict.transport.unauthenticated import UNAUTHENTICATED_MAX
from tests.clusters import Dict, free_addresses, host_of, leader_of, open_member, wait_for_leader, wait_until, wire_of
from tests.fuzz_wire import (
    Forge,
    Rogue,
    Rogues,
    Tally,
    Target,
    accepts,
    call,
    decoded,
    hang_up,
    heard_from,
    mutate,
    said_until_closed,
    samples,
    target_for,
    work,
)
from tests.wire_support import MODES, Certificates

OPTIONS = Options(election_timeout=1.0, heartbeat=0.1, log_retain=1_000_000, snapshot_retain=0)
IN_TIME = 120.0
"""Seconds that something may take, however slow this machine is."""

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", autouse=True)
def nothing_is_late() -> Iterator[None]:
    """A machine may be slow: that is no reason to give a peer up, to cut a handshake off, or to say something again."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SILENCE_TIMEOUT", "HANDSHAKE_TIMEOUT"):
            patch.setattr(links, name, 10 * IN_TIME)
        patch.setattr(dialing, "CONNECT_TIMEOUT", 10 * IN_TIME)
        patch.setattr(connections, "HANDSHAKE_TIMEOUT", 10 * IN_TIME)
        patch.setattr(log_throttle, "INTERVAL", float("inf"))
        patch.setattr(thread_pool, "IDLE", 0.1)  # threads for clients, which no test is to leave behind
        yield


class Writers:
    """A thread for each node, which writes all the time."""

    def __init__(self, nodes: list[Dict]) -> None:
        self.counts = [0] * len(nodes)
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=pair) for pair in enumerate(nodes)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, node: Dict) -> None:
        while not self._stop.wait(0.005):
            try:
                node.set((number, self.counts[number] % 50), self.counts[number], timeout=IN_TIME)
            except BaseException as error:  # noqa: BLE001 -- the test looks
                self.errors.append(error)
                return
            self.counts[number] += 1

    def go_on(self) -> None:
        """Wait until each of them has had ten more writes acknowledged."""
        before = list(self.counts)
        wait_until(
            lambda: bool(self.errors) or all(n >= b + 10 for n, b in zip(self.counts, before, strict=True)),
            "all have written more",
        )
        assert self.errors == []

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def warnings(caplog: pytest.LogCaptureFixture, node: Dict, besides: str = "\n") -> list[str]:
    """Lines of this node, without those that hold `besides`."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line for line in lines if line.startswith(f"{node.status().address}: ") and besides not in line]


class Siege:
    """Three nodes of a cluster founded by four, all needed for a majority, and the identity of the fourth."""

    def __init__(self, target: Target, nodes: list[Dict]) -> None:
        self.target, self.nodes = target, nodes
        self.rogues = Rogues(target, random.Random(1))
        self.rogues.introduce()
        self.writers = Writers(nodes)

    def state(self) -> list[Any]:
        """What no attack may change."""
        found: list[Any] = []
        for node in self.nodes:
            status, peers = node.status(), host_of(node).node.engine.peers.values()
            links = {peer.address: (peer.connected, peer.connections) for peer in peers}
            links.pop(self.target.absent)
            found.append((status.term, status.leader, status.role, links))
        return found

    @contextmanager
    def unharmed(self, caplog: pytest.LogCaptureFixture, lines: int = 1) -> Iterator[None]:
        """Whatever happens within: no election, no lost connection, writes go on, and few lines are logged."""
        for node in self.nodes:
            wire_of(node)._log_throttle._said.clear()  # as if a minute had passed
        silence = f"no connection to {self.target.absent}: "  # it is called, too, when it has hung up
        before = self.state()
        caplog.clear()
        yield
        self.writers.go_on()
        assert self.state() == before
        for node in self.nodes:
            assert len(warnings(caplog, node, silence)) <= lines, warnings(caplog, node, silence)
            assert len(warnings(caplog, node)) <= lines + LINES_PER_PEER, warnings(caplog, node)
            wait_until(lambda node=node: len(wire_of(node)._connections) == 2, "no stranger is left")  # type: ignore[misc]
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        # Any client may tell a node that its cluster was recovered elsewhere: an error where there is a leader.
        assert [text for text in errors if "was recovered on" not in text] == []


@pytest.fixture(scope="module", params=MODES)
def siege(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    mode: Mode = request.param
    folder = tmp_path_factory.mktemp(f"siege-{mode}")
    target = target_for(folder, mode, free_addresses(4))
    addresses = [*target.live, target.absent]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(open_member(folder, addresses, number, options=OPTIONS, **target.credentials()))
            for number in range(3)
        ]
        leader_of(nodes)
        wait_until(lambda: all(len(node.status().connected) == 2 for node in nodes), "all are connected")
        wait_for_leader(nodes)
        made = Siege(replace(target, cluster_id=nodes[0].status().cluster_id), nodes)
        stack.callback(made.writers.stop)
        yield made


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_thousands_of_frames(siege: Siege, caplog: pytest.LogCaptureFixture) -> None:
    """Strangers and a proven member gone mad send thousands of frames: only what is a message is heard."""
    heard, stop = {}, []
    for node in siege.nodes:
        heard[node.status().address], undo = heard_from(node, siege.target.absent)
        stop.append(undo)
    total: list[Tally] = []
    frames = 3000 if siege.target.mode == "tls" else 8000
    with siege.unharmed(caplog, lines=200):
        work(siege.target, 5, frames, True, total.append)
        siege.writers.go_on()
    for undo in stop:
        undo()
    assert sum(tally.frames for tally in total) >= frames
    assert [problem for tally in total for problem in (*tally.accepted, *tally.not_closed)] == []
    allowed = sum(tally.well_formed for tally in total)
    messages_heard = sum(each["messages"] for each in heard.values())
    if siege.target.mode == "tls":
        assert 0 < messages_heard <= allowed  # a damaged record takes with it what arrived together with it
    else:
        assert messages_heard == allowed


noise = (
    st.binary(min_size=1, max_size=300)
    | st.binary(min_size=1, max_size=100).map(frame)
    | st.tuples(st.integers(0, 2**32), st.sampled_from(["hello", "proof", "message"])).map(lambda seed: seed)
)


def test_whatever_strangers_say(siege: Siege, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever hypothesis thinks of, as bytes or as changes to a real handshake, no stranger is accepted."""
    forge = Forge(random.Random(2), siege.target)

    @quick
    @given(st.lists(noise, min_size=1, max_size=4))
    def attack(parts: list[Any]) -> None:
        for address in siege.target.live:
            data = b""
            for part in parts:
                if isinstance(part, bytes):
                    data += part
                    continue
                seed, kind = part
                rng = random.Random(seed)
                whole = {
                    "hello": peer_messages.encode(forge.hello(address)),
                    "proof": b"\x92\x02\xc4\x20" + rng.randbytes(32),
                    "message": peer_messages.encode(rng.choice(samples(rng))),
                }[kind]
                data += frame(whole if rng.random() < 0.4 else mutate(rng, whole))
            with closing(call(address)) as sock:
                try:
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # closed already
                said = said_until_closed(sock)
            assert said is not None, "the node closes it"
            assert siege.target.mode == "tls" or not accepts(said)

    with siege.unharmed(caplog, lines=5):
        attack()


def test_whatever_a_member_says_that_is_no_message(siege: Siege, caplog: pytest.LogCaptureFixture) -> None:
    """A body that is no message, even from a proven member, closes that one connection and reaches no engine."""
    heard = [heard_from(node, siege.target.absent) for node in siege.nodes]

    @quick
    @given(st.binary(min_size=2, max_size=200) | st.integers(0, 2**32))
    def attack(body: bytes | int) -> None:
        if isinstance(body, int):
            rng = random.Random(body)
            body = mutate(rng, peer_messages.encode(rng.choice(samples(rng))))
        if len(body) < 2 or decoded(body) is not None:
            return
        for address in siege.target.live:
            rogue = siege.rogues.connect(address)
            rogue.prove()
            rogue.say(body)
            assert rogue.closed()

    with siege.unharmed(caplog, lines=2):
        attack()
    for counts, undo in heard:
        undo()
        assert counts["messages"] == 0


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    if wanted < 4500:
        pytest.skip("this user may not open enough files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_idle_connections_each(siege: Siege, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand connections to each node that say nothing: few are kept, and a member gets in between them."""
    with siege.unharmed(caplog, lines=2), ExitStack() as stack:
        for _ in range(1000):
            for address in siege.target.live:
                stack.enter_context(closing(call(address)))
        for node in siege.nodes:
            # Those that had to go are closed when the poll is over; two are peers.
            assert len(wire_of(node)._connections) <= UNAUTHENTICATED_MAX + tcp.ACCEPTS_PER_POLL + 3
        siege.writers.go_on()
        for address in siege.target.live:
            rogue = siege.rogues.connect(address)
            rogue.prove()
            assert rogue.closed()


def test_proposals_of_what_is_no_write(siege: Siege, caplog: pytest.LogCaptureFixture) -> None:
    """A member that proposes what only a leader may say, hundreds of times, changes nothing and gets one line."""
    members = [host_of(node).node.engine.members for node in siege.nodes]
    said = [peer_messages.Propose(0, cmd.encode(command)) for command in (cmd.Configuration([], []), cmd.NoOp()) * 250]
    for node in siege.nodes:
        host_of(node).node.engine.log_throttle._said.clear()
    with siege.unharmed(caplog, lines=1):
        for address in siege.target.live:
            rogue = siege.rogues.connect(address)
            rogue.prove()
            rogue.say(*map(peer_messages.encode, said))
            assert rogue.closed()
    assert "that is neither a write nor a session" in caplog.text
    assert [host_of(node).node.engine.members for node in siege.nodes] == members


def test_slow_handshakes(siege: Siege, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes that come a byte at a time, and never rest, are cut off before they are whole."""
    monkeypatch.setattr(links, "HANDSHAKE_TIMEOUT", 2.0)
    said = b"\x16\x03\x01\x0f\xff" + bytes(4000) if siege.target.mode == "tls" else frame(bytes(4096))
    with siege.unharmed(caplog, lines=1), ExitStack() as stack:
        slow = {stack.enter_context(closing(call(address))): 0 for address in siege.target.live * 20}
        while slow:
            for sock in select.select(list(slow), [], [], 0.01)[0]:
                said_until_closed(sock)
                del slow[sock]
            for sock, sent in slow.items():
                assert sent < 2000, "it is cut off"
                slow[sock] = sent + 1
                try:
                    sock.send(said[sent : sent + 1])
                except OSError:
                    pass  # closed: seen above next time
        siege.writers.go_on()


def test_a_member_that_never_reads(
    siege: Siege, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that asks and asks, and never reads the answers, costs bounded memory and delays nobody."""
    monkeypatch.setattr(tcp, "SEND_QUEUE_BYTES", 50_000)
    with siege.unharmed(caplog, lines=1), ExitStack() as stack:
        for node, address in zip(siege.nodes, siege.target.live, strict=True):
            rogue = siege.rogues.connect(address)
            stack.callback(hang_up, rogue.sock)
            rogue.prove()
            wait_until(lambda node=node: siege.target.absent in node.status().connected, "it is connected")  # type: ignore[misc]
            connection = wire_of(node)._peers[siege.target.absent].live
            assert connection is not None
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)

            def ask(rogue: Rogue = rogue, connection: tcp.SocketConnection = connection) -> bool:
                rogue.say(*[peer_messages.encode(peer_messages.ReadIndexRequest(0, n)) for n in range(1000)])
                return connection.full

            wait_until(ask, "the queue is full")
            for _ in range(50):
                ask()
            siege.writers.go_on()
            assert connection.queued < 50_000 + MESSAGE_BYTES + 1000, "one message more at most"
        siege.writers.go_on()


# -- who is who -------------------------------------------------------------------------------------------------------


def test_a_second_process_under_one_address(siege: Siege, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Another disk under the address of a running member: it can't listen there, and its calls are refused, once."""
    addresses = [*siege.target.live, siege.target.absent]
    with siege.unharmed(caplog, lines=1):
        with pytest.raises(ReplidictError, match="another process listens there"):
            open_member(tmp_path, addresses, 2, **siege.target.credentials())
        impostor = Rogues(replace(siege.target, absent=siege.target.live[2]), random.Random(4))
        for _ in range(5):
            for address in siege.target.live[:2]:
                rogue = impostor.connect(address, "another disk")
                with pytest.raises(WireError, match="remove it from the cluster and let it join anew"):
                    rogue.prove()
                assert rogue.closed()
        for node in siege.nodes[:2]:
            assert [line for line in warnings(caplog, node) if "it lost its disk or another took its place" in line]


COMMANDS: list[Any] = [
    ["status"], ["add", "127.0.0.1:1"], ["remove", "127.0.0.1:1"], ["transfer", "127.0.0.1:1"], ["set_version", 1],
    "readonly", "127.0.0.1:1",
]  # fmt: skip


@pytest.mark.parametrize("password", [None, "password"])
def test_administration_by_pysyncobj(siege: Siege, password: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """PySyncObj's own client, with its admin commands and as a read-only node, gets no answer and does nothing."""
    members = [host_of(node).node.engine.members for node in siege.nodes]
    with siege.unharmed(caplog, lines=1):
        for address in siege.target.live:
            for command in COMMANDS:
                with pytest.raises(UtilityException, match="connection lost"):
                    TcpUtility(password, timeout=IN_TIME).executeCommand(address, command)
        for node in siege.nodes:
            assert len(warnings(caplog, node, "no connection to")) == 1
    assert [host_of(node).node.engine.members for node in siege.nodes] == members


class Three:
    """Three nodes of which some are closed, replaced, and opened again."""

    def __init__(self, root: Path, stack: ExitStack, **how: Any) -> None:
        self.root, self.stack, self.how = root, stack, how
        self.addresses = sorted(free_addresses(3))
        self.nodes = [self.open(number) for number in range(3)]

    def open(self, number: int) -> Dict:
        return self.stack.enter_context(open_member(self.root, self.addresses, number, **self.how))

    def others(self, number: int) -> list[Dict]:
        return [node for other, node in enumerate(self.nodes) if other != number]

    def lead_without(self, number: int) -> list[Dict]:
        """Close a node; the other two, agreed on a leader, and the term."""
        self.nodes[number].close()
        rest = self.others(number)
        leader_of(rest)
        rest[0].set("led", True, timeout=IN_TIME)
        wait_for_leader(rest)
        return rest


@contextmanager
def unmoved(nodes: list[Dict]) -> Iterator[None]:
    """They serve before and after, under the same leader of the same term."""
    before = [(node.status().term, node.status().leader) for node in nodes]
    yield
    for node in nodes:
        node.set("serves", True, timeout=IN_TIME)
    assert [(node.status().term, node.status().leader) for node in nodes] == before


def refused(caplog: pytest.LogCaptureFixture, node: Dict, why: str) -> list[str]:
    """The lines of this node that say so."""
    return [line for line in warnings(caplog, node) if why in line]


def refused_once(caplog: pytest.LogCaptureFixture, node: Dict, why: str) -> bool:
    """It has said so once as the caller, once as the called, or both."""
    lines = refused(caplog, node, why)
    return 0 < len(lines) == len({line.split(" to ")[0].split(" from ")[0] for line in lines})


def tried_on_and_on(callers: list[Dict], called: list[str]) -> None:
    """Wait until each of these has called each of those in vain, again and again from now on."""
    routes = [wire_of(node)._peers[address].route for node in callers for address in called]
    for route in routes:
        route.arrived()  # the pauses between calls grow anew
    wait_until(lambda: all(route._pause >= PAUSE_LAST for route in routes), "they have called many times")


@pytest.mark.parametrize("rank", [0, 2], ids=["it is called", "it calls"])
def test_a_wiped_node(tmp_path: Path, rank: int, caplog: pytest.LogCaptureFixture) -> None:
    """A node whose directory was deleted is refused, with what to do, once; it can't vote and is not counted."""
    with ExitStack() as stack:
        three = Three(tmp_path, stack, options=OPTIONS, secret="not known to others")
        three.nodes[0].set("k", 1, timeout=IN_TIME)
        for node in three.nodes:
            node.barrier(timeout=IN_TIME)
            wait_until(lambda node=node: len(node.status().connected) == 2, "all have met")  # type: ignore[misc]
        rest = three.lead_without(rank)
        with unmoved(rest):
            shutil.rmtree(tmp_path / f"n{rank}")
            caplog.clear()
            wiped = three.nodes[rank] = three.open(rank)
            why = "it lost its disk or another took its place; remove it from the cluster and let it join anew"
            for node in (*rest, wiped):  # it is told itself, too
                wait_until(lambda node=node: bool(refused(caplog, node, why)), "it is refused")  # type: ignore[misc]
            if rank == 2:
                tried_on_and_on([wiped], three.addresses[:2])
            else:
                tried_on_and_on(rest, [three.addresses[rank]])
            assert all(refused_once(caplog, node, why) for node in rest)
            assert len(warnings(caplog, wiped)) <= 4
            status = wiped.status()
            assert (status.term, status.leader, status.connected, status.keys) == (0, None, (), 0)
        # It gives nobody a majority.
        gone = 1
        three.nodes[gone].close()
        (last,) = (node for number, node in enumerate(three.nodes) if number not in (rank, gone))
        wait_for_leader([last], OPTIONS.election_timeout)
        wait_until(lambda: not last.status().is_leader, "no majority follows")
        with pytest.raises((NotCommitted, OutcomeUnknown)):
            last.set("k", "alone", timeout=1)
        assert last.status().connected == () and wiped.status().term == 0
        three.nodes[gone] = three.open(gone)
        last.set("k", 2, timeout=IN_TIME)
        assert three.nodes[gone].get("k", linearizable=True, timeout=IN_TIME) == 2
        assert wiped.status().keys == 0


@pytest.mark.parametrize("rank", [0, 2], ids=["it is called", "it calls"])
def test_a_node_of_another_cluster(tmp_path: Path, rank: int, caplog: pytest.LogCaptureFixture) -> None:
    """A node of another cluster that sits at a member's address refused, once; both clusters keep to themselves."""
    with ExitStack() as stack:
        three = Three(tmp_path, stack, options=OPTIONS)
        rest = three.lead_without(rank)
        other = next(address for address in three.addresses if address != three.addresses[rank])
        with unmoved(rest):
            caplog.clear()
            foreign = stack.enter_context(
                ReplicatedDict[Any, Any](
                    tmp_path / "foreign",
                    address=three.addresses[rank],
                    peers=[other, "127.0.0.1:1"],
                    options=OPTIONS,
                )
            )
            why = "belongs to another cluster than"
            met = [node for node in rest if rank == 0 or node.status().address == other]
            for node in met:
                wait_until(lambda node=node: bool(refused(caplog, node, why)), "it is refused")  # type: ignore[misc]
            if rank == 2:
                tried_on_and_on([foreign], [other])
            else:
                tried_on_and_on(met, [three.addresses[rank]])
            assert all(refused_once(caplog, node, why) for node in met)
            status = foreign.status()
            assert (status.term, status.leader, status.connected) == (0, None, ())
        foreign.close()
        three.nodes[rank] = three.open(rank)
        three.nodes[rank].set("k", "back", timeout=IN_TIME)
        assert rest[0].get("k", linearizable=True, timeout=IN_TIME) == "back"


# -- pickles ----------------------------------------------------------------------------------------------------------


class Exploit:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All unpicklers of this process raise, under every name by which any module knows them; and who was called."""
    known: dict[int, str] = {}
    for module in (pickle, _pickle, pysyncobj.pickle):
        for name in ("load", "loads", "_load", "_loads", "Unpickler", "_Unpickler"):
            if hasattr(module, name):
                known[id(getattr(module, name))] = f"{module.__name__}.{name}"
    called: list[str] = []

    def forbidden(what: str) -> Any:
        def refuse(*args: object, **kwargs: object) -> None:
            called.append(what)
            raise AssertionError(f"{what} was called")

        return refuse

    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in known:
                monkeypatch.setattr(module, name, forbidden(known[id(value)]))
    return called


def test_nothing_is_unpickled(tmp_path: Path, unpickled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Founding, writing, catching up by log and by snapshot, and restarting never call an unpickler (promise 7)."""
    monkeypatch.setattr(state_table, "GATHER_ENTRIES", 8)
    exploit = pickle.dumps(Exploit(tmp_path / "mark"))
    compressed = zlib.compress(exploit, 3)
    framed = struct.pack("i", len(compressed)) + compressed
    with ExitStack() as stack:
        three = Three(tmp_path / "nodes", stack, options=replace(OPTIONS, election_timeout=0.5, log_retain=10))

        def attack() -> None:
            for address in three.addresses:
                for data in (framed, frame(exploit), exploit):
                    with closing(call(address)) as sock:
                        sock.sendall(data)
                        assert said_until_closed(sock) is not None

        three.nodes[0].update({"exploit": exploit, "framed": framed, exploit: None})
        three.nodes[2].barrier(timeout=IN_TIME)
        attack()
        three.nodes[2].close()
        for number in range(100):
            three.nodes[number % 2].set(number, exploit, timeout=IN_TIME)
        wait_until(lambda: all(node.status().log_entries < 40 for node in three.nodes[:2]), "the log is compacted")
        three.nodes[2] = three.open(2)
        three.nodes[2].barrier(timeout=IN_TIME)
        assert host_of(three.nodes[2]).node.engine.snapshots.installed >= 1
        three.nodes[1].close()
        three.nodes[0].set("while it was away", exploit, timeout=IN_TIME)
        three.nodes[1] = three.open(1)
        three.nodes[1].barrier(timeout=IN_TIME)
        assert host_of(three.nodes[1]).node.engine.snapshots.installed == 0
        for node in three.nodes:
            node.close()
        three.nodes = [three.open(number) for number in range(3)]
        for node in three.nodes:
            node.barrier(timeout=IN_TIME)
            assert len(node) == 104 and node["exploit"] == exploit
    assert not (tmp_path / "mark").exists()
    assert unpickled == []
    # Had there been a call, it would have been seen.
    for unpickler in (pickle.loads, pysyncobj.pickle.loads, _pickle.loads):
        with pytest.raises(AssertionError, match="was called"):
            unpickler(exploit)
    with pytest.raises(AssertionError, match="was called"):
        pickle.Unpickler(io.BytesIO(exploit)).load()  # noqa: S301
    assert len(unpickled) == 4


def test_certificates_are_files_for_all_modes(tmp_path: Path) -> None:
    """What the rogue is given is what the nodes are given, in each mode: else the attacks would prove nothing."""
    Certificates(tmp_path)
    for mode in MODES:
        target = Target(mode, "c", ["127.0.0.1:1"], "127.0.0.1:2", "id", tmp_path)
        assert target.security().mode == mode

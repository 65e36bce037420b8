"""Clients of running nodes: what they ask is done, whatever goes wrong is said, and nothing disturbs the node."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from replidict import (
    ClosedError,
    EncodingError,
    NotCommitted,
    Options,
    OutcomeUnknown,
    ReadTimeout,
    ReplicatedDict,
    ReplidictError,
    SecurityError,
    thread_pool,
)
from replidict.client import connection as client_module
from replidict.client.connection import Client, UnreachableError
from replidict.machine import key_index
from replidict.machine.codec import decode, encode, encode_key
from replidict.node.blocking_calls import rounded
from replidict.options import MiB
from replidict.protocol import client_messages, peer_messages
from replidict.release import THIS
from replidict.security import Mode, security_for
from replidict.server import request_handler
from replidict.storage import snapshot
from replidict.transport import clients
from replidict.transport.framing import frame
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, wait_until, wire_of
from tests.wire_support import MODES, Certificates, given


def client_of(node: Dict, mode: Mode, certificates: Certificates | None = None, **how: Any) -> Client:
    address = str(node.status().address)
    security = security_for(address, None, None, False) if certificates is None else certificates.security(mode)
    return Client(address, security=security, **how)


def exercise(client: Client, node: Dict, name: str) -> None:
    """All that a client can do with one key."""
    key = encode_key(name)
    assert client.request(lambda i, t: client_messages.Get(i, t, key, True), client_messages.Value).value is None
    revision = client.request(lambda i, t: client_messages.Set(i, t, key, encode([1])), client_messages.Stored).revision
    assert node.versioned(name) == ([1], revision)
    value = client.request(lambda i, t: client_messages.Get(i, t, key, False), client_messages.Value)
    assert (decode(value.value or b""), value.revision) == ([1], revision)
    assert not client.request(lambda i, t: client_messages.Add(i, t, key, encode(2)), client_messages.Held).held
    assert not client.request(
        lambda i, t: client_messages.Replace(i, t, key, encode(2), revision + 9), client_messages.Held
    ).held
    assert client.request(
        lambda i, t: client_messages.Replace(i, t, key, encode(2), revision), client_messages.Held
    ).held
    assert node[name] == 2
    assert client.request(lambda i, t: client_messages.Delete(i, t, key), client_messages.Held).held
    assert not client.request(lambda i, t: client_messages.Delete(i, t, key), client_messages.Held).held
    assert client.request(lambda i, t: client_messages.Add(i, t, key, encode(3)), client_messages.Held).held
    assert node[name] == 3


@pytest.mark.parametrize("mode", MODES)
def test_what_clients_ask_is_done(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """In every mode, of every node: reads, writes and conditions do what the dict does, and are seen by it."""
    with cluster(tmp_path, **given(mode, certificates)) as nodes:
        for number, node in enumerate(nodes):
            with client_of(node, mode, certificates, timeout=30) as client:
                assert client.cluster_id == node.status().cluster_id
                exercise(client, node, f"k{number}")
                assert (
                    client.request(client_messages.GetStatus, client_messages.StatusIs).status.address == client.address
                )
                members = client.request(client_messages.GetMembers, client_messages.MembersAre).members
                assert [m.address for m in members] == [m.address for m in nodes[0].members()]
        assert leader_of(nodes).get("k1", linearizable=True) == 3


def test_keys_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come in parts, texts by code point and then the others by their bytes, from where the last page ended."""
    monkeypatch.setattr(request_handler, "KEYS_BYTES", 50)
    monkeypatch.setattr(key_index, "SORT_AT_ONCE", 7)
    texts = ["", *(f"k{number}" for number in range(50)), "z", "\ue000", "\U0001f600", "\udc80"]
    others: list[Any] = [1, 2.5, -3, b"bytes", ("a", 1), None, frozenset({1})]
    ordered = [*map(encode_key, sorted(texts)), *sorted(map(encode_key, others))]
    with cluster(tmp_path, 1) as nodes, client_of(nodes[0], "plain") as client:
        nodes[0].update(dict.fromkeys([*reversed(texts), *others], 0))

        def listed(prefix: str = "", after: bytes | None = None, limit: int = 1000) -> list[bytes]:
            parts = client.stream(lambda i, t: client_messages.ListKeys(i, t, prefix, after, limit, True))
            return [key for part in parts if isinstance(part, client_messages.Keys) for key in part.keys]

        assert listed() == ordered
        assert listed(limit=0) == []
        for start, after in enumerate(ordered, 1):
            assert listed(after=after, limit=3) == ordered[start : start + 3]
        with_k = [key for key in map(encode_key, sorted(texts)) if decode(key).startswith("k")]
        assert listed("k") == with_k
        assert listed("k", after=with_k[3], limit=4) == with_k[4:8]
        assert listed("k", after=encode_key(1)) == []


def test_what_clients_give_is_checked(tmp_path: Path) -> None:
    """Keys, values, addresses and identities of clients are refused where the program's are."""
    options = Options(max_key_bytes=100, max_value_bytes=200)
    key, long = encode_key("k"), encode("x" * 300)
    wrong: list[tuple[Callable[[int, float], client_messages.Request], type[Exception], str]] = [
        (lambda i, t: client_messages.Set(i, t, encode("x" * 101), key), EncodingError, "longer than"),
        (lambda i, t: client_messages.Set(i, t, encode(b"x" * 999), key), EncodingError, "longer than"),
        (lambda i, t: client_messages.Set(i, t, b"\xc1", key), EncodingError, "not an encoded value"),
        (lambda i, t: client_messages.Set(i, t, encode(float("nan")), key), EncodingError, "NaN"),
        (lambda i, t: client_messages.Set(i, t, encode([1]), key), EncodingError, "hashable"),
        (lambda i, t: client_messages.Set(i, t, key, long), EncodingError, "larger than"),
        (lambda i, t: client_messages.Add(i, t, key, encode("x" * 9999)), EncodingError, "larger than"),
        (lambda i, t: client_messages.Replace(i, t, key, b"\x93\x01", 1), EncodingError, "not an encoded value"),
        (lambda i, t: client_messages.Get(i, t, b"", False), EncodingError, "not an encoded value"),
        (lambda i, t: client_messages.Delete(i, t, b"\x91" * 99), EncodingError, "not an encoded value"),
        (lambda i, t: client_messages.AddPeer(i, t, "nowhere", True), ValueError, "must end in a port"),
        (lambda i, t: client_messages.AddPeer(i, t, "192.0.2.1:1", True), SecurityError, "not a loopback address"),
        (lambda i, t: client_messages.Join(i, t, "127.0.0.1:1", "no id", True, *THIS), ValueError, "32 hexadecimal"),
        (
            lambda i, t: client_messages.Join(i, t, "10.0.0.1:1", "0" * 32, True, *THIS),
            SecurityError,
            "not a loopback address",
        ),
        (lambda i, t: client_messages.RemovePeer(i, t, "127.0.0.1:1", False), ReplidictError, "is no member"),
        (lambda i, t: client_messages.Transfer(i, t, "127.0.0.1:1"), ReplidictError, "is no voter"),
    ]
    with cluster(tmp_path, 1, options=options) as nodes, client_of(nodes[0], "plain") as client:
        nodes[0]["k"] = 1
        for make, kind, why in wrong:
            with pytest.raises(kind, match=why):
                client.request(make, client_messages.Done)
        assert dict(nodes[0]) == {"k": 1} and nodes[0].revision == 1
        assert len(nodes[0].members()) == 1


def test_stored_as_the_program_would(tmp_path: Path) -> None:
    """Whatever bytes a client chose for a key and value, what is stored is what the program would have stored."""
    with cluster(tmp_path, 1) as nodes, client_of(nodes[0], "plain") as client:
        one, text = b"\xcf" + (1).to_bytes(8, "big"), b"\xd9\x01k"  # longer than need be
        client.request(lambda i, t: client_messages.Set(i, t, one, text), client_messages.Stored)
        item = nodes[0]._machine.items[1]
        assert (item.key, item.value) == (encode_key(1), encode("k"))


class Reversed:
    """A codec of a program's own."""

    def encode(self, value: Any) -> bytes:
        return encode(value)[::-1]

    def decode(self, data: bytes) -> Any:
        return decode(data[::-1])


def test_a_codec_of_the_programs_own(tmp_path: Path) -> None:
    """Clients speak the codec of the package, whatever codec the program has chosen for its values."""
    with cluster(tmp_path, 1, codec=Reversed()) as nodes, client_of(nodes[0], "plain") as client:
        exercise(client, nodes[0], "key")


# -- backups ----------------------------------------------------------------------------------------------------------


def received(client: Client, until: int | None = None) -> bytes:
    parts = client.stream(client_messages.Backup)
    return b"".join(part.data for part in islice(parts, until) if isinstance(part, client_messages.Piece))


def left_over(node: Dict) -> list[Path]:
    return list(host_of(node).directory.path.glob(f"{request_handler.ASKED}*"))


@pytest.mark.parametrize("mode", MODES)
def test_a_backup_for_a_client(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """A client gets a backup in pieces, while others write, and a cluster can be founded from it; nothing is left."""
    with cluster(tmp_path, **given(mode, certificates)) as nodes:
        nodes[0].update({number: bytes(10_000) for number in range(300)})
        expected = nodes[0].snapshot()
        with client_of(nodes[0], mode, certificates) as client:
            parts = client.stream(client_messages.Backup)
            first = next(parts)
            nodes[1]["later"] = "not in it"
            pieces = [first, *parts]
            assert all(isinstance(part, client_messages.Piece) for part in pieces)
            data = b"".join(part.data for part in pieces if isinstance(part, client_messages.Piece))
            assert {part.total_bytes for part in pieces if isinstance(part, client_messages.Piece)} == {len(data)}
            assert client.request(client_messages.GetStatus, client_messages.StatusIs).status.keys >= 300
        wait_until(lambda: not left_over(nodes[0]), "the file is removed")
    (tmp_path / "backup").write_bytes(data)
    ReplicatedDict.restore(tmp_path / "backup", tmp_path / "restored")
    with ReplicatedDict[Any, Any](tmp_path / "restored") as restored:
        assert dict(restored) == expected


def full(node: Dict) -> bool:
    """Whether a client has not taken what waits for it."""
    return any(client.connection.full for client in list(wire_of(node).clients._clients.values()))


def test_a_client_that_is_slow(tmp_path: Path) -> None:
    """A client that takes its backup slowly gets all of it, and the node keeps no more than a queue of it in memory."""
    with cluster(tmp_path, 1) as nodes, client_of(nodes[0], "plain") as client:
        nodes[0].update({number: bytes(100_000) for number in range(300)})
        parts = client.stream(client_messages.Backup)
        first = next(parts)
        wait_until(lambda: full(nodes[0]), "the queue is full")
        assert isinstance(first, client_messages.Piece)
        rest = sum(len(part.data) for part in parts if isinstance(part, client_messages.Piece))
        assert len(first.data) + rest == first.total_bytes


def test_a_client_that_goes_half_way(tmp_path: Path) -> None:
    """When a client goes, or takes nothing, while it is sent a backup, the node keeps nothing of it."""
    with cluster(tmp_path, 1) as nodes:
        nodes[0].update({number: bytes(100_000) for number in range(300)})
        with client_of(nodes[0], "plain") as client:
            assert len(received(client, 1)) == request_handler.PIECE_BYTES
            with pytest.raises(ClosedError):
                client.request(client_messages.GetStatus, client_messages.StatusIs)
        wait_until(lambda: not left_over(nodes[0]), "the file is removed")
        exercise_anew(nodes[0])


def test_a_client_that_goes_before_the_first_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a client goes while its backup is still being made, that ends at once."""
    monkeypatch.setattr(snapshot, "CHECK_ROWS", 1)
    monkeypatch.setattr(snapshot, "PAUSE", 1.0)
    with cluster(tmp_path, 1) as nodes:
        nodes[0].update(dict.fromkeys(range(300), 1))
        with client_of(nodes[0], "plain") as client:
            client._send(client_messages.Backup, None)
            wait_until(lambda: bool(left_over(nodes[0])), "it is being made")
        wait_until(lambda: not left_over(nodes[0]), "the file is removed")


def test_a_node_that_closes_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is closed while it sends a backup leaves no thread and no file."""
    monkeypatch.setattr(request_handler, "FULL_PAUSE", 1.0)
    with cluster(tmp_path, 1) as nodes, client_of(nodes[0], "plain") as client:
        nodes[0].update({number: bytes(100_000) for number in range(300)})
        parts = client.stream(client_messages.Backup)
        next(parts)
        wait_until(lambda: full(nodes[0]), "the queue is full")
        nodes[0].close()
        assert pools(nodes[0]) == []
        with pytest.raises(ReplidictError, match="lost"):
            list(parts)
        assert not left_over(nodes[0])
    (tmp_path / "n0" / f"{request_handler.ASKED}left by a kill").touch()
    address = str(nodes[0].status().address)
    with ReplicatedDict[Any, Any](tmp_path / "n0", address=address) as again:
        assert not left_over(again)


def pools(node: Dict) -> list[str]:
    """The threads that serve its clients."""
    address = node.status().address
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(f"replidict {address} ")]


def exercise_anew(node: Dict) -> None:
    """The node serves clients as before."""
    with client_of(node, "plain") as client:
        exercise(client, node, "anew")


# -- waiting ----------------------------------------------------------------------------------------------------------


@contextmanager
def without_a_quorum(tmp_path: Path) -> Iterator[Dict]:
    with cluster(tmp_path) as nodes:
        nodes[0]["key"] = "value"
        for node in nodes[1:]:
            node.close()
        wait_until(lambda: nodes[0].status().leader is None, "it knows of no leader")
        yield nodes[0]


def under_way(node: Dict) -> int:
    """How many requests of clients wait there."""
    return sum(len(client.under_way) for client in list(wire_of(node).clients._clients.values()))


def test_without_a_quorum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be done is said in time, as to the program; what a node knows on its own, it goes on telling, also
    when more writes wait than there are threads for."""
    key = encode_key("key")
    with without_a_quorum(tmp_path) as node, ExitStack() as stack, client_of(node, "plain", timeout=0.3) as client:
        with pytest.raises(NotCommitted, match="not applied and never will be"):
            client.request(lambda i, t: client_messages.Set(i, t, key, key), client_messages.Stored)
        with pytest.raises(ReadTimeout):
            client.request(lambda i, t: client_messages.Get(i, t, key, True), client_messages.Value)
        with pytest.raises(NotCommitted, match="no leader could be reached"):
            client.request(
                lambda i, t: client_messages.Join(i, t, "127.0.0.1:1", "0" * 32, True, *THIS), client_messages.Joined
            )
        waiting = [stack.enter_context(client_of(node, "plain", timeout=600)) for _ in range(20)]
        ended: list[BaseException] = []

        def write(each: Client) -> None:
            try:
                each.request(lambda i, t: client_messages.Set(i, t, key, key), client_messages.Stored)
            except ReplidictError as error:
                ended.append(error)

        threads = [threading.Thread(target=write, args=(each,)) for each in waiting]
        for thread in threads:
            thread.start()
        busy = host_of(node)._request_handler._pools["waits"]  # type: ignore[union-attr]
        wait_until(lambda: len(busy._work) == 4 and len(busy._threads) == 16, "the threads are busy, and some wait")
        with client_of(node, "plain") as other:
            assert other.request(
                lambda i, t: client_messages.Get(i, t, key, False), client_messages.Value
            ).value == encode("value")
            assert other.request(client_messages.GetStatus, client_messages.StatusIs).status.leader is None
            assert len(other.request(client_messages.GetMembers, client_messages.MembersAre).members) == 3
        monkeypatch.setattr(client_module, "GRACE", 60.0)
        with pytest.raises(NotCommitted, match=r"too busy to begin within 0\.3 s"):
            client.request(lambda i, t: client_messages.Set(i, t, key, key), client_messages.Stored)
        with client_of(node, "plain", timeout=600) as leaves:
            leaves._send(lambda i, t: client_messages.Set(i, t, key, key), None)
            wait_until(lambda: len(busy._work) == 5, "one more waits")
        wait_until(lambda: len(busy._work) == 4, "it is gone, and so is what it asked")
        assert ended == [], "and no thread was free meanwhile"
        node.close()
        for thread in threads:
            thread.join()
        assert len(ended) == 20


def test_clients_that_never_read_hold_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While more clients than a pool has threads leave their answers where they are, others are answered."""
    monkeypatch.setattr(clients, "STALL_MAX", 600.0)
    monkeypatch.setattr(clients, "BYTES_MAX", 1024 * MiB)
    options = Options(max_key_bytes=MiB, max_value_bytes=4 * MiB)
    large = encode_key("large")
    with cluster(tmp_path, 1, options=options) as nodes, ExitStack() as stack:
        nodes[0]["large"] = bytes(4 * MiB - 100)
        for number in range(20):
            nodes[0][f"{number}" + "x" * (MiB - 100)] = 1
        deaf = [stack.enter_context(client_of(nodes[0], "plain")) for _ in range(request_handler.POOLS["lists"] + 4)]
        for place, each in enumerate(deaf):
            for number in range(1, 9):
                linearizable = number % 2 == 0
                request: client_messages.Request = client_messages.Get(number, 600.0, large, linearizable)
                if place < request_handler.POOLS["lists"]:
                    request = client_messages.ListKeys(number, 600.0, "", None, 99, linearizable)
                each._socket.sendall(frame(peer_messages.encode(request)))
        wait_until(lambda: full(nodes[0]), "they have got more than they take")
        for _ in range(3):
            exercise_anew(nodes[0])
            del nodes[0]["anew"]


def test_clients_that_stop_half_way_stand_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who began large requests and stopped give way to one who goes on, and hear that what they asked is not
    done."""
    monkeypatch.setattr(clients, "BYTES_MAX", MiB)
    monkeypatch.setattr(clients, "STALL_MAX", 600.0)
    with cluster(tmp_path, 1, options=Options(max_value_bytes=4 * MiB)) as nodes, ExitStack() as stack:
        key, value = encode_key("key"), encode(bytes(4 * MiB - 100))
        halves = [stack.enter_context(client_of(nodes[0], "plain")) for _ in range(5)]
        at_node = wire_of(nodes[0]).clients._clients
        for number, half in enumerate(halves, 1):
            half._socket.sendall(frame(peer_messages.encode(client_messages.Set(1, 600.0, key, value)))[: 3 * MiB])
            wait_until(lambda: at_node[number].held == 3 * MiB, "the node has that half")  # noqa: B023
        with client_of(nodes[0], "plain") as client:
            client.request(lambda i, t: client_messages.Set(i, t, key, value), client_messages.Stored)
        assert len(nodes[0]["key"]) == 4 * MiB - 100
        with pytest.raises(NotCommitted, match="too much is asked at once"):
            halves[0].request(lambda i, t: client_messages.Delete(i, t, key), client_messages.Held)


def test_a_time_in_an_error_is_the_one_asked_for() -> None:
    """What little of a timeout has passed before the wait began does not show in the error."""
    asked = {1.99994: "2", 3599.99: "3600", 0.299971: "0.3", 12.5: "12.5", 0.0: "0"}
    assert {seconds: rounded(seconds) for seconds in asked} == asked


def test_threads_go_when_there_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that nobody asks has no threads for clients, and one that was asked lets go of them."""
    monkeypatch.setattr(thread_pool, "IDLE", 0.05)
    with cluster(tmp_path, 1) as nodes:
        assert pools(nodes[0]) == []
        with client_of(nodes[0], "plain") as client:
            for number in range(3):
                exercise(client, nodes[0], f"k{number}")
                wait_until(lambda: len(pools(nodes[0])) <= 3, "who has nothing to do goes, and no more are begun")
        wait_until(lambda: pools(nodes[0]) == [], "the threads are gone")
        monkeypatch.setattr(thread_pool, "IDLE", 300.0)
        exercise_anew(nodes[0])
        begun = time.monotonic()
    assert time.monotonic() < begun + 60, "closing waits for no thread that has nothing to do"


def test_no_more_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread left, a client is told so, and the node goes on."""
    with cluster(tmp_path, 1) as nodes, client_of(nodes[0], "plain") as client:

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(ReplidictError, match="can't start another thread"):
                client.request(lambda i, t: client_messages.Get(i, t, encode_key("key"), False), client_messages.Value)
        exercise(client, nodes[0], "key")


# -- connections ------------------------------------------------------------------------------------------------------


def test_nobody_there() -> None:
    """A client says at once that nobody listens, and in time that somebody says nothing or can't be found."""
    plain = security_for("localhost:1", None, None, False)
    (address,) = free_addresses(1)
    with pytest.raises(UnreachableError, match=f"no connection to {address}: Connection refused: check the address"):
        Client(address, security=plain)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UnreachableError, match=r"nothing heard within 0\.2 s"),
    ):
        Client(f"127.0.0.1:{silent.getsockname()[1]}", security=plain, timeout=0.2)
    for nonsense in ("localhost", "127.0.0.1:0", ":7000"):
        with pytest.raises(ReplidictError, match="bad address"):
            Client(nonsense, security=plain)
    with pytest.raises(SecurityError, match="not a loopback address"):
        Client("192.0.2.1:7000", security=plain)
    with pytest.raises(UnreachableError, match="can't be resolved"):
        Client("no-such-host.invalid:7000", security=security_for("localhost:1", None, "a secret", False))


def test_any_address_of_a_name(tmp_path: Path) -> None:
    """All addresses that a name stands for are tried: `localhost` finds a node on either of its two."""
    for host in ("127.0.0.1", "::1"):
        try:
            with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                port = probe.getsockname()[1]
        except OSError:
            continue  # this machine has no IPv6
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        security = security_for("localhost:1", None, None, False)
        with (
            ReplicatedDict[Any, Any](tmp_path / host.replace(":", "_"), address=address) as node,
            Client(f"localhost:{port}", security=security) as client,
        ):
            exercise(client, node, "key")


def test_an_address_that_hangs(tmp_path: Path) -> None:
    """An address of a name at which nobody says anything leaves time for the others."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    with (
        ReplicatedDict[Any, Any](tmp_path, address=f"[::1]:{port}") as node,
        socket.create_server(("127.0.0.1", port)),
        Client(f"localhost:{port}", security=security_for("localhost:1", None, None, False), timeout=6) as client,
    ):
        exercise(client, node, "key")


class CallsItself(socket.socket):
    """As it may happen to a socket whose own port, which the system chose, is the one that it calls."""

    def connect(self, address: Any) -> None:
        self.bind(address)
        super().connect(address)


def test_a_port_that_calls_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client never takes itself for a node, which TCP allows where nobody listens."""
    (address,) = free_addresses(1)
    monkeypatch.setattr(socket, "socket", CallsItself)
    with pytest.raises(UnreachableError, match="Connection refused"):
        Client(address, security=security_for(address, None, None, False))


@pytest.mark.parametrize("mode", MODES)
def test_wrong_credentials(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """A client in another mode, or with another secret, is refused, and told what must be the same."""
    with cluster(tmp_path, 1, **given(mode, certificates)) as nodes:
        for other in MODES:
            if other != mode:
                with pytest.raises(SecurityError, match="give every node the same tls= or secret="):
                    client_of(nodes[0], other, certificates)
        if mode == "secret":
            address = str(nodes[0].status().address)
            with pytest.raises(SecurityError, match="different secrets"):
                Client(address, security=security_for(address, None, "another secret", False))
        with client_of(nodes[0], mode, certificates) as client:
            exercise(client, nodes[0], "key")


def test_a_connection_lost_between(tmp_path: Path) -> None:
    """What is asked when the node is gone is surely not done, and the client says so from then on."""
    with cluster(tmp_path, 1) as nodes, client_of(nodes[0], "plain") as client:
        exercise(client, nodes[0], "key")
        nodes[0].close()
        with pytest.raises(NotCommitted, match="lost before this was asked"):
            client.request(lambda i, t: client_messages.Delete(i, t, encode_key("key")), client_messages.Held)
        with pytest.raises(UnreachableError, match="any more: lost before"):
            client.request(client_messages.GetStatus, client_messages.StatusIs)
    with pytest.raises(UnreachableError, match="any more: lost before"):
        client.request(client_messages.GetStatus, client_messages.StatusIs)


def test_a_connection_lost_in_the_middle(tmp_path: Path) -> None:
    """A write that was sent and not answered may or may not be done; a read was not served."""
    with (
        without_a_quorum(tmp_path) as node,
        client_of(node, "plain", timeout=60) as one,
        client_of(node, "plain", timeout=60) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        write = pool.submit(
            one.request, lambda i, t: client_messages.Delete(i, t, encode_key("key")), client_messages.Held
        )
        read = pool.submit(
            two.request, lambda i, t: client_messages.Get(i, t, encode_key("key"), True), client_messages.Value
        )
        wait_until(lambda: under_way(node) == 2, "both have asked")
        node.close()
        with pytest.raises(OutcomeUnknown, match=r"lost: .* may or may not be done"):
            write.result(30)
        with pytest.raises(ReplidictError, match=r"no answer from .*: lost"):
            read.result(30)


def test_no_room_for_another_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all places are taken by clients that wait, the next one is told so, and nothing that it asks is done."""
    monkeypatch.setattr(clients, "CLIENTS_MAX", 1)
    key = encode_key("key")
    with without_a_quorum(tmp_path) as node, client_of(node, "plain", timeout=60) as one, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.request, lambda i, t: client_messages.Set(i, t, key, key), client_messages.Stored)
        wait_until(lambda: under_way(node) == 1, "one waits")
        with client_of(node, "plain") as two, pytest.raises(NotCommitted, match="1 clients, its maximum"):
            two.request(lambda i, t: client_messages.Set(i, t, key, key), client_messages.Stored)
        node.close()
        assert isinstance(waiting.exception(30), OutcomeUnknown | NotCommitted)


def test_a_closed_client(tmp_path: Path) -> None:
    """A client that was closed says so; to close it again does nothing."""
    with cluster(tmp_path, 1) as nodes:
        client = client_of(nodes[0], "plain")
        client.close()
        client.close()
        with pytest.raises(ClosedError, match="is closed"):
            client.request(client_messages.GetStatus, client_messages.StatusIs)


# -- nonsense ---------------------------------------------------------------------------------------------------------


def nonsense(rng: random.Random) -> bytes:
    """Bytes that are a request, or nearly one, or nothing at all."""
    key, text = encode_key(rng.choice(["key", 1, b"x"])), rng.choice(["", "127.0.0.1:1", "key", "\x00", "x" * 300])
    say: list[client_messages.Request] = [
        client_messages.Get(rng.randrange(9), 0.01, key, rng.random() < 0.5),
        client_messages.Set(rng.randrange(9), 0.01, rng.randbytes(rng.randrange(9)), rng.randbytes(rng.randrange(99))),
        client_messages.ListKeys(
            rng.randrange(9), 0.0, text, rng.choice([None, key, rng.randbytes(3)]), rng.randrange(99), False
        ),
        client_messages.Replace(rng.randrange(9), 0.01, key, encode(text), rng.randrange(2**40)),
        client_messages.Transfer(rng.randrange(9), 0.01, text),
        client_messages.RemovePeer(rng.randrange(9), 0.01, text, True),
        client_messages.Join(rng.randrange(9), 0.01, text, text[:32], False),
        client_messages.Backup(rng.randrange(9), 0.01),
    ]
    data = bytearray(peer_messages.encode(rng.choice(say)))
    for _ in range(rng.choice((0, 0, 1, 2, 8))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data) if rng.random() < 0.9 else rng.randbytes(rng.randrange(1, 200))


def test_nonsense_disturbs_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client that says whatever comes to its mind is answered or closed, and the node serves on, in the same term."""
    rng = random.Random(7)
    with cluster(tmp_path, 1) as nodes:
        nodes[0]["mine"] = "untouched"
        term = nodes[0].status().term
        for _ in range(60):
            with client_of(nodes[0], "plain") as client:
                client._socket.settimeout(5)
                try:
                    for _ in range(10):
                        client._socket.sendall(frame(nonsense(rng)))
                except OSError:
                    pass
        exercise_anew(nodes[0])
        wait_until(lambda: not left_over(nodes[0]), "the backups are removed")
        assert (nodes[0]["mine"], nodes[0].status().term) == ("untouched", term)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

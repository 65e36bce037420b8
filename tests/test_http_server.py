"""The store over real sockets: clients that are slow, many, greedy or wrong, and a server that ends in order."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict import Options, ReplicatedDict, ReplidictError, SecurityError
from replidict.http import bulkheads, connection_limits, request_bodies, server
from replidict.http.app import asgi
from replidict.http.problems import PROBLEMS, Problem
from replidict.http.server import HttpServer, check_protected, listening, token_of
from replidict.machine.codec import encode_key
from tests.clusters import Dict, free_addresses, open_member, wait_until
from tests.http_support import path_of

OPTIONS = Options(durability="process")


@contextmanager
def serving(d: Dict, *, token: str | None = None) -> Iterator[tuple[int, HttpServer]]:
    """The dict on a port of its own, until this ends."""
    bound = listening(":0")
    port = bound.getsockname()[1]
    served = HttpServer(asgi(d, token=token), bound, OPTIONS)
    served.start()
    try:
        yield port, served
    finally:
        served.stop()
        served.wait()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Dict, int]]:
    with ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d, serving(d) as (port, _):
        yield d, port


class Client:
    """A connection on which bytes are sent as they are, and answers read one by one."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        return self._answer()[::2]

    def problem(self) -> str:
        """The type of the next answer, which is a problem, without `urn:replidict:`."""
        status, headers, content = self._answer()
        body = json.loads(content)
        assert headers["content-type"] == "application/problem+json"
        name = str(body["type"]).removeprefix("urn:replidict:")
        assert (body["status"], body["title"]) == PROBLEMS[name]
        assert status == body["status"]
        return name

    def _answer(self) -> tuple[int, dict[str, str], bytes]:
        status = 100
        while status == 100:
            lines = [line.decode().rstrip() for line in iter(self._file.readline, b"\r\n") if line or self._over()]
            status = int(lines[0].split()[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        return status, headers, self._file.read(int(headers.get("content-length", 0)))

    def _over(self) -> bool:
        raise ConnectionError("the server has hung up")

    def ends(self) -> None:
        """The server hangs up, in order or not, whatever comes before."""
        try:
            while self._file.read1():
                pass
        except ConnectionError:
            pass


def request(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """One request on a connection of its own; status and body."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request(method, path, body, headers or {})
        response = client.getresponse()
        return response.status, response.read()
    finally:
        client.close()


def put(path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """A PUT as it goes over the wire."""
    lines = [f"PUT {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + body


GET = b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n"


# -- keys -----------------------------------------------------------------------------------------------------------


def test_keys_of_10_kib(opened: tuple[Dict, int]) -> None:
    """A key of 10 KiB is a key like any other, and so is the longest that the dict takes, each byte of it escaped."""
    d, port = opened
    longest = "ä" * ((OPTIONS.max_key_bytes - 4) // 2) + "a"
    assert len(encode_key(longest)) == OPTIONS.max_key_bytes
    for key in ("k" * 10 * 1024, "ä" * 5 * 1024, longest):
        assert request(port, "PUT", path_of(key), b"v")[0] == 204
        assert d[key] == "v"
        assert request(port, "GET", path_of(key)) == (200, b"v")
        assert request(port, "GET", path_of(key) + "a")[0] == (414 if key is longest else 404)
        assert request(port, "DELETE", path_of(key))[0] == 204
    assert d == {}


@pytest.mark.parametrize("key", [".", "..", "a/../b", "./a", "%2e"])
def test_dots_are_text(opened: tuple[Dict, int], key: str) -> None:
    """The server resolves no dots: a key may hold them."""
    d, port = opened
    assert request(port, "PUT", f"/kv/{key}", b"v")[0] == 204
    assert list(d) == [key.replace("%2e", ".")]


@pytest.mark.parametrize("target", ["/kv/%", "/kv/100%", "/kv/a%4", "/kv/a%zz/b", "/kv?prefix=%", "/kv?after=%0g"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_percent_sign_that_begins_no_escape(opened: tuple[Dict, int], method: str, target: str) -> None:
    """A lone % is not taken for the character, as which another URL stands already."""
    d, port = opened
    d["%"] = d["100%"] = "v"
    if method == "PUT" and "?" in target:
        target = target.replace("?", "/k?")
    with Client(port) as client:
        client.send(put(target, b"x") if method == "PUT" else GET.replace(b"/kv/k", target.encode()))
        assert client.problem() == "bad-argument"
        client.send(GET.replace(b"/kv/k", b"/kv/100%25"))
        assert client.answer() == (200, b"v")
    assert d == {"%": "v", "100%": "v"}


@pytest.mark.parametrize("length", ["Content-Length: 0\r\n", ""])
@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 204), ("DELETE", 204), ("PATCH", 405)])
def test_a_body_that_is_announced_and_empty(opened: tuple[Dict, int], method: str, status: int, length: str) -> None:
    """A client that asks whether to send a body, and has none, is answered at once, and may reuse the connection."""
    d, port = opened
    d["k"] = "v"
    with Client(port) as client:
        client.send(f"{method} /kv/k HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{length}\r\n".encode())
        assert client.answer()[0] == status
        client.send(GET)
        assert client.answer()[0] == (404 if method == "DELETE" else 200)


# -- slow clients ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All patience is a moment."""
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connection_limits, "TAKING_SECONDS", 0.3)
    monkeypatch.setattr(connection_limits, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(request_bodies, "SECONDS", 0.3)


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /kv/k HTTP/1.1\r\nHost: local", GET + b"GET"], ids=repr)
def test_slow_heads(hurried: None, opened: tuple[Dict, int], sent: bytes) -> None:
    """A client that does not get to the end of its request's head is told so, and let go of."""
    _, port = opened
    with Client(port) as client:
        client.send(sent)
        if sent.startswith(GET):
            assert client.answer()[1]
        assert client.problem() == "request-too-slow"
        client.ends()


@pytest.mark.parametrize("head", [put("/kv/k", b"abc", length=10), put("/kv/k", b"", "Expect: 100-continue", length=1)])
def test_slow_bodies(hurried: None, opened: tuple[Dict, int], head: bytes) -> None:
    """A body that does not come in time is told so, nothing is written, and the connection ends."""
    d, port = opened
    with Client(port) as client:
        client.send(head)
        assert client.problem() == "request-too-slow"
        client.ends()
    assert d == {}


def test_a_body_in_drops(monkeypatch: pytest.MonkeyPatch, opened: tuple[Dict, int]) -> None:
    """The time for a body is for the whole of it: bytes now and then do not extend it."""
    monkeypatch.setattr(request_bodies, "SECONDS", 0.5)
    _, port = opened
    with Client(port) as client:
        client.send(put("/kv/k", length=1_000_000))
        stop = threading.Event()

        def drip() -> None:
            try:
                while not stop.wait(0.02):
                    client.send(b"x")
            except OSError:
                pass

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert client.problem() == "request-too-slow"
        finally:
            stop.set()
            dripping.join()


def test_idle_connections_stay(hurried: None, opened: tuple[Dict, int]) -> None:
    """A connection that waits between two requests is not taken for a slow one."""
    _, port = opened
    with Client(port) as idle:
        idle.send(GET)
        assert idle.answer()[1]
        with Client(port) as slow:
            assert slow.problem() == "request-too-slow"  # so long has passed, and more than once:
        with Client(port) as slow:
            assert slow.problem() == "request-too-slow"
        idle.send(GET)
        assert idle.answer()[0] == 404


def test_clients_that_take_no_answer(hurried: None, opened: tuple[Dict, int]) -> None:
    """A client that asks for much and takes nothing is cut off, and what was held for it is freed."""
    d, port = opened
    d["k"] = "x" * 4_000_000
    with Client(port, receive_buffer=4096) as client:
        client.send(GET * 3)
        error = (socket.SOL_SOCKET, socket.SO_ERROR)
        wait_until(lambda: client.socket.getsockopt(*error) == errno.ECONNRESET, "the server has cut it off")


# -- greedy clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_told_in_time(opened: tuple[Dict, int], chunked: bool) -> None:
    """413 comes before the body is over; a client that goes on for a while still gets it, and may go on afterwards."""
    d, port = opened
    size = OPTIONS.max_value_bytes
    with Client(port) as client:
        if chunked:
            client.send(b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.send(b"%x\r\n" % size + b"x" * size + b"\r\n")
        else:
            client.send(put("/kv/k", b"x" * 1000, length=size))
        assert client.problem() == "body-too-large"
        client.send(b"0\r\n\r\n" if chunked else b"x" * (size - 1000))
        client.send(GET)
        assert client.problem() == "key-absent"
    assert d == {}


def test_bodies_without_end(opened: tuple[Dict, int]) -> None:
    """A client that sends on and on after its refusal is cut off."""
    _, port = opened
    with Client(port) as client:
        client.send(put("/kv/k", length=2**40))
        assert client.problem() == "body-too-large"
        with pytest.raises(ConnectionError):
            while True:
                client.send(b"x" * 1_000_000)


def test_bodies_together(monkeypatch: pytest.MonkeyPatch, opened: tuple[Dict, int]) -> None:
    """Bodies that together would hold too much memory are refused, and those that went before are taken."""
    monkeypatch.setattr(request_bodies, "MIN_ROOM", 0)
    d, _ = opened
    size = OPTIONS.max_value_bytes - 1000
    with serving(d) as (port, _), ExitStack() as stack:
        clients = {number: stack.enter_context(Client(port)) for number in range(6)}
        for number, client in clients.items():
            client.send(put(f"/kv/{number}", b"x" * (size - 1), length=size))
        refused: set[int] = set()
        while len(refused) < 2:
            readable, _, _ = select.select([client.socket for client in clients.values()], [], [], 60)
            for number, client in clients.items():
                if client.socket in readable and number not in refused:
                    assert client.problem() == "busy"
                    refused.add(number)
        for number in clients.keys() - refused:
            clients[number].send(b"x")
            assert clients[number].answer()[0] == 204
        for number in refused:
            clients[number].send(b"x" + put(f"/kv/{number}", b"again"))
            assert clients[number].answer()[0] == 204
    assert len(d) == 6


def test_heads_that_are_too_large(opened: tuple[Dict, int]) -> None:
    """A head longer than any key needs is 431, whatever it is full of; the client gets to read it."""
    _, port = opened
    for begin, more in (
        (b"GET /kv/", b"x"),
        (b"GET /kv/k HTTP/1.1\r\nX: ", b"x"),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
    ):
        with Client(port) as client:
            client.send(begin + more * (400_000 // len(more)))
            assert client.problem() == "head-too-large"


def test_the_bound_of_heads(opened: tuple[Dict, int]) -> None:
    """Headers and query together may have 64 KiB, beside the longest key there can be; one byte more is 431."""
    _, port = opened
    longest = path_of("ä" * ((OPTIONS.max_key_bytes - 4) // 2) + "a").encode()
    bound = 64 * 1024 - len(b"Host: localhost\r\nX: \r\n")
    one = b"GET %s HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n"
    many = b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n" + b"X: %s\r\n" % (b"x" * 105) * 1500 + b"\r\n"
    for head, problem in {
        one % (longest, b"x" * bound): "key-absent",
        one % (longest, b"x" * (bound + 1)): "head-too-large",
        one % (b"/kv/k?" + b"x" * (bound - 99), b"x" * 99): "bad-argument",
        one % (b"/kv/k?" + b"x" * (bound - 99), b"x" * 100): "head-too-large",
        one % (b"/kv/k", b"x" * 70_000): "head-too-large",
        one % (b"/kv/k", b"x" * 300_000): "head-too-large",
        many: "head-too-large",
    }.items():
        with Client(port) as client:
            client.send(head)
            assert client.problem() == problem


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(200),
        b"GET /kv/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /kv/k HTTP/1.1\r\n\r\n",
        put("/kv/k", b"", "Content-Length: 5"),
        put("/kv/k", b"", "Transfer-Encoding: gzip"),
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        put("/kv/k", b"0\r\n\r\n" + GET, "Transfer-Encoding: chunked"),
        put("/kv/k", b"0\r\n\r\n", "Transfer-Encoding: chunked")
        .replace(b"Content-Length: 5\r\n", b"")
        .replace(b"1.1", b"1.0"),
    ],
    ids=lambda sent: sent[:30],
)
def test_what_is_no_http(opened: tuple[Dict, int], sent: bytes) -> None:
    """What is no HTTP/1.1 is told so, in the form of all other errors, and writes nothing."""
    d, port = opened
    with Client(port) as client:
        client.send(sent)
        assert client.problem() == "malformed-request"
        client.socket.shutdown(socket.SHUT_WR)
        client.ends()
    assert d == {}


def test_too_many_connections(monkeypatch: pytest.MonkeyPatch, opened: tuple[Dict, int]) -> None:
    """Above the bound, a client is told so and let go of; far above it just ends; below it all go on."""
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(connection_limits, "TURNED_AWAY", 2)
    _, port = opened
    with ExitStack() as stack:
        within = [stack.enter_context(Client(port)) for _ in range(5)]
        for client in within:
            client.send(GET)
            assert client.problem() == "key-absent"
        with Client(port) as sixth, Client(port) as seventh:
            for client in (sixth, seventh):
                client.send(GET)
                assert client.problem() == "busy"
            with Client(port) as eighth:
                eighth.ends()
        for client in within:
            client.send(GET)
            assert client.problem() == "key-absent"
    wait_until(lambda: _served(port), "there is room again")


def _served(port: int) -> bool:
    try:
        return request(port, "GET", "/kv/k")[0] == 404
    except OSError:
        return False


def test_pipelined_requests(opened: tuple[Dict, int]) -> None:
    """Requests sent all at once are answered in their order."""
    _, port = opened
    with Client(port) as client:
        client.send(b"".join(put("/kv/k", b"%d" % n) + GET for n in range(20)))
        for number in range(20):
            assert client.answer()[0] == 204
            assert client.answer()[1] == b"%d" % number


def test_clients_that_close_their_half(opened: tuple[Dict, int]) -> None:
    """A client that sends no more than its requests, and says so, gets all of its answers, and then the end."""
    _, port = opened
    with Client(port) as client:
        client.send(put("/kv/k", b"v") + put("/kv/k", b"w") + GET.replace(b"/k ", b"/k?consistency=linearizable "))
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.answer() for _ in range(3)] == [(204, b""), (204, b""), (200, b"w")]
        client.ends()
    for cut in (put("/kv/cut", b"v", length=2), GET[:-2], b"", put("/kv/k", b"w") + put("/kv/cut", b"v", length=2)):
        with Client(port) as client:
            client.send(cut)
            client.socket.shutdown(socket.SHUT_WR)
            client.ends()


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("http://localhost/kv/k", None),
        ("HTTP://127.0.0.1:8001/kv/k?consistency=linearizable", None),
        ("http://evil.example/kv/k", "not-loopback"),
        ("http://evil@localhost/kv/k", "not-loopback"),
        ("http:///kv/k", "not-loopback"),
        ("http://localhost//kv/k", "about:blank"),
        ("http://localhost?kv/k", "bad-argument"),
    ],
)
def test_targets_with_a_host(opened: tuple[Dict, int], target: str, problem: str | None) -> None:
    """A target may name the host, which then counts, whatever the Host header says."""
    d, port = opened
    d["k"] = "v"
    with Client(port) as client:
        host = "localhost" if problem else "evil.example"
        client.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        status, body = client.answer()
        assert (status, body) == (200, b"v") if problem is None else json.loads(body)["type"].endswith(problem)


def test_answers_do_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    """An answer goes out whole at once (TCP_NODELAY): its second part never waits until the client has the first."""
    with (
        ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d,
        serving(d) as (port, served),
        Client(port) as client,
    ):
        client.send(GET)
        assert client.problem() == "key-absent"
        [accepted] = served._server.server_state.connections
        assert isinstance(accepted, connection_limits.Connection)
        taken = accepted.transport.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_more_requests_than_threads(tmp_path: Path) -> None:
    """Without a quorum, writes fill their bulkhead: what is above is told so at once, and probes and reads go on."""
    with open_member(tmp_path, free_addresses(2), 0) as d, serving(d) as (port, _), ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(300)]
        for client in clients:
            client.send(put("/kv/k?timeout=8", b"v"))
        readable: list[socket.socket] = []
        while len(readable) < 44:
            readable, _, _ = select.select([client.socket for client in clients], [], [], 60)
        refused = [client for client in clients if client.socket in readable]
        assert {client.problem() for client in refused} == {"busy"}
        assert request(port, "GET", "/healthz")[0] == 200
        assert request(port, "GET", "/readyz")[0] == 503
        assert request(port, "GET", "/kv/k")[0] == 404
        waiting = [client.problem() for client in clients if client not in refused]
        assert waiting.count("not-committed") >= 64 and set(waiting) <= {"not-committed", "busy"}


# -- the end --------------------------------------------------------------------------------------------------------


def test_what_is_under_way_is_finished(tmp_path: Path) -> None:
    """A server that is told to stop takes no more connections, and answers what it was asked before."""
    addresses = free_addresses(2)
    with open_member(tmp_path, addresses, 0) as d, serving(d) as (port, served), Client(port) as client:
        client.send(put("/kv/k?timeout=60", b"v"))
        with Client(port) as idle:
            idle.send(GET)
            assert idle.answer()[1]  # so the first request is under way, too
            served.stop()
            idle.ends()
        wait_until(lambda: not _listens(port), "nobody listens any more")
        with open_member(tmp_path, addresses, 1):
            assert client.answer()[0] == 204
            client.ends()
        served.wait()
        assert d["k"] == "v"


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (put("/kv/k?timeout=60", b"v"), "outcome-unknown"),
        (put("/kv/k?timeout=60", b"v", "If-None-Match: *"), "outcome-unknown"),
        (put("/kv/k?timeout=60", b"v", 'If-Match: "1"'), "outcome-unknown"),
        (b"DELETE /kv/k?timeout=60 HTTP/1.1\r\nHost: localhost\r\n\r\n", "outcome-unknown"),
        (put("/kv/k?timeout=60", b"v", length=2), "closed"),
        (GET.replace(b"/k ", b"/k?consistency=linearizable&timeout=60 "), "closed"),
    ],
    ids=lambda sent: sent[:40],
)
def test_the_end_waits_only_so_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: bytes, problem: str) -> None:
    """A request that does not end in time is told what is known: a write that began may be done, the rest is not."""
    monkeypatch.setattr(server, "GRACE_SECONDS", 1)
    with open_member(tmp_path, free_addresses(2), 0) as d, serving(d) as (port, served), Client(port) as client:
        client.send(sent)
        wait_until(lambda: b"requests_under_way 2.0" in request(port, "GET", "/metrics")[1], "it is under way")
        served.stop()
        assert client.problem() == problem
        served.wait()


def test_what_waits_for_its_turn_is_not_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the writes that wait at the end, those for which no thread was free are told that they were not done."""
    monkeypatch.setattr(server, "GRACE_SECONDS", 1)
    with (
        open_member(tmp_path, free_addresses(2), 0) as d,
        serving(d) as (port, served),
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(port)) for _ in range(70)]
        for client in clients:
            client.send(put("/kv/k?timeout=60", b"v"))
        wait_until(lambda: b"requests_under_way 71.0" in request(port, "GET", "/metrics")[1], "all are under way")
        served.stop()
        assert sorted(client.problem() for client in clients) == ["closed"] * 6 + ["outcome-unknown"] * 64
        served.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- addresses and tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host"),
    [(":0", "127.0.0.1"), ("localhost:0", "127.0.0.1"), ("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")],
)
def test_where_it_listens(address: str, host: str) -> None:
    """Without a host it listens on loopback."""
    with listening(address) as bound:
        assert bound.getsockname()[0] == host
        check_protected(bound, None)


@pytest.mark.parametrize(
    "address", ["8001", "localhost", ":x", ":65536", "::1:8001", "[::1]8001", "", ":-1", "no.such.host.invalid:1"]
)
def test_addresses_that_are_none(address: str) -> None:
    """An address that is none is refused by name."""
    with pytest.raises(ReplidictError, match=r"address|can't listen"):
        listening(address)


def test_an_address_in_use() -> None:
    """A port that another has is refused by name."""
    with listening(":0") as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ReplidictError, match=rf"can't listen on :{port}.*in use"):
            listening(f":{port}")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_off_loopback_needs_a_token(address: str) -> None:
    """Off loopback it does not listen without a token."""
    with listening(address) as bound:
        with pytest.raises(SecurityError, match="--http-token-file"):
            check_protected(bound, None)
        check_protected(bound, "x" * 8)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is read from a file, else from the environment, and is at least something; errors never show it."""
    file = tmp_path / "token"
    monkeypatch.delenv("REPLIDICT_HTTP_TOKEN", raising=False)
    assert token_of(None) is None
    monkeypatch.setenv("REPLIDICT_HTTP_TOKEN", "from-the-environment")
    assert token_of(None) == "from-the-environment"
    file.write_text("from-the-file\n")
    assert token_of(file) == "from-the-file"
    for wrong in ("", "   \n", "secr3t", "two words!", "schlüssel-ä"):
        file.write_text(wrong)
        with pytest.raises(SecurityError, match="token") as caught:
            token_of(file)
        assert not wrong.strip() or wrong not in str(caught.value)
        monkeypatch.setenv("REPLIDICT_HTTP_TOKEN", wrong)
        with pytest.raises(SecurityError, match="REPLIDICT_HTTP_TOKEN"):
            token_of(None)
    with pytest.raises(SecurityError, match="no-such"):
        token_of(tmp_path / "no-such")


# -- bulkheads ------------------------------------------------------------------------------------------------------


def test_a_lane_is_bounded() -> None:
    """A bulkhead runs so many calls, lets so many wait, refuses the rest; one whose time is over never begins."""
    go = threading.Event()
    ran: list[str] = []

    async def check() -> None:
        bulkhead = bulkheads.Bulkhead("test", 1, 2)

        def work(name: str) -> str:
            go.wait(30)
            ran.append(name)
            return name

        first = asyncio.ensure_future(bulkhead.run(lambda _: work("first"), 30.0))
        second = asyncio.ensure_future(bulkhead.run(lambda _: work("second"), 30.0))
        late = asyncio.ensure_future(bulkhead.run(lambda _: work("late"), 0.01))
        await asyncio.sleep(0.05)
        with pytest.raises(Problem, match="too many"):
            await bulkhead.run(lambda _: work("above"), 30.0)
        go.set()
        assert (await first, await second) == ("first", "second")
        with pytest.raises(Problem, match="did not begin"):
            await late
        assert await bulkhead.run(lambda left: work("again" if left > 29 else "late"), 30.0) == "again"
        bulkhead.close()

    asyncio.run(check())
    assert ran == ["first", "second", "again"]


def test_threads_are_those_of_lanes(opened: tuple[Dict, int]) -> None:
    """However many clients there are, there are only so many threads."""
    _, port = opened
    with ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(lambda n: request(port, "PUT", f"/kv/{n}", b"v")[0], range(400)))
    assert set(statuses) == {204}
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("replidict http waiting")]) <= 64

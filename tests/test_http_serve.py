"""`replidict serve`, as a user runs it: processes, curl, signals."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from replidict.http.server import listening
from tests.clusters import free_addresses, wait_until
from tests.serving import COMMAND, Serve, all_closed, code, curl, environment, status


def ports(count: int) -> list[str]:
    return [address.rpartition(":")[2] for address in free_addresses(count)]


@contextmanager
def three(root: Path) -> Iterator[tuple[list[Serve], list[str]]]:
    """The three nodes of the exercise, one founded and two that joined, all of them voters, and where they serve."""
    raft, http = ports(3), ports(3)
    ways = ["--bootstrap", *[f"--join localhost:{raft[0]}"] * 2]
    nodes = [
        Serve(root, f"node{n + 1}", *f"--addr localhost:{raft[n]} --http :{http[n]} {ways[n]}".split())
        for n in range(3)
    ]
    with all_closed(nodes):
        for node in nodes:
            node.start()
        urls = [f"http://localhost:{port}" for port in http]
        for url in urls:
            is_ready(url)
        wait_until(lambda: all(m["voter"] for m in members(urls[0])), "all have a vote", 60)
        yield nodes, urls


def members(url: str) -> list[dict[str, object]]:
    """/members of the node there."""
    return list(json.loads(curl(f"{url}/members"))["members"])


def is_ready(url: str) -> None:
    """In a moment, this node is up to date."""
    wait_until(lambda: code(f"{url}/readyz") == 200, f"{url} is ready", 60)


def leader_of(urls: list[str]) -> int:
    """The number of the node that leads, once all that answer agree."""
    found: list[int] = []

    def agreed() -> bool:
        states = [status(url) for url in urls]
        found[:] = [number for number, state in enumerate(states) if state.get("is_leader")]
        return len(found) == 1 and len({state["leader"] for state in states if state}) == 1

    wait_until(agreed, "all nodes agree on a leader")
    return found[0]


def reads(url: str, key: str, value: str) -> None:
    """In a moment, a plain GET there gives this value."""
    wait_until(lambda: curl(f"{url}/kv/{key}") == value, f"{url} has {key}={value}")


def test_the_exercise(tmp_path: Path) -> None:
    """One node bootstrapped, two joined, curl, the leader killed, curl again, the leader back: what was written is
    everywhere."""
    with three(tmp_path) as (nodes, urls):
        assert curl("-X", "PUT", "-d", "distributed", f"{urls[0]}/kv/hello") == ""
        assert curl(f"{urls[0]}/kv/hello") == "distributed"
        for url in urls:
            reads(url, "hello", "distributed")

        leading = leader_of(urls)
        following = [url for number, url in enumerate(urls) if number != leading]
        for number, url in enumerate(following):
            assert code("-X", "PUT", "-d", f"by a follower {number}", f"{url}/kv/{number}") == 204
            assert curl(f"{urls[leading]}/kv/{number}?consistency=linearizable") == f"by a follower {number}"
        assert code("-X", "DELETE", f"{following[0]}/kv/0") == 204
        for url in urls:
            assert code(f"{url}/kv/0?consistency=linearizable") == 404

        nodes[leading].end(signal.SIGKILL)
        for url in following:
            assert curl(f"{url}/kv/hello") == "distributed"
        assert code("-X", "PUT", "-d", "still works", f"{following[0]}/kv/hello?timeout=60") == 204
        assert curl(f"{following[1]}/kv/hello?consistency=linearizable&timeout=60") == "still works"

        nodes[leading].start()
        assert "holds a node" in nodes[leading].log
        reads(urls[leading], "hello", "still works")
        is_ready(urls[leading])
        assert curl(f"{urls[leading]}/kv") == '{"keys": ["1", "hello"], "next": null}\n'
        states = [status(url) for url in urls]
        assert len({state["cluster_id"] for state in states}) == 1 and len({state["node_id"] for state in states}) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_leader_that_is_stopped_hands_over(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end a node in order: the leader hands over first, and can be started again."""
    with three(tmp_path) as (nodes, urls):
        assert code("-X", "PUT", "-d", "v", f"{urls[0]}/kv/k") == 204
        leading = leader_of(urls)
        assert nodes[leading].end(number) == 0
        assert "leads now" in nodes[leading].log and "Traceback" not in nodes[leading].log
        others = [url for each, url in enumerate(urls) if each != leading]
        assert status(urls[leading]) == {}
        leader_of(others)
        assert code("-X", "PUT", "-d", "w", f"{others[0]}/kv/k") == 204
        nodes[leading].start()
        reads(urls[leading], "k", "w")


def test_one_node(tmp_path: Path) -> None:
    """One node alone is founded, stopped and started again with the same command line."""
    [raft, http] = ports(2)
    node = Serve(tmp_path, "solo", "--addr", f"localhost:{raft}", "--http", f":{http}", "--bootstrap")
    with all_closed([node]):
        for number in range(3):
            node.start()
            assert code("-X", "PUT", "-d", str(number), f"http://localhost:{http}/kv/{number}") == 204
            assert node.end(signal.SIGTERM) == 0
        node.start()
        assert curl(f"http://localhost:{http}/kv") == '{"keys": ["0", "1", "2"], "next": null}\n'
    assert node.log.count("--bootstrap, --peer and --join are not looked at") == 3
    assert (tmp_path / "solo.replidict").is_dir()


def test_a_node_that_is_removed_ends(tmp_path: Path) -> None:
    """A member that is removed ends its process, says why, and has an exit status of its own, at each start again."""
    with three(tmp_path) as (nodes, urls):
        leader, address = (str(status(urls[(leader_of(urls) + n) % 3])["address"]) for n in range(2))
        leaver = nodes[(leader_of(urls) + 1) % 3]
        command = [COMMAND, "remove", address, "--node", leader]
        assert subprocess.run(command, env=environment({}), timeout=60, check=False).returncode == 0
        assert leaver.ended() == 8
        assert f"Error: {address} was removed from its cluster" in leaver.log
        exit_status, output = leaver.run()
        assert exit_status == 8 and f"Error: {address} was removed from its cluster" in output
        assert "Traceback" not in leaver.log + output


def test_a_node_whose_disk_fails_ends(tmp_path: Path) -> None:
    """A node that can't write any more ends its process with the exit status of a disk, and says what failed."""
    [raft, http] = ports(2)
    node = Serve(tmp_path, "solo", "--addr", f"localhost:{raft}", "--http", f":{http}", "--bootstrap")
    with all_closed([node]):
        node.start()
        url = f"http://localhost:{http}"
        assert code("-X", "PUT", "-d", "kept", f"{url}/kv/small") == 204
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (500_000, 500_000))
        (tmp_path / "large").write_bytes(bytes(1_000_000))
        assert code("-X", "PUT", "--data-binary", f"@{tmp_path / 'large'}", f"{url}/kv/large") == 500
        assert node.ended() == 5
        assert re.search("^Error: .*solo.replidict", node.log, re.MULTILINE) and "Traceback" not in node.log
        node.start()
        assert curl(f"{url}/kv/small") == "kept"


def test_secrets_and_tokens(tmp_path: Path) -> None:
    """Off loopback it serves with a token; the secret and the token come from files or the environment."""
    raft, http = ports(2), ports(2)
    (tmp_path / "secret").write_text("a shared secret\n")
    (tmp_path / "token").write_text("a-token-in-a-file\n")
    files = "--secret-file secret --http-token-file token --data elsewhere"
    first = f"--addr localhost:{raft[0]} --http 0.0.0.0:{http[0]} --peer localhost:{raft[1]} {files}"
    second = f"--addr localhost:{raft[1]} --http :{http[1]} --peer localhost:{raft[0]}"
    settings = {"REPLIDICT_SECRET": "a shared secret", "REPLIDICT_HTTP_TOKEN": "a-token-in-the-environment"}
    nodes = [
        Serve(tmp_path, "one", *first.split()),
        Serve(tmp_path, "other", *second.split(), environment=settings),
    ]
    with all_closed(nodes):
        for node in nodes:
            node.start()
        urls = [f"http://127.0.0.1:{port}/kv/k" for port in http]
        assert code("-X", "PUT", "-d", "v", urls[0]) == 401
        assert code("-X", "PUT", "-d", "v", "-H", "Authorization: Bearer a-token-in-a-file", urls[0]) == 204
        assert code(urls[1], "-H", "Authorization: Bearer a-token-in-a-file") == 401
        token = "Authorization: Bearer a-token-in-the-environment"
        assert curl(f"{urls[1]}?consistency=linearizable", "-H", token) == "v"
    assert (tmp_path / "elsewhere").is_dir()
    for node in nodes:
        assert "a-token" not in node.log and "a shared" not in node.log


def test_certificates(tmp_path: Path) -> None:
    """With certificates the nodes speak TLS to each other."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "node.key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "node.crt"))
    raft, http = ports(2), ports(2)
    peers = [f"--peer localhost:{port}" for port in reversed(raft)]
    certificates = "--cert node.crt --cert-key node.key --ca ca.pem"
    nodes = [
        Serve(tmp_path, f"n{n}", *f"--addr localhost:{raft[n]} --http :{http[n]} {peers[n]} {certificates}".split())
        for n in range(2)
    ]
    with all_closed(nodes):
        for node in nodes:
            node.start()
        assert code("-X", "PUT", "-d", "v", f"http://localhost:{http[0]}/kv/k?timeout=60") == 204
        assert curl(f"http://localhost:{http[1]}/kv/k?consistency=linearizable&timeout=60") == "v"


@pytest.mark.parametrize(
    ("arguments", "exit_status", "message"),
    [
        ("--addr localhost:{a} --http :{b}", 2, "is new: say --bootstrap, --peer or --join"),
        ("--addr localhost:{a} --http :{b} --bootstrap --join localhost:1", 2, "not both"),
        ("--addr localhost:{a} --http :{b} --peer localhost:1 --join localhost:1", 2, "not both"),
        ("--addr localhost:{a} --http :{b} --bootstrap --no-vote", 2, "goes with --join"),
        ("--addr localhost:{a} --http :{b} --bootstrap --cert x", 2, "go together"),
        ("--addr localhost:{a} --bootstrap", 2, "--http"),
        ("--addr localhost:{a} --http 0.0.0.0:{b} --bootstrap", 7, "not on loopback.*--http-token-file"),
        ("--addr 0.0.0.0:{a} --http :{b} --bootstrap", 2, "peers can call"),
        ("--addr 10.1.2.3:{a} --http :{b} --bootstrap", 7, "not on loopback.*secret"),
        ("--addr localhost --http :{b} --bootstrap", 2, "port"),
        ("--addr localhost:{a} --http {b} --bootstrap", 1, "bad address"),
        ("--addr localhost:{a} --http :{used} --bootstrap", 1, "can't listen on :{used}.*in use"),
        ("--addr localhost:{used} --http :{b} --bootstrap", 1, "{used}.*in use"),
        ("--addr localhost:{a} --http :{b} --bootstrap --secret-file nowhere", 7, "nowhere"),
        ("--addr localhost:{a} --http :{b} --bootstrap --http-token-file nowhere", 7, "nowhere"),
        ("--addr localhost:{a} --http :{b} --bootstrap --cert nowhere --cert-key b --ca c", 7, "nowhere"),
        ("--addr localhost:{a} --http :{b} --bootstrap --data file", 5, "file"),
    ],
)
def test_what_it_refuses(tmp_path: Path, arguments: str, exit_status: int, message: str) -> None:
    """A command line that can't be served ends with one message that says why, and leaves no node behind."""
    (tmp_path / "file").write_text("in the way")
    with listening(":0") as used:
        used.listen()
        [a, b] = ports(2)
        values = {"a": a, "b": b, "used": used.getsockname()[1]}
        found, output = Serve(tmp_path, "n", *arguments.format(**values).split()).run()
    assert found == exit_status, output
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert re.search(message.format(**values), last), last
    assert not list(tmp_path.glob("*.replidict/*.db"))


# -- hostile clients ------------------------------------------------------------------------------------------------


async def keep_alive(port: int, name: str, count: int) -> None:
    """One connection that writes and reads back, again and again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number in range(count):
            body = f"{name} {number}".encode()
            head = f"PUT /kv/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            writer.write(head + body)
            assert (await answer(reader))[0] == 204
            writer.write(f"GET /kv/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert await answer(reader) == (200, body)
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = [line.partition(": ")[2] for line in head.splitlines() if line.startswith("content-length")]
    return int(head.split()[1]), await reader.readexactly(int(length[0]) if length else 0)


SLOW = [b"", b"GET /kv", b"PUT /kv/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"]
NUISANCES = {
    b"garbage\r\n\r\n": 400,
    b"BREW /kv/pot HTTP/1.1\r\nHost: localhost\r\n\r\n": 405,
    b"PATCH /kv/pot HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc": 405,
    b"GET /kv/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n": 400,
    b"GET /kv/" + b"k" * 10 * 1024 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n": 404,
    b"GET /kv/" + b"k" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n": 414,
    b"PUT /kv/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000: 413,
    b"PUT /kv/b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4c4b40\r\n" + b"x" * 5_000_000: 413,
    b"GET /kv HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer no\r\n\r\n": 421,
    b"GET /kv?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n": 200,
}


async def nuisance(port: int, sent: bytes) -> int:
    """One request that is wrong, or asks for much; the status of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        return (await answer(reader))[0]
    finally:
        writer.transport.abort()


async def crowd(port: int) -> None:
    """200 connections that are kept alive, and meanwhile slow ones, wrong ones and greedy ones."""
    async with asyncio.timeout(240):
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        for (_, writer), sent in zip(slow, itertools.cycle(SLOW), strict=False):
            writer.write(sent)
        good = [asyncio.ensure_future(keep_alive(port, f"k{number}", 5)) for number in range(200)]
        while not all(task.done() for task in good):
            found = await asyncio.gather(*(nuisance(port, sent) for sent in NUISANCES))
            assert found == list(NUISANCES.values())
        await asyncio.gather(*good)
        for _, writer in slow:
            writer.transport.abort()


def test_a_crowd_disturbs_no_election(tmp_path: Path) -> None:
    """However many clients are slow, wrong or greedy, each gets its answer, and the cluster keeps its leader.

    On a machine that is busy with other things an election may come of itself: one quiet round of three is asked for.
    """
    with three(tmp_path) as (nodes, urls):
        rounds: list[bool] = []
        while len(rounds) < 3 and not any(rounds):
            leading = leader_of(urls)
            before = status(urls[leading])["term"]
            asyncio.run(crowd(int(urls[leading].rpartition(":")[2])))
            rounds.append([status(url)["term"] for url in urls] == [before] * 3)
        assert any(rounds), rounds
        assert all("Traceback" not in node.log for node in nodes)

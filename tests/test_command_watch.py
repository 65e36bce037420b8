"""`replidict watch`, and the part of the protocol under it: real processes and nodes in this one."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replidict import HistoryLost, Options
from replidict.client.connection import Client
from replidict.client.watching import Seen, follow
from replidict.machine.codec import decode, decode_key, encode_key
from replidict.protocol import client_messages
from replidict.protocol.client_messages import Events, Watch
from replidict.security import security_for
from replidict.server import watch_streams
from replidict.transport import handshake
from tests.clusters import Dict, cluster, credentials, free_addresses, leader_of, open_member, wait_until
from tests.serving import COMMAND, environment


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Dict]]:
    """Two embedded nodes, of one cluster."""
    with cluster(tmp_path / "nodes", 2, timeout=30) as opened:
        yield opened


def address(node: Dict) -> str:
    return str(node.status().address)


class Tail:
    """A `replidict watch` that runs, and what it has printed."""

    def __init__(self, node: str, *arguments: str) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._process = subprocess.Popen(
            [COMMAND, "watch", "--node", node, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment({}),
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._collect, args=pair)
            for pair in ((self._process.stdout, self.lines), (self._process.stderr, self.errors))
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self, stream: Any, to: list[str]) -> None:
        for line in stream:
            to.append(line.rstrip("\n"))  # noqa: PERF401 -- one by one, as they come

    def ends(self, number: signal.Signals | None = None) -> int:
        """Its exit status, once it has ended; by this signal, or by itself."""
        if number is not None:
            self._process.send_signal(number)
        status = self._process.wait(60)
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        return status


@contextmanager
def tail(node: str, *arguments: str) -> Iterator[Tail]:
    """Run it until this ends."""
    running = Tail(node, *arguments)
    try:
        yield running
    finally:
        running.ends(signal.SIGKILL)


def prints(running: Tail, *lines: str) -> None:
    wait_until(lambda: len(running.lines) >= len(lines), f"{lines} are printed; so far {running.lines}", 60)
    assert running.lines == list(lines), running.errors


def test_changes_are_printed_as_they_come(nodes: list[Dict]) -> None:
    """A line for each change of a key, of all, of one or of those with a prefix; with --json, a line a command. Ctrl-C
    ends it."""
    node = address(nodes[1])
    with (
        tail(node, "--after", "0") as everything, tail(node, "a") as one,
        tail(node, "--prefix", "x/", "--json") as some, tail(node, "-k", "(1, 'eu')", "-l") as odd,
    ):  # fmt: skip
        wait_until(lambda: nodes[1].status().watchers == 4, "all watch")
        nodes[0]["a"] = "text"
        nodes[1].update({"x/1": [1, 2], "b\x07": "y", "x/2": b"z"})
        nodes[0][1, "eu"] = "text"
        nodes[0]["x/1"] = None
        del nodes[0]["a"]
        prints(
            everything, "1 set a text", "2 set x/1 [1, 2]", r"2 set 'b\x07' y", "2 set x/2 b'z'",
            "3 set (1, 'eu') text", "4 set x/1 None", "5 delete a",
        )  # fmt: skip
        prints(one, "1 set a text", "5 delete a")
        prints(odd, "3 set (1, 'eu') 'text'")
        wait_until(lambda: len(some.lines) == 2, "both are printed")
        assert [json.loads(line) for line in some.lines] == [
            {"revision": 2, "events": [
                {"kind": "set", "key": "x/1", "value": [1, 2]}, {"kind": "set", "key": "x/2", "value": "eg=="},
            ]},
            {"revision": 4, "events": [{"kind": "set", "key": "x/1", "value": None, "previous": [1, 2]}]},
        ]  # fmt: skip
        for running in (everything, one, some, odd):
            assert running.ends(signal.SIGINT) == 130
    wait_until(lambda: nodes[1].status().watchers == 0, "who is gone watches no longer")


def test_it_goes_on_with_another_node(tmp_path: Path) -> None:
    """When its node is gone, it goes on with another one, and nothing is missing or told twice."""
    with cluster(tmp_path, timeout=60) as nodes:
        leader = leader_of(nodes)
        others = [node for node in nodes if node is not leader]
        gone = address(leader)
        with tail(gone, "k") as running:
            wait_until(lambda: leader.status().watchers == 1, "it watches")
            others[0]["k"] = 1
            prints(running, "1 set k 1")
            leader.close()
            for number in range(2, 5):
                others[number % 2]["k"] = number
            prints(running, *(f"{number} set k {number}" for number in range(1, 5)))
            assert running.errors and gone in running.errors[0] and "going on with" in running.errors[0]


def test_what_is_refused(nodes: list[Dict], tmp_path: Path) -> None:
    """A revision that is not remembered, both ways to choose keys, and nobody there: each says so."""
    with open_member(tmp_path, free_addresses(1), 0, options=Options(history_entries=2)) as forgetful:
        for number in range(5):
            forgetful["k"] = number
        lost = Tail(address(forgetful), "--after", "1")
        assert lost.ends() == 1 and "only those after 3" in lost.errors[0]
    both = Tail(address(nodes[0]), "a", "--prefix", "b")
    assert both.ends() == 2
    nobody = Tail(free_addresses(1)[0])
    assert nobody.ends() == 6


def test_a_node_of_the_last_release_refuses_in_words(nodes: list[Dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that does not know the question hangs up; the client says that the node's release is too old."""
    known = [kind for kind in client_messages.Request.__args__ if kind is not Watch]
    old: Any = known[0]
    for kind in known[1:]:
        old |= kind
    monkeypatch.setattr(handshake, "decode_request", msgspec.msgpack.Decoder(old).decode)
    refused = Tail(address(nodes[0]))
    assert refused.ends() == 1
    assert "does not know how to watch, its release is too old" in refused.errors[0]


def connected(node: str) -> Client:
    secured = credentials()
    return Client(node, security=security_for(node, secured.get("tls"), secured.get("secret"), False))


def seen(node: Dict, count: int, **what: Any) -> list[Seen]:
    """The first changes that `follow` yields, without those that only say how far it is."""
    found = []
    first = address(node)
    changes = follow(
        lambda to=first: connected(to),
        **{"key": None, "prefix": None, "after": 0, "moved": lambda why, to: None} | what,
    )
    for change in changes:
        if change.events:
            found.append(change)
        if len(found) == count:
            break
    changes.close()  # type: ignore[attr-defined]
    return found


def test_a_change_larger_than_a_part_stays_whole(nodes: list[Dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose events need many frames, because of the values before, is one change for the client."""
    monkeypatch.setattr(watch_streams, "PART_BYTES", 5_000)
    pairs = {f"key {number}": "x" * 900 for number in range(100)}
    nodes[0].update(pairs)
    nodes[1].update(dict.fromkeys(pairs, "new"))
    nodes[0].barrier()
    first, second = seen(nodes[0], 2)
    assert [decode_key(event.key) for event in first.events] == list(pairs)
    assert {decode(event.previous) for event in second.events if event.previous} == {"x" * 900}
    assert len(second.events) == 100
    parts = []
    with connected(address(nodes[0])) as client:
        for part in client.stream(lambda i, t: Watch(i, t, None, None, 0)):
            assert isinstance(part, Events)
            parts.append(part)
            if part.revision == 2 and part.last:
                break
    assert len(parts) > 20 and [part.revision for part in parts if part.last] == [0, 1, 2]


def test_a_client_that_takes_nothing_holds_up_nobody(nodes: list[Dict]) -> None:
    """While one client does not read, others and writers go on; what waits for it stays bounded, and it has to go."""
    node = nodes[0]
    idle = connected(address(node))
    idle._send(lambda i, t: Watch(i, t, None, None, None), None)
    wait_until(lambda: node.status().watchers == 1, "it watches")
    for number in range(60):
        node["k"] = f"{number}" + "x" * 1_000_000
    assert [decode(each.events[0].value or b"")[:3] for each in seen(node, 2, after=58)] == ["58x", "59x"]
    wait_until(lambda: node.status().watchers == 0, "it is let go of", 60)
    idle.close()


def test_progress_is_told(nodes: list[Dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that watches what does not change still learns how far it is, so that it need not ask for old changes
    when it goes on elsewhere."""
    monkeypatch.setattr(watch_streams, "LOOK_SECONDS", 0.05)
    with connected(address(nodes[0])) as client:
        parts = client.stream(lambda i, t: Watch(i, t, encode_key("quiet"), None, None))
        assert isinstance(first := next(parts), Events) and first.revision == 0
        nodes[0]["loud"] = 1
        assert isinstance(part := next(parts), Events) and (part.revision, part.events) == (1, [])


def test_a_loss_carries_its_numbers(tmp_path: Path) -> None:
    """`HistoryLost` reaches a client with `oldest` and `current`."""
    with open_member(tmp_path, free_addresses(1), 0, options=Options(history_entries=2)) as node:
        for number in range(5):
            node["k"] = number
        with pytest.raises(HistoryLost) as lost:
            seen(node, 1, after=1)
        assert (lost.value.oldest, lost.value.current) == (3, 5)
        with pytest.raises(ValueError, match="not both"):
            seen(node, 1, key=encode_key("a"), prefix="b")


def test_only_who_is_let_in(tmp_path: Path) -> None:
    """Watching needs the secret or the certificate that everything else needs."""
    with open_member(tmp_path, free_addresses(1), 0, secret="correct horse") as node:
        refused = Tail(address(node))
        assert refused.ends() == 7
        assert node.status().watchers == 0

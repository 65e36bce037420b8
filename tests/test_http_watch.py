"""GET /watch over real sockets: what is told, where a client goes on, what one may cost, and how it ends."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict import Options, ReplicatedDict
from replidict.http import connection_limits, event_stream, watch_events
from replidict.http.app import asgi
from replidict.http.server import HttpServer, listening
from tests.clusters import Dict, wait_until
from tests.event_source import EventSource
from tests.serving import curl
from tests.test_http_serve import leader_of, three
from tests.test_http_server import OPTIONS, request, serving


@pytest.fixture(autouse=True)
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its heartbeats a stream finds that its client is gone."""
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.5)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Dict, int]]:
    with ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d, serving(d) as (port, _):
        yield d, port


def test_changes_arrive_as_events(opened: tuple[Dict, int]) -> None:
    """Each command is one event, whose id is its revision; keys that are no text are left out, and what JSON can't say
    is named."""
    d, port = opened
    with EventSource(port, "?prefix=a&after=0") as source:
        assert source.headers["content-type"] == "text/event-stream; charset=utf-8"
        d["a"] = "x"
        d["b"] = 1
        d.update({"a": [1, (2, b"3")], "ab": {4}, 5: 6, "ac": math.nan})
        del d["a"]
        assert source.event() == (
            "message", {"revision": 1, "events": [{"kind": "set", "key": "a", "value": "x", "previous": None}]},
        )  # fmt: skip
        assert source.last_id == "1"
        said = source.event()
        assert said is not None and said[1]["revision"] == 3
        assert said[1]["events"] == [
            {"kind": "set", "key": "a", "value": [1, [2, "Mw=="]], "previous": "x"},
            {"kind": "set", "key": "ab", "value": [4], "previous": None},
            {"kind": "set", "key": "ac", "value": None, "previous": None, "unshown": "JSON can't represent this float"},
        ]
        said = source.event()
        assert said is not None
        assert said[1] == {"revision": 4, "events": [{"kind": "delete", "key": "a", "previous": [1, [2, "Mw=="]]}]}
    wait_until(lambda: d.status().watchers == 0, "the stream of who is gone has ended")


def test_a_client_goes_on_where_it_was(opened: tuple[Dict, int]) -> None:
    """`Last-Event-ID` counts before `after=`; the id moves on with heartbeats, though nothing of interest happens."""
    d, port = opened
    for number in range(5):
        d["a"] = number
    with EventSource(port, "?after=0", last_id="3") as source:
        said = source.event()
        assert said is not None and said[1]["revision"] == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.05)
        with EventSource(port, "?prefix=z") as source:
            d["a"] = "not of interest"
            wait_until(lambda: d.status().watchers == 1, "it watches")
            lines = [next(source._lines) for _ in range(9)]
            assert ":" in lines and "id: 6" in lines
            d["z"] = 1
            event = source.event()
            assert event is not None and event[1]["revision"] == 7


def test_what_is_no_longer_known_is_said(tmp_path: Path) -> None:
    """410 when the history does not reach back so far; an event, and the end, when a slow client falls out of it."""
    options = Options(durability="process", history_entries=3)
    with ReplicatedDict[Any, Any](tmp_path / "d", options=options) as d, serving(d) as (port, _):
        for number in range(10):
            d["a"] = number
        status, body = request(port, "GET", "/watch?after=2")
        assert status == 410 and json.loads(body)["type"] == "urn:replidict:history-lost"
        with EventSource(port) as source:
            assert next(source._lines)  # the stream has begun
            d.update(dict.fromkeys("abcd", 0))  # more than fits
            assert source.event() == ("history-lost", {"oldest": 11, "current": 11})
            assert source.event() is None


def test_arguments(opened: tuple[Dict, int]) -> None:
    """What makes no sense is refused, and HEAD tells what GET would be."""
    _, port = opened
    for query in ("?after=x", "?after=-1", "?after=", "?key=a", "?prefix=a&prefix=b"):
        status, body = request(port, "GET", f"/watch{query}")
        assert (status, json.loads(body)["type"]) == (400, "urn:replidict:bad-argument")
    status, _ = request(port, "GET", "/watch?after=0", headers={"Last-Event-ID": "x"})
    assert status == 400
    assert request(port, "HEAD", "/watch") == (200, b"")


def test_so_many_streams_and_no_more(opened: tuple[Dict, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream too many is told so, and has room again once another one is gone."""
    d, port = opened
    monkeypatch.setattr(watch_events, "MAX_WATCHES", 2)
    with EventSource(port) as one:
        with EventSource(port) as two:
            assert next(one._lines) and next(two._lines)
            status, body = request(port, "GET", "/watch")
            assert (status, json.loads(body)["type"]) == (503, "urn:replidict:busy")
        wait_until(lambda: d.status().watchers == 1, "the second one is gone")
        with EventSource(port) as three_:
            assert three_.status == 200


def test_who_takes_nothing_is_let_go_of_and_who_takes_stays(
    opened: tuple[Dict, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that a client does not read is cut in bounded time, and only one change is held for it; one that is read
    goes on, however old it is."""
    d, port = opened
    monkeypatch.setattr(connection_limits, "TAKING_SECONDS", 1.5)
    monkeypatch.setattr(connection_limits, "CHECK_SECONDS", 0.1)
    with EventSource(port, "?prefix=k") as reader, EventSource(port, "?prefix=k") as idle:
        assert next(reader._lines) and next(idle._lines)
        number = 0
        while d.status().watchers == 2:  # until the idle one is cut
            number += 1
            d["k"] = f"{number}" + "x" * 300_000
            said = reader.event()
            assert said is not None and said[1]["events"][0]["value"].startswith(f"{number}x")
            assert number < 2_000
        d["k"] = "still there"
        said = reader.event()
        assert said is not None and said[1]["events"][0]["value"] == "still there"


def test_streams_end_when_the_server_is_to_end(tmp_path: Path) -> None:
    """A server that is told to stop ends its streams in order and at once, and so does one whose dict is closed."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d:
        with serving(d) as (port, served), EventSource(port) as source:
            assert next(source._lines)
            served.stop()
            assert source.event() is None
            assert served.ended_within(5), "it does not wait for streams"
        bound = listening(":0")
        again = HttpServer(asgi(d), bound, OPTIONS)
        again.start()
        with EventSource(bound.getsockname()[1]) as source:
            assert next(source._lines)
            d.close()
            assert source.event() is None
        again.stop()
        again.wait()


@contextmanager
def following(url: str, file: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`curl -N`, its output in a file."""
    with file.open("ab") as out:
        process = subprocess.Popen(["curl", "-sN", *arguments, f"{url}/watch"], stdout=out)
        try:
            yield process
        finally:
            process.kill()
            process.wait(60)


def told(file: Path) -> list[tuple[int, Any]]:
    """The ids and values of all events in a file."""
    found = []
    last = 0
    for line in file.read_text().splitlines():
        if line.startswith("id: "):
            last = int(line[4:])
        elif line.startswith("data: "):
            found += [(last, event["value"]) for event in json.loads(line[6:])["events"]]
    return found


def last_id(file: Path) -> str:
    return [line[4:] for line in file.read_text().splitlines() if line.startswith("id: ")][-1]


def test_curl_follows_through_deaths(tmp_path: Path) -> None:
    """`curl -N` on a follower does not notice that the leader is killed; when its own node is, one with the last id on
    another node has lost nothing."""
    with three(tmp_path) as (nodes, urls):
        leader = leader_of(urls)
        first, second = (number for number in range(3) if number != leader)
        file = tmp_path / "told"

        def put(value: str, url: str) -> None:
            wait_until(lambda: curl("-X", "PUT", "-d", value, f"{url}/kv/k") == "", f"{value} is written")

        with following(urls[first], file):
            wait_until(lambda: file.exists() and "id: " in file.read_text(), "it watches")
            put("one", urls[leader])
            wait_until(lambda: [value for _, value in told(file)] == ["one"], "it is told")
            nodes[leader].end(signal.SIGKILL)
            put("two", urls[first])
            wait_until(lambda: [value for _, value in told(file)][-1] == "two", "it is told")
            nodes[leader].start()
            nodes[first].end(signal.SIGKILL)
        put("three", urls[second])
        with following(urls[second], file, "-H", f"Last-Event-ID: {last_id(file)}"):
            put("four", urls[leader])
            wait_until(lambda: [value for _, value in told(file)][-1] == "four", "it is told")
        values = [value for _, value in told(file)]
        assert sorted(set(values), key=values.index) == ["one", "two", "three", "four"]
        revisions = [revision for revision, _ in told(file)]
        assert revisions == sorted(set(revisions)), "each once, in order"

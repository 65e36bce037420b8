"""The status page without a browser: its files, the stream behind it, and the store mounted in another application."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from replidict import ReplicatedDict
from replidict.http import asgi, status_stream
from replidict.http.status_stream import Live
from tests.clusters import Dict, cluster, leader_of, wait_until
from tests.event_source import EventSource
from tests.http_support import assert_problem, store
from tests.test_http_server import OPTIONS, request, serving

FILES = {each.name: each.read_text() for each in files("replidict.http").joinpath("static").iterdir()}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
TOKEN = "a-token-that-nobody-guesses"


class Tags(HTMLParser):
    """All tags of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Dict, int]]:
    with ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d, serving(d) as (port, _):
        yield d, port


def looks(port: int) -> EventSource:
    return EventSource(port, path="/live")


def event(source: EventSource) -> Any:
    said = source.event()
    assert said is not None and said[0] == "message"
    return said[1]


# -- the files --------------------------------------------------------------------------------------------------------


def test_the_page_is_served_with_a_strict_policy(tmp_path: Path) -> None:
    """The page and all that it loads is there, typed, and under a policy that lets nothing else run or load."""
    with store(tmp_path) as (_, client):
        answer = client.get("/")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        tags = Tags(answer.text).found
        loaded = {str(attributes.get("src") or attributes.get("href")) for tag, attributes in tags if tag != "a"}
        loaded = (loaded - {"None"}) | {f"page/{name}" for name in FILES if name != "index.html"}
        assert len(loaded) == len(FILES) - 1
        for path in loaded:
            file = client.get(f"/{path}")
            assert file.status_code == 200 and file.headers["X-Content-Type-Options"] == "nosniff"
            assert file.text == FILES[path.removeprefix("page/")]
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        for path in ("/page/index.html", "/page/no.js", "/page/..%2Fapp.py", "/page/"):
            assert_problem(client.get(path), None, 404)
        assert_problem(client.get("/?x=1"), "bad-argument")


def test_the_page_needs_no_one_else_and_nothing_inline() -> None:
    """No file names another host, and the page has no script, style or handler within it."""
    for name, text in FILES.items():
        assert set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"']*", re.sub(r"(?m)(^|\s)// .*$", "", text))) <= {
            SVG_NAMESPACE.replace("http:", ""), SVG_NAMESPACE,
        }, name  # fmt: skip
        assert "innerHTML" not in text and "eval(" not in text, f"{name}: what comes from the dict is text"
    for tag, attributes in Tags(FILES["index.html"]).found:
        assert tag != "style" and "style" not in attributes
        assert not [each for each in attributes if each.startswith("on")]
        assert tag != "script" or attributes["src"]


def test_inputs_have_labels() -> None:
    """Each field of the page has a label, each table its headings, each section a title."""
    tags = Tags(FILES["index.html"]).found
    labelled = {attributes["for"] for tag, attributes in tags if tag == "label"}
    assert {attributes["id"] for tag, attributes in tags if tag == "input"} == labelled
    assert all(attributes.get("scope") == "col" for tag, attributes in tags if tag == "th")
    ids = {attributes.get("id") for _, attributes in tags}
    assert {attributes["aria-labelledby"] for tag, attributes in tags if tag == "section"} <= ids


def test_the_files_need_no_token_and_what_they_show_does(tmp_path: Path) -> None:
    """With a token the page opens without, knows that it has to ask, and gets nothing else."""
    with store(tmp_path, token=TOKEN) as (_, client):
        page = client.get("/")
        assert page.status_code == 200 and 'data-token="yes"' in page.text and TOKEN not in page.text
        assert client.get("/page/page.js").status_code == 200
        for path in ("/live", "/kv", "/status", "/pages", "/page"):
            assert_problem(client.get(path), "bad-token")
    with store(tmp_path, token=None) as (_, client):
        assert 'data-token="no"' in client.get("/").text
        assert_problem(client.get("/", headers={"Host": "evil.example"}), "not-loopback")


# -- the stream -------------------------------------------------------------------------------------------------------


def test_a_look_has_all_that_the_page_shows(tmp_path: Path) -> None:
    """One event has the status, the members with release and lag, the locks, the last minutes and the disk."""
    with cluster(tmp_path) as nodes, serving(nodes[0]) as (port, _):
        leading = leader_of(nodes)
        held = nodes[1].lock("backup", info="nightly")
        assert held.acquire()
        nodes[0].barrier()
        with looks(port) as source:
            assert source.headers["content-type"] == "text/event-stream; charset=utf-8"
            said = event(source)
            while not said["members"]:
                said = event(source)
        assert said["status"]["leader"] == leading.status().address
        assert {each["address"] for each in said["members"]} == {str(node.status().address) for node in nodes}
        assert {each["release"] for each in said["members"]} == {said["release"]}
        (lock,) = said["locks"]
        assert (lock["name"], lock["info"], lock["waiters"]) == ("backup", "nightly", 0)
        assert 0 <= said["now"] - lock["since"] < 60
        assert said["recent"]["elections"][0]["address"] == said["status"]["leader"]
        assert said["disk_bytes"] > 4096
        held.release()


def test_there_is_one_look_for_all_and_none_for_nobody(
    opened: tuple[Dict, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten streams cost what one does; when the last one ends, the node is not looked at any more."""
    d, port = opened
    looked: list[float] = []
    monkeypatch.setattr(status_stream, "EVERY", 0.05)
    monkeypatch.setattr(status_stream, "GLANCE", 0.01)
    said = Live._said

    def counted(self: Live) -> str:
        looked.append(time.monotonic())
        return said(self)

    monkeypatch.setattr(Live, "_said", counted)
    sources = [looks(port) for _ in range(10)]
    for _ in range(5):
        before = len(looked)
        told = [event(source) for source in sources]
        assert all(each["status"]["node_id"] == d.status().node_id for each in told)
        assert len(looked) - before <= 3
    for source in sources:
        source.__exit__()
    count = -1

    def quiet() -> bool:
        nonlocal count
        count, before = len(looked), count
        time.sleep(0.3)
        return count == before == len(looked)

    wait_until(quiet, "nobody looks any more")
    with looks(port) as again:
        assert event(again)["status"]["keys"] == 0


def test_a_slow_page_skips_and_too_many_are_told_so(opened: tuple[Dict, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream holds one look, the newest; one stream more than there may be is refused, HEAD is not one."""
    d, port = opened
    monkeypatch.setattr(status_stream, "MAX_LOOKING", 1)
    held = status_stream._Looks(Live(d), asyncio.Event())
    held.hear("old")
    held.hear("new")
    assert (held.next(), held.next()) == ("new", "")
    with looks(port) as source:
        assert event(source)["release"]
        with looks(port) as second:
            assert second.status == 503
        assert request(port, "HEAD", "/live") == (200, b"")


def test_a_stream_tells_that_its_node_has_stopped(tmp_path: Path) -> None:
    """A dict that is closed under the page is shown as stopped, and the server ends its streams when it is to end."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d, serving(d) as (port, served):
        with looks(port) as source:
            assert event(source)["status"]["role"] == "leader"
            d.close()
            while event(source)["status"]["role"] != "stopped":
                pass
            served.stop()
            while source.event() is not None:
                pass
        assert served.ended_within(5)


# -- in another application -------------------------------------------------------------------------------------------


def test_mounted_in_another_application(tmp_path: Path) -> None:
    """Under a path of another application, and without its lifespan, all is as alone: page, keys, probes, metrics."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=OPTIONS) as d:
        d["a/b"] = "value"
        app = Starlette(routes=[Mount("/store", asgi(d, token=TOKEN))])
        client = TestClient(app, base_url="http://localhost")
        shown = {"Authorization": f"Bearer {TOKEN}"}
        assert 'src="page/page.js"' in client.get("/store").text
        assert client.get("/store/page/page.js").status_code == 200
        assert client.get("/store/healthz").status_code == 200
        assert_problem(client.get("/store/kv/a/b"), "bad-token")
        assert client.get("/store/kv/a%2Fb", headers=shown).text == "value"
        assert client.put("/store/kv/c", content="new", headers=shown).status_code == 204
        figures = client.get("/store/metrics", headers=shown).text
        assert 'method="PUT",route="/kv/{key}",status="204"' in figures
        assert 'route="/page/{file}"' in figures
        assert client.get("/other").text == "Not Found"
        assert d["c"] == "new"

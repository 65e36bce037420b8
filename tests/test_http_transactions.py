"""Transactions and increments over HTTP: decided in the log, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http_support import assert_problem, store
from tests.test_http import Opened


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with store(tmp_path) as both:
        yield both


def test_a_transaction(opened: Opened) -> None:
    """All operations are done, as one revision, if every compare holds; values are what JSON says."""
    d, client = opened
    first = d.set("a", "x")
    d["n"] = 5
    asked = {
        "compare": [{"key": "a", "revision": first}, {"key": "b", "absent": True}],
        "operations": [
            {"op": "set", "key": "b", "value": {"c": [1, 2.5, None, "é"]}},
            {"op": "delete", "key": "a"},
            {"op": "delete", "key": "never there"},
            {"op": "increment", "key": "n", "by": -2},
            {"op": "increment", "key": "m", "default": 0.5},
        ],
    }
    response = client.post("/transaction", json=asked)
    assert response.status_code == 200 and response.json() == {"revision": d.revision}
    assert d == {"n": 3, "b": {"c": [1, 2.5, None, "é"]}, "m": 1.5}
    assert client.get("/kv/n").headers["ETag"] == f'"{d.revision}"'


def test_a_conflict(opened: Opened) -> None:
    """One compare that does not hold refuses all of it, and the answer names the keys."""
    d, client = opened
    revision = d.set("a", 1)
    for compare in ({"key": "a", "absent": True}, {"key": "a", "revision": revision - 1}, {"key": "b", "revision": 0}):
        asked = {"compare": [compare], "operations": [{"op": "set", "key": "c", "value": 1}]}
        response = client.post("/transaction", json=asked)
        assert_problem(response, "transaction-conflict", 409)
        assert response.json()["keys"] == [compare["key"]]
    d["a"] = 1
    asked = {"compare": [{"key": "a", "revision": revision}], "operations": [{"op": "delete", "key": "a"}]}
    assert client.post("/transaction", json=asked).status_code == 409
    assert d == {"a": 1}


def test_what_is_no_number(opened: Opened) -> None:
    """A value that can't be incremented is a 409 of its own, and changes nothing."""
    d, client = opened
    d.update({"t": "5", "huge": 1.7e308})
    asked = {"operations": [{"op": "set", "key": "x", "value": 1}, {"op": "increment", "key": "t"}]}
    assert "'t'" in assert_problem(client.post("/transaction", json=asked), "not-a-number", 409)
    assert "'t'" in assert_problem(client.post("/kv/t?increment=1"), "not-a-number", 409)
    assert_problem(client.post("/kv/huge?increment=1.7e308"), "not-a-number", 409)
    assert d == {"t": "5", "huge": 1.7e308}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"operations": [], "operations": []}',
        b'{"operations": [], "compares": []}',
        b'{"operations": [{"op": "set", "key": "a"}]}',
        b'{"operations": [{"op": "append", "key": "a", "value": 1}]}',
        b'{"operations": [{"op": "set", "key": 1, "value": 1}]}',
        b'{"operations": [{"op": "set", "key": "\\ud800", "value": 1}]}',
        b'{"operations": [{"op": "set", "key": "a", "value": NaN}]}',
        b'{"operations": [{"op": "set", "key": "a", "value": 1e999}]}',
        b'{"operations": [{"op": "increment", "key": "a", "by": true}]}',
        b'{"operations": [{"op": "increment", "key": "a", "by": "1"}]}',
        b'{"operations": [], "compare": [{"key": "a"}]}',
        b'{"operations": [], "compare": [{"key": "a", "absent": false}]}',
        b'{"operations": [], "compare": [{"key": "a", "absent": true, "revision": 1}]}',
        b'{"operations": [], "compare": [{"key": "a", "revision": -1}]}',
        b'{"operations": [], "compare": [{"key": "a", "revision": 9223372036854775808}]}',
        b'{"operations": [], "compare": [{"key": "a", "value": 1}]}',
    ],
)
def test_a_body_that_makes_no_sense(opened: Opened, body: bytes) -> None:
    """What is no such JSON is refused with a reason, and nothing is written."""
    d, client = opened
    assert_problem(client.post("/transaction", content=body), "bad-argument", 400)
    assert d == {}


def test_what_is_too_large(opened: Opened) -> None:
    """More than fits a command, or a key that is too long, is refused whole."""
    d, client = opened
    large: list[dict[str, Any]] = [{"op": "set", "key": f"k{number}", "value": "x" * 300_000} for number in range(4)]
    assert "encoded" in assert_problem(client.post("/transaction", json={"operations": large}), "bad-argument", 400)
    long = {"operations": [{"op": "set", "key": "k" * 70_000, "value": 1}]}
    assert_problem(client.post("/transaction", json=long), "bad-argument", 400)
    assert d == {}


def test_increment(opened: Opened) -> None:
    """POST adds to a number, which begins with a default, and answers with the sum as a GET would."""
    d, client = opened
    assert client.post("/kv/n?increment=1").text == "1"
    assert json.loads(client.post("/kv/n?increment=-3").content) == -2
    assert client.post("/kv/f?increment=0.5&default=2").json() == 2.5
    assert client.post("/kv/big?increment=1" + "0" * 30).json() == 10**30
    assert d == {"n": -2, "f": 2.5, "big": 10**30}


@pytest.mark.parametrize(
    "query",
    ["", "?increment=", "?increment=x", "?increment=1_0", "?increment=NaN", "?increment=1e999", "?increment=%2B1",
     "?increment=01", "?increment=1&increment=2", "?increment=1&by=2", "?increment=" + "1" * 400],
)  # fmt: skip
def test_an_increment_that_makes_no_sense(opened: Opened, query: str) -> None:
    """What is no number as JSON writes it is refused, and nothing is written."""
    d, client = opened
    assert_problem(client.post("/kv/n" + query), "bad-argument", 400)
    assert d == {}


def test_pages_come_from_the_index(opened: Opened) -> None:
    """Pages of keys go through all of them once, and leave out those that no URL can name."""
    d, client = opened
    names = [f"k{number:03}" for number in range(25)]
    d.update(dict.fromkeys([*names, "k\udc80", "other", 7], 1))
    found: list[str] = []
    after = ""
    while after is not None:
        page = client.get("/kv", params={"prefix": "k", "limit": 10, **({"after": after} if after else {})}).json()
        found += page["keys"]
        after = page["next"]
    assert found == names
    assert d._machine.key_index is not None

"""The store over HTTP, request by request: values, keys, conditions, consistency, listings, refusals."""

from __future__ import annotations

import datetime as dt
import json
import string
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Route
from starlette.testclient import TestClient

import replidict
from replidict import Options, ReplicatedDict
from replidict.http import app as app_module
from replidict.http.app import asgi
from replidict.http.metrics import METHODS, ROUTES
from replidict.http.problems import PROBLEMS, problem_of
from replidict.machine.codec import encode, encode_key
from tests.clusters import Dict, cluster, free_addresses, open_member, wait_until
from tests.http_support import assert_problem, client_of, path_of, store

Opened = tuple[Dict, TestClient]
TEXT = "text/plain; charset=utf-8"


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with store(tmp_path) as both:
        yield both


# -- values ---------------------------------------------------------------------------------------------------------


def test_put_get_delete(opened: Opened) -> None:
    """What was PUT is there, for GET and for Python; what was deleted is not."""
    d, client = opened
    assert client.put("/kv/hello", content="distributed").status_code == 204
    assert client.get("/kv/hello").text == "distributed"
    assert d == {"hello": "distributed"}
    assert client.delete("/kv/hello").status_code == 204
    assert_problem(client.get("/kv/hello"), "key-absent", 404)
    assert_problem(client.delete("/kv/hello"), "key-absent", 404)
    assert d == {}


@pytest.mark.parametrize(
    ("body", "value", "content_type"),
    [
        (b"distributed", "distributed", TEXT),
        (b"", "", TEXT),
        ("ä€𝄞\0\r\n".encode(), "ä€𝄞\0\r\n", TEXT),
        (b'{"a": 1}', '{"a": 1}', TEXT),
        (b"\xff\x00", b"\xff\x00", "application/octet-stream"),
        (b"\xed\xa0\x80", b"\xed\xa0\x80", "application/octet-stream"),
    ],
)
def test_bodies_are_text_or_bytes(opened: Opened, body: bytes, value: Any, content_type: str) -> None:
    """A body of UTF-8 is kept as a str, any other as bytes, and GET gives it back, byte for byte."""
    d, client = opened
    client.put("/kv/k", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert d["k"] == value and type(d["k"]) is type(value)
    response = client.get("/kv/k")
    assert response.content == body
    assert response.headers["Content-Type"] == content_type


def test_octet_streams_are_bytes(opened: Opened) -> None:
    """A body sent as application/octet-stream is kept as bytes, also when it happens to be text."""
    d, client = opened
    client.put("/kv/k", content=b"abc", headers={"Content-Type": "Application/Octet-Stream; x=y"})
    assert d["k"] == b"abc"
    assert client.get("/kv/k").headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (2**70, 2**70),
        (1.5, 1.5),
        ("\ud800", "\ud800"),
        ([1, "a", [None]], [1, "a", [None]]),
        ((1, (2,)), [1, [2]]),
        ({"b": 1, "a": {"c": 2}}, {"b": 1, "a": {"c": 2}}),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Decimal("9.90"), "9.90"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (dt.datetime(2024, 2, 29, 1, 2, tzinfo=dt.UTC), "2024-02-29T01:02:00Z"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.time(1, 2), "01:02:00"),
        (dt.timedelta(hours=1, seconds=2), "PT3602S"),
        ({"raw": b"\xff"}, {"raw": "/w=="}),
    ],
)
def test_other_values_are_shown_as_json(opened: Opened, value: Any, shown: Any) -> None:
    """A value of another type, which a Python program wrote, is shown as JSON."""
    d, client = opened
    d["k"] = value
    response = client.get("/kv/k")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(response.content) == shown
    if type(value) is dict:
        assert list(json.loads(response.content)) == list(shown)


def test_ints_of_any_size(opened: Opened) -> None:
    """An int of more digits than Python itself prints is shown with all of them, alone and within."""
    d, client = opened
    limit = sys.get_int_max_str_digits()
    d.update({"k": 10**5000, "nested": {"a": [-(10**5000), True]}})
    assert client.get("/kv/k").content == b"1" + b"0" * 5000
    assert client.get("/kv/nested").content == b'{"a": [-1' + b"0" * 5000 + b", true]}"
    assert sys.get_int_max_str_digits() == limit


@pytest.mark.parametrize(
    "value", [float("nan"), [float("-inf")], {1: "a"}, {(): 1}, [{"a": {2: 3}}]], ids=lambda v: type(v)
)
def test_what_json_cannot_say_is_refused(opened: Opened, value: Any) -> None:
    """A value that JSON can't represent is refused, not bent: no NaN as null, no number as text of a key."""
    d, client = opened
    d["k"] = value
    assert "read it with Python" in assert_problem(client.get("/kv/k"), "not-representable", 406)


def test_bytearray_is_bytes(opened: Opened) -> None:
    """A bytearray is shown as the bytes it holds."""
    d, client = opened
    d["k"] = bytearray(b"\xff")
    assert client.get("/kv/k").content == b"\xff"


def test_head(opened: Opened) -> None:
    """HEAD gives the headers of GET."""
    d, client = opened
    d["k"] = "value"
    response = client.head("/kv/k")
    assert (response.status_code, response.headers["Content-Length"], response.headers["ETag"]) == (200, "5", '"1"')


# -- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["a/b", "/", "//a//", "", ".", "..", "a/../b", "ä", "a b", "a+b", "%2F", "?", "#", "\n", "a\n", "\r\n", "\0"]
)
def test_keys_are_any_text(opened: Opened, key: str) -> None:
    """A key is whatever the path holds after /kv/, percent-decoded once."""
    d, client = opened
    assert client.put(path_of(key), content="v").status_code == 204
    assert d.snapshot() == {key: "v"}
    assert client.get(path_of(key)).text == "v"
    assert client.delete(path_of(key)).status_code == 204


def test_slashes_need_no_escape(opened: Opened) -> None:
    """A slash in a key may be sent as it is."""
    d, client = opened
    client.put("/kv/a/b//c/", content="v")
    assert d == {"a/b//c/": "v"}


@pytest.mark.parametrize("path", ["/kv/%ff", "/kv/a%C3", "/kv/%ed%a0%80"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_key_that_is_no_text(opened: Opened, path: str, method: str) -> None:
    """A key that is not UTF-8 is refused, rather than taken for another one."""
    d, client = opened
    d["�"] = d["a�"] = "other"
    assert_problem(client.request(method, path), "bad-argument", 400)
    assert len(d) == 2


def test_other_keys_have_no_url(opened: Opened) -> None:
    """A key that is no text is not taken for the text that looks like it."""
    d, client = opened
    d[1] = "number"
    assert client.get("/kv/1").status_code == 404
    assert_problem(client.get("/kv%2F1"), None, 404)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_long_keys(tmp_path: Path, method: str) -> None:
    """A key as long as the dict allows is a key; one byte more is refused with 414."""
    options = Options(max_key_bytes=1000)
    with store(tmp_path, options=options) as (d, client):
        most = "ä" * 498 + "a"
        assert len(encode_key(most)) == options.max_key_bytes
        d[most] = "v"
        assert client.request(method, path_of(most), content=b"w").is_success
        assert_problem(client.request(method, path_of(most + "a"), content=b"w"), "key-too-long", 414)
        assert set(d) <= {most}


def test_largest_values(opened: Opened) -> None:
    """The largest value that the dict takes is taken; one byte more is refused with 413, whether announced or not."""
    d, client = opened
    most = b"x" * (Options().max_value_bytes - 5)
    assert len(encode(most)) == Options().max_value_bytes
    assert client.put("/kv/k", content=most).status_code == 204
    assert client.get("/kv/k").content == most
    for content in (most + b"x", iter([most, b"x"]), iter([b"y"] * 10 + [most])):
        assert_problem(client.put("/kv/k", content=content), "body-too-large", 413)
    assert d["k"] == most.decode()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.text(st.characters(codec="utf-8"), max_size=20), body=st.binary(max_size=200))
def test_any_key_any_body(opened: Opened, key: str, body: bytes) -> None:
    """Whatever the key and the body, GET gives the body back, and Python finds it under the key."""
    d, client = opened
    assert client.put(path_of(key), content=body).status_code == 204
    assert client.get(path_of(key)).content == body
    value = d[key]
    assert (value.encode() if isinstance(value, str) else value) == body


# -- conditions -----------------------------------------------------------------------------------------------------


def test_the_etag_is_the_revision(opened: Opened) -> None:
    """PUT and GET name the revision that wrote the value as its ETag."""
    d, client = opened
    d["other"] = 1
    assert client.put("/kv/k", content="a").headers["ETag"] == '"2"'
    assert client.get("/kv/k").headers["ETag"] == '"2"'
    assert d.versioned("k") == ("a", 2)


def test_put_if_match(opened: Opened) -> None:
    """PUT with If-Match writes only over the revision it names."""
    d, client = opened
    tag = client.put("/kv/k", content="a").headers["ETag"]
    assert client.put("/kv/k", content="b", headers={"If-Match": tag}).status_code == 204
    assert_problem(client.put("/kv/k", content="c", headers={"If-Match": tag}), "precondition-failed", 412)
    assert_problem(client.put("/kv/absent", content="c", headers={"If-Match": tag}), "precondition-failed", 412)
    assert d == {"k": "b"}


@pytest.mark.parametrize(
    "tag", ['W/"1"', '"01"', '"+1"', '"x"', '""', f'"{2**63}"', f'"{10**30}"', '"\u0661"'.encode()]
)
def test_etags_that_no_write_had(opened: Opened, tag: Any) -> None:
    """An ETag that is weak, or was never given, matches nothing."""
    d, client = opened
    d["k"] = "a"
    assert_problem(client.put("/kv/k", content="b", headers={"If-Match": tag}), "precondition-failed", 412)
    assert d == {"k": "a"}


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("text", ["1", "", '"1', '"1" "2"', "'1'", '*, "1"', 'w/"1"'])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_conditions_that_are_none(opened: Opened, method: str, name: str, text: str) -> None:
    """A condition that can't be read is refused, not left out; the quotes are the likeliest thing to be missing."""
    d, client = opened
    d["k"] = "a"
    detail = assert_problem(client.request(method, "/kv/k", headers={name: text}), "bad-argument", 400)
    assert '"17"' in detail and d == {"k": "a"}


def test_put_if_absent(opened: Opened) -> None:
    """PUT with If-None-Match: * creates the key, or does nothing."""
    d, client = opened
    assert client.put("/kv/k", content="a", headers={"If-None-Match": "*"}).status_code == 201
    assert_problem(client.put("/kv/k", content="b", headers={"If-None-Match": "*"}), "precondition-failed", 412)
    assert d == {"k": "a"}


def test_get_if_none_match(opened: Opened) -> None:
    """GET with the ETag of what is there gives 304 and no body; with any other, the value."""
    d, client = opened
    d["k"] = "a"
    for tags in ('"1"', '"7", "1"', 'W/"1"', "*"):
        response = client.get("/kv/k", headers={"If-None-Match": tags})
        assert (response.status_code, response.content, response.headers["ETag"]) == (304, b"", '"1"')
    assert client.get("/kv/k", headers={"If-None-Match": '"2"'}).text == "a"
    for tags in ('"1"', "*"):
        assert_problem(client.get("/kv/absent", headers={"If-None-Match": tags}), "key-absent")


def test_get_if_match(opened: Opened) -> None:
    """GET with If-Match gives the value only if it is of that revision."""
    d, client = opened
    d["k"] = "a"
    for tags in ('"1"', "*", '"2", "1"'):
        assert client.get("/kv/k", headers={"If-Match": tags}).text == "a"
    for tags in ('"2"', 'W/"1"'):
        assert_problem(client.get("/kv/k", headers={"If-Match": tags}), "precondition-failed", 412)
    assert_problem(client.get("/kv/absent", headers={"If-Match": "*"}), "precondition-failed", 412)


@pytest.mark.parametrize(
    ("method", "headers", "name"),
    [
        ("DELETE", {"If-Match": '"1"'}, "conditional-delete"),
        ("DELETE", {"If-Match": "*"}, "conditional-delete"),
        ("DELETE", {"If-None-Match": "*"}, "conditional-delete"),
        ("PUT", {"If-Match": "*"}, "any-revision"),
        ("PUT", {"If-Match": '"1", "2"'}, "any-revision"),
        ("PUT", {"If-None-Match": '"2"'}, "any-revision"),
        ("PUT", {"If-Match": '"1"', "If-None-Match": "*"}, "bad-argument"),
        ("PUT", {"Content-Range": "bytes 0-1/2"}, "bad-argument"),
        ("PUT", {"Content-Encoding": "gzip"}, "content-encoding"),
        ("PUT", [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")], "content-encoding"),
    ],
)
def test_what_cannot_be_done_in_one_step_is_refused(
    opened: Opened, method: str, headers: dict[str, str] | list[tuple[str, str]], name: str
) -> None:
    """A condition that can't be checked in the same step as the change is refused, and nothing is changed."""
    d, client = opened
    d["k"] = "a"
    assert_problem(client.request(method, "/kv/k", content="b", headers=headers), name)
    assert d == {"k": "a"}


def test_counting_with_etags(opened: Opened) -> None:
    """Clients that read, add one and PUT with If-Match lose no count, however many race."""
    d, client = opened
    d["n"] = "0"

    def count() -> None:
        for _ in range(20):
            while True:
                seen = client.get("/kv/n")
                tag = {"If-Match": seen.headers["ETag"]}
                if client.put("/kv/n", content=str(int(seen.text) + 1), headers=tag).status_code == 204:
                    break

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(count) for _ in range(4)]:
            future.result()
    assert d == {"n": "80"}


# -- consistency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?consistency=local", "?consistency=linearizable", "?max_staleness=0.5"])
def test_reads(opened: Opened, query: str) -> None:
    """Every kind of read gives the value, and says when there is none."""
    d, client = opened
    d["k"] = "a"
    assert client.get(f"/kv/k{query}").text == "a"
    assert client.get(f"/kv/absent{query}").status_code == 404
    assert client.get(f"/kv{query}").json() == {"keys": ["k"], "next": None}


def test_reads_on_a_follower(tmp_path: Path) -> None:
    """On any node, a linearizable read has every write that returned anywhere; writes work on any node, too."""
    with cluster(tmp_path) as nodes, client_of(nodes[0]) as a, client_of(nodes[1]) as b, client_of(nodes[2]) as c:
        clients = [a, b, c]
        for number in range(30):
            writer, reader = clients[number % 3], clients[(number // 3) % 3]
            assert writer.put("/kv/k", content=str(number)).status_code == 204
            assert reader.get("/kv/k?consistency=linearizable").text == str(number)
            assert reader.get("/kv/k?max_staleness=0").text == str(number)


@pytest.mark.parametrize(
    "query",
    [
        "consistency=strong", "consistency=", "max_staleness=-1", "max_staleness=nan", "max_staleness=inf",
        "max_staleness=1_0", "max_staleness=", "timeout=61", "timeout=x", "timeout=-0.1", "timeout=1&timeout=1",
        "consistancy=linearizable", "consistency=linearizable&max_staleness=1", "timeout", "%ff=1", "timeout=%ff",
        "&".join(["timeout=1"] * 40), "timeout=" + "9" * 5000, "timeout=\u0661",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/kv/k", "/kv"])
def test_parameters_that_make_no_sense(opened: Opened, path: str, query: str) -> None:
    """A parameter that is wrong, unknown or given twice is refused, not ignored."""
    _, client = opened
    assert len(assert_problem(client.get(f"{path}?{query}"), "bad-argument", 400)) < 200


@pytest.mark.parametrize("path", ["/status", "/members"])
def test_no_parameters(opened: Opened, path: str) -> None:
    """What takes no parameter says so."""
    assert "none" in assert_problem(opened[1].get(f"{path}?x=1"), "bad-argument")


def test_writes_take_a_timeout_only(opened: Opened) -> None:
    """A write that asks for a consistency is refused: there is one."""
    d, client = opened
    for method in ("PUT", "DELETE"):
        assert_problem(client.request(method, "/kv/k?consistency=local"), "bad-argument")
        assert client.request(method, "/kv/k?timeout=5", content="v").is_success
    assert d == {}


# -- listings -------------------------------------------------------------------------------------------------------


def test_listing(opened: Opened) -> None:
    """The keys with a prefix, in the order of their code points, page by page; what has no URL is left out."""
    d, client = opened
    texts = ["b", "a/2", "a/1", "", "a", "ä", "𝄞", "￿", "a\n"]
    d.update(dict.fromkeys([*texts, 7, b"a", ("a",), None, "a\ud800"], 1))
    assert client.get("/kv").json() == {"keys": sorted(texts), "next": None}
    assert client.get("/kv?prefix=a").json()["keys"] == ["a", "a\n", "a/1", "a/2"]
    assert client.get("/kv?prefix=a%2F").json()["keys"] == ["a/1", "a/2"]
    assert client.get("/kv?prefix=zz").json() == {"keys": [], "next": None}
    assert client.get("/kv?prefix=a&limit=2").json() == {"keys": ["a", "a\n"], "next": "a\n"}
    assert client.get("/kv?prefix=a&limit=2&after=a%0A").json() == {"keys": ["a/1", "a/2"], "next": None}
    assert client.get("/kv?after=%F0%9D%84%9E").json() == {"keys": [], "next": None}
    assert client.get("/kv").headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_pages_join_up(opened: Opened, limit: int) -> None:
    """To follow `next` to its end gives each key once."""
    d, client = opened
    d.update({f"key{number}": 1 for number in range(50)})
    found: list[str] = []
    parameters = {"limit": str(limit)}
    while True:
        page = client.get("/kv", params=parameters).json()
        assert len(page["keys"]) <= limit
        found += page["keys"]
        if page["next"] is None:
            break
        parameters["after"] = page["next"]
    assert found == sorted(d)


def test_a_page_is_never_huge(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of long keys ends early, with a cursor, and pages of one key go on."""
    d, client = opened
    monkeypatch.setattr(app_module, "MAX_PAGE_BYTES", 1000)
    d.update({f"{number}" * 600: 1 for number in range(5)})
    first = client.get("/kv").json()
    assert [key[0] for key in first["keys"]] == ["0", "1"]
    assert [key[0] for key in client.get("/kv", params={"after": first["next"]}).json()["keys"]] == ["2", "3"]
    d.update({f"z{number}" + "ä" * 300: 1 for number in range(5)})
    assert len(client.get("/kv?prefix=z").json()["keys"]) == 2, "bytes count, not characters"


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1.0", "\u0663", "9" * 5000])
def test_limits_of_a_page(opened: Opened, limit: str) -> None:
    """A limit that is no number from 1 to 1,000 is refused."""
    assert "limit" in assert_problem(opened[1].get("/kv", params={"limit": limit}), "bad-argument")


# -- the node -------------------------------------------------------------------------------------------------------


def test_status_and_members(opened: Opened) -> None:
    """/status is what `status()` says, and /members what `members()` says."""
    d, client = opened
    assert d.wait_ready()  # from here on nothing changes
    assert client.get("/status").json() == json.loads(json.dumps(vars(d.status())))
    [member] = client.get("/members").json()["members"]
    assert member["address"] == "local" and member["is_leader"] and member["voter"]
    assert set(member) == set(vars(d.members()[0]))


def test_probes(opened: Opened) -> None:
    """A node that runs is healthy, and with a leader it is ready; one that has stopped is neither."""
    d, client = opened
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    d.close()
    assert_problem(client.get("/healthz"), "closed", 503)
    assert_problem(client.get("/readyz"), "closed", 503)
    assert client.get("/status").json()["role"] == "stopped"
    assert client.get("/metrics").status_code == 200


def test_a_closed_dict(opened: Opened) -> None:
    """Over a dict that was closed, everything says so."""
    d, client = opened
    d.close()
    for method in ("GET", "PUT", "DELETE"):
        response = client.request(method, "/kv/k", content=b"")
        assert "closed" in assert_problem(response, "closed", 503)
        assert "Retry-After" not in response.headers
    assert_problem(client.get("/kv"), "closed", 503)


def test_without_a_quorum(tmp_path: Path) -> None:
    """Without a majority, what needs one is 503 with Retry-After, in the time given; local reads and health go on."""
    addresses = free_addresses(2)
    with open_member(tmp_path, addresses, 0) as d, client_of(d) as client:
        for method, path, name in (
            ("PUT", "/kv/k?timeout=0.1", "not-committed"),
            ("DELETE", "/kv/k?timeout=0", "not-committed"),
            ("GET", "/kv/k?consistency=linearizable&timeout=0.1", "read-timeout"),
            ("GET", "/kv/k?max_staleness=1&timeout=0.1", "read-timeout"),
            ("GET", "/kv?consistency=linearizable&timeout=0.1", "read-timeout"),
            ("GET", "/readyz", "not-ready"),
        ):
            response = client.request(method, path, content=b"v")
            assert_problem(response, name, 503)
            assert response.headers["Retry-After"] == "1"
        assert client.get("/kv/k").status_code == 404
        assert client.get("/healthz").status_code == 200
        assert client.get("/kv").json() == {"keys": [], "next": None}


def test_an_unknown_outcome(tmp_path: Path) -> None:
    """A write that was sent, and that nobody confirmed in time, is 504 without Retry-After."""
    with cluster(tmp_path, 2, options=Options(heartbeat=0.5, election_timeout=4.0)) as nodes:
        wait_until(lambda: any(node.status().is_leader for node in nodes), "there is a leader")
        leading, other = sorted(nodes, key=lambda node: not node.status().is_leader)
        leading["session"] = "open"
        with client_of(leading) as client:
            other.close()
            response = client.put("/kv/k?timeout=0.3", content="v")
            assert_problem(response, "outcome-unknown", 504)
            assert "Retry-After" not in response.headers


def test_every_error_has_its_answer() -> None:
    """Each public error has an answer that says as much: 503 is surely not done, 504 may be."""
    names = {
        "NotCommitted": "not-committed", "RemovedError": "removed", "OutcomeUnknown": "outcome-unknown",
        "ReadTimeout": "read-timeout", "ClosedError": "closed", "StorageError": "storage",
        "EncodingError": "bad-argument", "DecodingError": "undecodable", "SecurityError": "internal",
        "ReplidictError": "internal", "TransactionConflict": "transaction-conflict",
        "HistoryLost": "history-lost", "LeaseLost": "not-committed", "LockLost": "not-committed",
        "LockTimeout": "internal",  # nothing over HTTP waits for a lock
    }  # fmt: skip
    public = vars(replidict).values()
    errors = [each for each in public if isinstance(each, type) and issubclass(each, replidict.ReplidictError)]
    assert {error.__name__ for error in errors} == set(names)
    for error in errors:
        problem = problem_of(error("why"))
        name = names[error.__name__]
        assert problem.body == {
            "type": f"urn:replidict:{name}", "title": PROBLEMS[name][1], "status": PROBLEMS[name][0], "detail": "why",
        }  # fmt: skip
        assert ("Retry-After" in problem.headers) == (name in ("not-committed", "read-timeout"))


# -- refusals of the framework --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/kv/k", "DELETE, GET, HEAD, POST, PUT"),
        ("/kv", "GET, HEAD"),
        ("/status", "GET, HEAD"),
        ("/metrics", "GET, HEAD"),
    ],
)
@pytest.mark.parametrize("method", ["COPY", "PATCH", "OPTIONS", "TRACE", "BREW", "get"])
def test_bad_methods(opened: Opened, path: str, methods: str, method: str) -> None:
    """A method that a path has not is 405, with those it has."""
    d, client = opened
    response = client.request(method, path, content=b"x")
    if method != "get":  # httpx sends it in capitals
        assert_problem(response, None, 405)
        assert response.headers["Allow"] == methods
    assert d == {}


@pytest.mark.parametrize("path", ["/page", "/kv2", "/nope", "/status/", "/KV/k", "/kvx/k"])
def test_bad_paths(opened: Opened, path: str) -> None:
    """A path that is not there is 404, and says which are."""
    detail = assert_problem(opened[1].get(path), None, 404)
    assert all(route in detail for route in ROUTES)


def test_an_error_nobody_foresaw(tmp_path: Path) -> None:
    """An internal error is 500 without a word about the inside."""
    with ReplicatedDict[Any, Any](tmp_path / "d", codec=Broken()) as d:
        client = TestClient(asgi(d), base_url="http://localhost", raise_server_exceptions=False)
        with client:
            assert "inside" not in assert_problem(client.put("/kv/k", content="v"), "internal", 500)
            samples = {
                sample.labels["status"]: sample.value
                for family in text_string_to_metric_families(client.get("/metrics").text)
                for sample in family.samples
                if sample.name == "replidict_http_requests_total"
            }
    assert samples == {"500": 1.0}


class Broken:
    """A codec with a defect."""

    def encode(self, value: object, /) -> bytes:
        raise RuntimeError("a word about the inside")

    def decode(self, data: bytes, /) -> object:
        return data


# -- tokens and hosts -----------------------------------------------------------------------------------------------

TOKEN = "correct-horse-battery"


def test_the_token(tmp_path: Path) -> None:
    """With a token, all but the probes need it, exactly it, and say how to send it."""
    with store(tmp_path, token=TOKEN) as (d, client):
        right = {"Authorization": f"Bearer {TOKEN}"}
        for path in ("/kv/k", "/kv", "/status", "/members", "/metrics", "/nope", "/healthz/"):
            assert client.get(path).headers["WWW-Authenticate"] == 'Bearer realm="replidict"'
            for wrong in ("Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, ""):
                assert_problem(client.get(path, headers={"Authorization": wrong}), "bad-token", 401)
            for token in (TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 8):
                response = client.get(path, headers={b"Authorization": f"Bearer {token}".encode()})
                assert token not in assert_problem(response, "bad-token", 401)
                assert "invalid_token" in response.headers["WWW-Authenticate"]
        assert_problem(client.put("/kv/k", content="v"), "bad-token", 401)
        assert d == {}
        assert client.put("/kv/k", content="v", headers=right).status_code == 204
        assert client.get("/kv/k", headers={"Authorization": f"bearer  {TOKEN} "}).text == "v"
        assert client.get("/kv/k", headers=right | {"Host": "store.example"}).text == "v"
        for probe in ("/healthz", "/readyz"):
            assert client.get(probe).status_code == 200


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("localhost", True), ("localhost:8001", True), ("127.0.0.1:8001", True), ("127.1.2.3", True),
        ("[::1]:8001", True), ("[::1]", True), ("LOCALHOST:1", True), ("evil.example", False),
        ("evil.example:8001", False), ("localhost.evil.example", False), ("10.0.0.1:8001", False), ("", False),
        ("localhost:8001:evil.example", False),
    ],
)  # fmt: skip
def test_without_a_token_only_loopback_is_meant(opened: Opened, host: str, good: bool) -> None:
    """Without a token, a request that names another host is refused: a browser may have been led here."""
    d, client = opened
    d["k"] = "v"
    for path in ("/kv/k", "/healthz"):
        response = client.get(path, headers={"Host": host})
        if good:
            assert response.status_code == 200
        else:
            assert_problem(response, "not-loopback", 421)


# -- metrics --------------------------------------------------------------------------------------------------------


def samples_of(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics(opened: Opened) -> None:
    """The figures are those of `status()` and of the requests that were answered."""
    d, client = opened
    for number in range(3):
        client.put(f"/kv/{number}", content="v")
    client.get("/kv/nope")
    samples, status = samples_of(client), d.status()
    for name in ("term", "commit_index", "applied_index", "revision", "keys", "log_entries", "log_bytes"):
        assert samples[f"replidict_{name}", ()] == getattr(status, name), name
    assert samples["replidict_role", (("role", "leader"),)] == 1
    assert sum(value for (name, _), value in samples.items() if name == "replidict_role") == 1
    assert samples["replidict_has_leader", ()] == 1

    def labels(method: str, status: int) -> tuple[tuple[str, str], ...]:
        return (("method", method), ("route", "/kv/{key}"), ("status", str(status)))

    assert samples["replidict_http_requests_total", labels("PUT", 204)] == 3
    assert samples["replidict_http_requests_total", labels("GET", 404)] == 1
    assert samples["replidict_http_request_seconds_count", labels("PUT", 0)[:2]] == 3
    assert samples["replidict_http_requests_under_way", ()] == 1  # the question itself


def test_labels_are_few(opened: Opened) -> None:
    """Whatever is asked for, the figures take no more labels: no key, path or method of a client's choice is one."""
    _, client = opened
    for letter in string.ascii_letters:
        for path in (f"/kv/{letter}", f"/{letter}", f"/kv?prefix={letter}"):
            client.get(path)
            client.request(f"{letter}X", path)
    names = {labels for name, labels in samples_of(client) if name == "replidict_http_requests_total"}
    assert len(names) <= 6


def test_every_route_and_method_is_counted_by_its_name(opened: Opened) -> None:
    """The metrics know every route and every method there is."""
    found = [route for route in asgi(opened[0]).routes if isinstance(route, Route)]
    routes = {route.path for route in found}
    assert {method for route in found for method in route.methods or ()} <= METHODS
    assert {path for path in routes if "{" not in path} == ROUTES


def test_metrics_of_two_stores_are_apart(tmp_path: Path) -> None:
    """Two stores in one process do not mix their figures."""
    with store(tmp_path / "a") as (_, one), store(tmp_path / "b") as (_, other):
        one.get("/status")
        assert not [name for name, _ in samples_of(other) if name == "replidict_http_requests_total"]


# -- against a model ------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(["a", "b", "a/b", "", "ä"])
BODIES = st.binary(max_size=4)


class Model(RuleBasedStateMachine):
    """The store does what a dict of (body, revision) does."""

    client: TestClient

    def __init__(self) -> None:
        super().__init__()
        for key in self.client.get("/kv").json()["keys"]:
            self.client.delete(path_of(key))
        self.model: dict[str, tuple[bytes, str]] = {}
        self.old = ['"0"']

    def _remember(self, key: str, body: bytes) -> None:
        tag = self.client.get(path_of(key)).headers["ETag"]
        assert tag not in self.old
        self.old.append(tag)
        self.model[key] = body, tag

    @rule(key=KEYS, body=BODIES)
    def put(self, key: str, body: bytes) -> None:
        response = self.client.put(path_of(key), content=body)
        assert response.status_code == 204
        self._remember(key, body)
        assert response.headers["ETag"] == self.model[key][1]

    @rule(key=KEYS, body=BODIES)
    def add(self, key: str, body: bytes) -> None:
        response = self.client.put(path_of(key), content=body, headers={"If-None-Match": "*"})
        assert response.status_code == (412 if key in self.model else 201)
        if key not in self.model:
            self._remember(key, body)

    @rule(key=KEYS, body=BODIES, data=st.data())
    def replace(self, key: str, body: bytes, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from([*self.old, *(tag for _, tag in self.model.values())]))
        response = self.client.put(path_of(key), content=body, headers={"If-Match": tag})
        matches = key in self.model and self.model[key][1] == tag
        assert response.status_code == (204 if matches else 412)
        if matches:
            self._remember(key, body)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.client.delete(path_of(key)).status_code == (204 if self.model.pop(key, None) else 404)

    @rule(key=KEYS, query=st.sampled_from(["", "?consistency=linearizable", "?max_staleness=0"]), data=st.data())
    def get(self, key: str, query: str, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(self.old))
        response = self.client.get(path_of(key) + query, headers={"If-None-Match": tag})
        if key not in self.model:
            assert response.status_code == 404
        elif self.model[key][1] == tag:
            assert response.status_code == 304
        else:
            assert (response.status_code, response.content) == (200, self.model[key][0])
            assert response.headers["ETag"] == self.model[key][1]

    @rule(prefix=st.sampled_from(["", "a", "a/", "x"]), limit=st.integers(1, 3), after=st.none() | KEYS)
    def list(self, prefix: str, limit: int, after: str | None) -> None:
        parameters = {"prefix": prefix, "limit": str(limit)} | ({} if after is None else {"after": after})
        page = self.client.get("/kv", params=parameters).json()
        fitting = sorted(key for key in self.model if key.startswith(prefix) and (after is None or key > after))
        assert page["keys"] == fitting[:limit]
        assert page["next"] == (fitting[limit - 1] if len(fitting) > limit else None)

    @invariant()
    def same_keys(self) -> None:
        assert self.client.get("/kv").json()["keys"] == sorted(self.model)


def test_against_a_model(opened: Opened) -> None:
    """Any sequence of PUT, DELETE, conditions, reads and listings does what the same does to a plain dict."""

    class Bound(Model):
        client = opened[1]

    run_state_machine_as_test(Bound, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))

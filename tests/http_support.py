"""The store over HTTP for tests: an app over a dict, called without a network, and what every refusal looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.testclient import TestClient

from replidict import Options, ReplicatedDict
from replidict.http.app import asgi
from replidict.http.problems import PROBLEMS
from tests.clusters import Dict

BASE = "http://localhost:8001"


def path_of(key: str) -> str:
    """Where a key is. A lone dot is escaped as well: clients resolve it."""
    return "/kv/" + quote(key, safe="").replace(".", "%2E")


@contextmanager
def client_of(d: Dict, *, token: str | None = None) -> Iterator[TestClient]:
    """A client of the app over this dict."""
    with TestClient(asgi(d, token=token), base_url=BASE, follow_redirects=False) as client:
        yield client


@contextmanager
def store(
    root: Path,
    *,
    token: str | None = None,
    options: Options = Options(durability="process"),  # noqa: B008 -- frozen
) -> Iterator[tuple[Dict, TestClient]]:
    """A dict of its own, and a client of the app over it."""
    with (
        ReplicatedDict[Any, Any](root / "d", options=options) as d,
        client_of(d, token=token) as client,
    ):
        yield d, client


def assert_problem(response: Any, name: str | None, status: int | None = None) -> str:
    """The answer is a problem in the form of RFC 9457, of this type; returns its detail."""
    body = response.json()
    assert response.headers["Content-Type"] == "application/problem+json", response.text
    if name is None:
        assert body["type"] == "about:blank"
    else:
        assert body["type"] == f"urn:replidict:{name}", body
        assert (body["status"], body["title"]) == PROBLEMS[name]
    assert response.status_code == body["status"] == (status or body["status"]), body
    assert set(body) - ({"keys"} if name == "transaction-conflict" else set()) == {"type", "title", "status", "detail"}
    assert isinstance(body["detail"], str) and body["detail"]
    return str(body["detail"])

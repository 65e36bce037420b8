"""Expiry and locks over HTTP and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from replidict import ReplicatedDict
from replidict.command.main import main
from tests.clusters import free_addresses, wait_until
from tests.http_support import assert_problem, client_of


def test_a_ttl_over_http(tmp_path: Path) -> None:
    """PUT with `ttl=`, with and without a condition, has the key go; GET says in how long; a PUT without it makes the
    key permanent; what is no ttl is refused."""
    with ReplicatedDict[str, str](tmp_path / "n") as d, client_of(d) as client:
        assert client.put("/kv/k?ttl=900", content="v").status_code == 204
        left = float(client.get("/kv/k").headers["Expires-In"])
        assert 800 < left <= 900.1
        assert client.put("/kv/k", content="v").status_code == 204
        etag = client.get("/kv/k").headers["ETag"]
        assert "Expires-In" not in client.get("/kv/k").headers
        assert client.put("/kv/k?ttl=900", content="w", headers={"If-Match": etag}).status_code == 204
        assert d.ttl("k") is not None
        assert client.put("/kv/new?ttl=0.2", content="w", headers={"If-None-Match": "*"}).status_code == 201
        wait_until(lambda: client.get("/kv/new").status_code == 404, "it is gone")
        for wrong in ("0", "-1", "x", "inf", "nan"):
            assert_problem(client.put(f"/kv/k?ttl={wrong}", content="v"), "bad-argument", 400)


def test_locks_over_http(tmp_path: Path) -> None:
    """GET /locks tells who holds what, and the figures count leases, locks, waiters and what has expired."""
    with ReplicatedDict[str, str](tmp_path / "n") as d, client_of(d) as client:
        assert client.get("/locks").json() == {"locks": []}
        with d.lock("report", info="nightly") as held:
            (lock,) = client.get("/locks").json()["locks"]
            assert (lock["name"], lock["info"], lock["token"], lock["waiters"]) == ("report", "nightly", held.token, 0)
            d.set("k", "v", ttl=0.1)
            wait_until(lambda: "k" not in d, "it is gone")
            page = client.get("/metrics").text
        for line in ("replidict_leases 1.0", "replidict_locks 1.0", "replidict_lock_waiters 0.0"):
            assert line in page
        assert "replidict_expired_total 1.0" in page
        assert client.get("/status").json()["locks"] == 0


@pytest.fixture
def address() -> str:
    return free_addresses(1)[0]


def test_locks_and_ttls_by_the_command(tmp_path: Path, address: str) -> None:
    """`locks` lists holders, `break-lock` takes a lock away by its token, and by no other; `set --ttl` has a key go."""
    with ReplicatedDict[str, str](tmp_path / "n", address=address) as d:
        d.wait_ready(60)

        def run(*arguments: str) -> tuple[int, str]:
            done = CliRunner().invoke(main, [*arguments, "--node", address])
            return done.exit_code, done.output

        lock = d.lock("report", info="nightly")
        assert lock.acquire()
        assert lock.held is not None
        token = lock.held.token
        status, output = run("locks")
        assert status == 0
        assert all(word in output for word in ("report", "nightly", str(token)))
        (listed,) = json.loads(run("locks", "--json")[1])["locks"]
        assert listed["token"] == token
        assert run("break-lock", "report", str(token + 1))[0] == 1
        assert run("break-lock", "report", str(token))[0] == 0
        assert lock.held.lost.wait(60)
        assert run("set", "k", "v", "--ttl", "900")[0] == 0
        assert 800 < (d.ttl("k") or 0) <= 900.1
        assert run("set", "k", "v", "--ttl", "900", "--if-absent")[0] == 1
        assert run("set", "other", "v", "--ttl", "900", "--if-absent")[0] == 0
        revision = d.versioned("other")
        assert revision is not None
        assert run("set", "other", "w", "--ttl", "0.2", "--if-revision", str(revision.revision))[0] == 0
        wait_until(lambda: "other" not in d, "it is gone")
        assert run("set", "k", "v")[0] == 0
        assert d.ttl("k") is None
        assert run("set", "k", "v", "--ttl", "0")[0] == 2

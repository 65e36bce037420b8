"""What systemd hears of `replidict serve` (`Type=notify`), at a real socket of datagrams, as systemd has one."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replidict.http.service_manager import tell
from tests.clusters import free_addresses
from tests.serving import Serve, all_closed, code


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """What systemd listens on for the messages of a service."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(address.replace("@", "\0", 1))
        bound.settimeout(60)
        yield bound


def heard(bound: socket.socket) -> list[str]:
    return bound.recv(4096).decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@replidict{tmp_path}" if request.param == "abstract" else str(tmp_path / "notify")


def test_news_are_one_message(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """News told together arrive together, a line each, at a socket with a path and at one with an abstract name."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with manager(address) as bound:
        tell("READY=1", "STATUS=all is well")
        assert heard(bound) == ["READY=1", "STATUS=all is well"]


def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A process that no manager has started says nothing, and complains about nothing."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell("READY=1")
    assert caplog.records == []


def test_a_manager_that_is_gone_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket at which nobody listens is logged, and raises nothing."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING):
        tell("READY=1")
    assert "can't be told READY=1" in caplog.text


def test_a_node_says_when_it_is_ready_and_when_it_stops(address: str, tmp_path: Path) -> None:
    """READY=1 comes when HTTP answers, though the other founders are missing; STOPPING=1 comes after SIGTERM."""
    node, missing, http = free_addresses(3)
    arguments = ["--addr", node, "--http", http, "--peer", missing]
    serve = Serve(tmp_path, "node1", *arguments, environment={"NOTIFY_SOCKET": address})
    with manager(address) as bound, all_closed([serve]):
        serve.start()
        ready = heard(bound)
        assert ready[0] == "READY=1"
        assert ready[1].startswith(f"STATUS=HTTP on http://{http}")
        assert code(f"http://{http}/healthz") == 200
        assert code(f"http://{http}/readyz") == 503
        assert serve.end(signal.SIGTERM) == 0
        assert heard(bound)[0] == "STOPPING=1"

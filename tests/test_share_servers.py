"""Servers that fork: the set-ups of docs/processes.md, as they are run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from replidict.transport import unix
from tests.clusters import free_addresses, wait_until

APPLICATION = """
import os
from replidict import Options, ReplicatedDict

d = ReplicatedDict({path!r}, share=True, options=Options(durability="process"))

def app(environ, start_response):
    found = d.increment("requests", timeout=20.0)
    assert d["requests"] >= found
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{found}} {{os.getpid()}}".encode()]
"""

REQUESTS = 60


@pytest.mark.parametrize(
    "how",
    [
        ["--worker-class", "sync"],
        ["--worker-class", "gthread", "--threads", "4", "--preload"],
        ["--worker-class", "sync", "--max-requests", "10", "--preload"],
        ["--worker-class", "gthread", "--max-requests", "10"],
    ],
    ids=" ".join,
)
def test_gunicorn(tmp_path: Path, how: list[str]) -> None:
    """Each request counts once, whichever worker takes it, and workers that are recycled or killed cost none; when the
    server is told to end, it does, and leaves nothing."""
    (address,) = free_addresses(1)
    (tmp_path / "application.py").write_text(APPLICATION.format(path=str(tmp_path / "d")))
    command = [sys.executable, "-m", "gunicorn", "--workers", "3", "--bind", address, *how, "application:app"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        sums, pids = [], []
        wait_until(lambda: _listening(address), "it takes requests", 60)
        for number in range(REQUESTS):
            found, pid = _get(address)
            sums.append(found)
            pids.append(pid)
            if number in (20, 40):
                os.kill(pid, signal.SIGKILL)
        assert sums == list(range(1, REQUESTS + 1))
        assert len(set(pids)) > 1
        server.terminate()
        assert server.wait(60) == 0
        assert not (tmp_path / "d" / unix.NAME).exists()
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        server.kill()
        server.wait()


def _listening(address: str) -> bool:
    with socket.socket() as sock:
        host, _, port = address.rpartition(":")
        return sock.connect_ex((host, int(port))) == 0


def _get(address: str) -> tuple[int, int]:
    with urllib.request.urlopen(f"http://{address}/", timeout=30) as response:
        found, pid = response.read().split()
    return int(found), int(pid)

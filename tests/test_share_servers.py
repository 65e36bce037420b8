"""Servers that fork: the set-ups of docs/processes.md, as they are run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replidict import Options, ReplicatedDict, ReplidictError
from replidict.transport import unix
from tests.clusters import free_addresses, wait_until

APPLICATION = """
import os
from replidict import Options, ReplicatedDict, ReplidictError

d = ReplicatedDict("d", share={share}, options=Options(durability="process"))

def wsgi(environ, start_response):
    found = d.increment("requests", timeout=20.0)
    assert d["requests"] >= found
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{found}} {{os.getpid()}}".encode()]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        d.close()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    found = await d.aio.increment("requests", timeout=20.0)
    assert d["requests"] >= found
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": f"{{found}} {{os.getpid()}}".encode()}})
"""

TASKS = """
from celery import Celery
from replidict import Options, ReplicatedDict, ReplidictError

app = Celery("tasks", broker="filesystem://")
d = ReplicatedDict("d", share=True, options=Options(durability="process"))

@app.task(name="count")
def count():
    assert d.increment("tasks", timeout=20.0) <= d["tasks"]
"""

REQUESTS = 60
UVICORN = [sys.executable, "-m", "uvicorn"]
READY = "takes signals"
"""What the processes of uWSGI say when they do; before, they ignore them."""
UWSGI = Path(sys.executable).parent / "pyuwsgi"
needs_uwsgi = pytest.mark.skipif(
    not UWSGI.exists(), reason="pyuwsgi is not installed: it has wheels for Linux and macOS"
)


def gunicorn(*how: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "--workers", "3", "--bind", "ADDRESS", *how]


def uwsgi(*how: str) -> list[str]:
    hooks = ["--hook-master-start", f"print:{READY}", "--hook-accepting", f"print:{READY}"]
    return [str(UWSGI), "--http-socket", "ADDRESS", "--master", "--processes", "3", "--die-on-term", *hooks, *how]


SERVERS = {
    "gunicorn sync": gunicorn("--worker-class", "sync", "application:wsgi"),
    "gunicorn gthread, preload": gunicorn("--threads", "4", "--preload", "application:wsgi"),
    "gunicorn sync, recycled, preload": gunicorn("--max-requests", "10", "--preload", "application:wsgi"),
    "gunicorn gthread, recycled": gunicorn("--worker-class", "gthread", "--max-requests", "10", "application:wsgi"),
    "gunicorn uvicorn": gunicorn("--worker-class", "uvicorn_worker.UvicornWorker", "application:asgi"),
    "uvicorn": [*UVICORN, "--workers", "3", "--host", "HOST", "--port", "PORT", "application:asgi"],
    "uWSGI": uwsgi("--module", "application:wsgi"),
}


@contextmanager
def serving(root: Path, command: list[str], *, share: bool = True) -> Iterator[str]:
    """The address of a server with the application; it is told to end, does so, and leaves no socket."""
    (address,) = free_addresses(1)
    host, _, port = address.rpartition(":")
    (root / "application.py").write_text(APPLICATION.format(share=share))
    named = {"ADDRESS": address, "HOST": host, "PORT": port}
    with running(root, [named.get(word, word) for word in command]):
        wait_until(lambda: _listening(address), "it takes requests", 60)
        if command[0] == str(UWSGI):
            wait_until(lambda: (root / "log").read_text().count(f"\n{READY}") == 4, "it takes signals", 60)
        yield address


@contextmanager
def running(root: Path, command: list[str]) -> Iterator[None]:
    """A program, which is told to end, and does."""
    with (root / "log").open("wb") as log:
        program = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
    try:
        yield
        program.terminate()
        assert program.wait(60) in (0, -signal.SIGTERM)
    except BaseException:
        print((root / "log").read_text())
        raise
    finally:
        program.kill()
        program.wait()


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs_uwsgi if "uWSGI" in name else ()) for name in SERVERS])
def test_server(tmp_path: Path, name: str) -> None:
    """Each request counts once, whichever worker takes it, and workers that are recycled or killed cost none; when the
    server is told to end, it does, and leaves nothing."""
    with serving(tmp_path, SERVERS[name]) as address:
        sums, pids = [], []
        for number in range(REQUESTS):
            found, pid = _get(address)
            sums.append(found)
            pids.append(pid)
            if number in (20, 40):
                os.kill(pid, signal.SIGKILL)
        assert sums == list(range(1, REQUESTS + 1))
        assert len(set(pids)) > 1
    assert not (tmp_path / "d" / unix.NAME).exists()


@needs_uwsgi
def test_uwsgi_without_share(tmp_path: Path) -> None:
    """A dict that the master of uWSGI has opened is the master's: the workers say so, and end when they are told to."""
    refused = pytest.raises((urllib.error.URLError, ConnectionError, ValueError))
    with serving(tmp_path, uwsgi("--module", "application:wsgi"), share=False) as address, refused:
        _get(address)
    assert "ClosedError: this ReplicatedDict belongs to the parent process" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("share", [False, True])
def test_uwsgi_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool) -> None:
    """Where uWSGI runs no threads (old releases must be told to), a dict says what to give, and lets go of its
    directory."""
    with monkeypatch.context() as patch, pytest.raises(ReplidictError, match="--enable-threads"):
        patch.setitem(sys.modules, "uwsgi", SimpleNamespace(has_threads=0))
        ReplicatedDict[Any, Any](tmp_path / "d", share=share)["a"] = 1
    with ReplicatedDict[Any, Any](tmp_path / "d", share=share) as d:
        d["a"] = 1


@pytest.mark.parametrize("share", [False, True])
def test_before_uwsgi_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool) -> None:
    """In the process from which uWSGI forks its workers a dict starts no thread before it is used, and then it says
    what that means."""
    master = SimpleNamespace(has_threads=1, worker_id=lambda: 0, masterpid=os.getpid, numproc=3)
    monkeypatch.setitem(sys.modules, "uwsgi", master)
    before = threading.active_count()
    with ReplicatedDict[Any, Any](tmp_path / "d", share=share):
        assert threading.active_count() == before
    with ReplicatedDict[Any, Any](tmp_path / "d", share=share) as d:
        with pytest.warns(RuntimeWarning, match="--lazy-apps"):
            d["a"] = 1
        assert d["a"] == 1


def test_celery(tmp_path: Path) -> None:
    """Tasks in the children of a worker of Celery, and a program beside them, use one dict."""
    (tmp_path / "tasks.py").write_text(TASKS)
    for folder in ("data_in", "data_out", "control"):
        (tmp_path / folder).mkdir()
    celery = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "2"]
    send = (
        "from celery import Celery\n"
        "folders = {'data_folder_in': 'data_out', 'data_folder_out': 'data_in'}\n"
        "app = Celery(broker='filesystem://', broker_transport_options=folders)\n"
        "for _ in range(20): app.send_task('count', ignore_result=True)"
    )
    with running(tmp_path, celery):
        wait_until(lambda: (tmp_path / "d" / unix.NAME).exists(), "the worker has opened the dict", 60)
        subprocess.run([sys.executable, "-c", send], cwd=tmp_path, check=True, timeout=60)
        with ReplicatedDict[Any, Any](tmp_path / "d", share=True, options=Options(durability="process")) as d:
            wait_until(lambda: d.get("tasks") == 20, "all tasks are done", 60)
            assert d.status().sharing == "attached"
    assert not (tmp_path / "d" / unix.NAME).exists()


def _listening(address: str) -> bool:
    with socket.socket() as sock:
        host, _, port = address.rpartition(":")
        return sock.connect_ex((host, int(port))) == 0


def _get(address: str) -> tuple[int, int]:
    with urllib.request.urlopen(f"http://{address}/", timeout=30) as response:
        found, pid = response.read().split()
    return int(found), int(pid)

"""The parent's side of the processes under test: started, spoken to, killed, and always ended, by their process ids."""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

PATIENCE = 240.0
"""Seconds after which an answer will never come."""


class Failed(Exception):
    """A process under test ended, or could not do what it was told."""


def free_addresses(count: int) -> list[str]:
    """Loopback addresses with ports that are free now, below those that systems give to outgoing connections."""
    with ExitStack() as stack:
        found: list[str] = []
        while len(found) < count:
            each, port = stack.enter_context(socket.socket()), random.randrange(15000, 32000)
            with suppress(OSError):
                each.bind(("127.0.0.1", port))
                found.append(f"127.0.0.1:{port}")
        return found


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"waited {timeout:g} s in vain until {what}")
        time.sleep(0.01)


_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a new process, before it becomes a foreign program: have Linux kill it when this one dies, however it does."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A process of `child.py`, or of a program that takes the same lines: does jobs, several at a time."""

    def __init__(self, kind: str, config: dict[str, Any], program: Path | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.child"] if program is None else [str(program)]
        self._popen = subprocess.Popen(
            [*command, kind, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the parent, which ends everything in order
        )
        self.pid = self._popen.pid
        self.greeting: Future[dict[str, Any]] = Future()
        self._mutex = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._number = 0
        self._over = False
        self._reader = threading.Thread(target=self._read, name=f"reader of {self.pid}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                break  # killed while it wrote
            if not self.greeting.done():
                self.greeting.set_result(message)
                continue
            with self._mutex:
                future = self._waiting.pop(message["id"])
            if "error" in message:
                future.set_exception(Failed(message["error"]))
            else:
                future.set_result(message["value"])
        with self._mutex:
            self._over = True
            waiting = [*self._waiting.values(), *([] if self.greeting.done() else [self.greeting])]
        for each in waiting:
            each.set_exception(Failed(f"process {self.pid} ended"))

    def submit(self, job: str, **arguments: Any) -> Future[Any]:
        """Have a job done; the future gets its result, or `Failed`."""
        future: Future[Any] = Future()
        assert self._popen.stdin is not None
        with self._mutex:
            if self._over:
                future.set_exception(Failed(f"process {self.pid} ended"))
                return future
            self._number += 1
            self._waiting[self._number] = future
            try:
                self._popen.stdin.write(json.dumps({"id": self._number, "job": job, "arguments": arguments}) + "\n")
                self._popen.stdin.flush()
            except OSError:
                pass  # it is dead: the reader says so
        return future

    def call(self, job: str, **arguments: Any) -> Any:
        return self.submit(job, **arguments).result(PATIENCE)

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self._popen.kill()
        self._popen.wait()
        self._reader.join()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                pass  # what was not sent can't be any more


class Program:
    """A foreign program, such as an etcd member; what it says goes to a file."""

    def __init__(self, command: list[str], output: Path, cwd: Path | None = None) -> None:
        with output.open("ab") as file:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=cwd,
                preexec_fn=die_with_parent,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self._popen.kill()
        self._popen.wait()


def cpu_seconds(pid: int) -> float:
    """What the process has used of a processor, all threads, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

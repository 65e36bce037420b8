"""Processes that share one dict: each does what its test tells it, one call after the other."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from replidict import HistoryLost, Options, ReplicatedDict
from tests.clusters import Dict

QUICK = Options(durability="process")
WITHIN = 30.0
"""Seconds for what takes a moment on a machine that has nothing else to do."""


@pytest.fixture(scope="module", autouse=True)
def helpers_of_multiprocessing() -> None:
    """They are started once, and live as long as the interpreter."""
    multiprocessing.resource_tracker.ensure_running()
    multiprocessing.forkserver.ensure_running()


class Worker:
    """A process with a shared dict."""

    def __init__(self, method: str, path: Path, how: dict[str, Any]) -> None:
        context: Any = multiprocessing.get_context(method)
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, path, how), daemon=True)
        self._process.start()
        self._left = False
        other.close()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return int(self._process.pid)

    def begin(self, work: Callable[..., object], *arguments: object) -> None:
        """Have it call `work(d, *arguments)`."""
        self._pipe.send((work, arguments))

    def end(self) -> Any:
        """What that gave. Raises what it raised."""
        assert self._pipe.poll(WITHIN), "the worker does not answer"
        ended, result = self._pipe.recv()
        if not ended:
            raise result
        return result

    def do(self, work: Callable[..., object], *arguments: object) -> Any:
        """Have it call that, and wait for what it gives."""
        self.begin(work, *arguments)
        return self.end()

    def kill(self) -> None:
        """End it as `kill -9` does."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(WITHIN)

    def leave(self) -> None:
        """Have it close its dict and exit."""
        if self._left:
            return
        self._left = True
        if self._process.is_alive():
            try:
                self._pipe.send(None)
            except OSError:
                pass
            self._process.join(WITHIN)
        hung = self._process.is_alive()
        if hung:
            self.kill()
        self._pipe.close()
        self._process.close()
        assert not hung, "the worker did not exit"


def _serve(pipe: Connection, path: Path, how: dict[str, Any]) -> None:
    try:
        opened = ReplicatedDict[Any, Any](path, **{"share": True, "options": QUICK, **how})
    except BaseException as error:  # noqa: BLE001 -- told to the test
        pipe.send((False, _plain(error)))
        return
    with opened as d:
        pipe.send((True, None))
        while (asked := pipe.recv()) is not None:
            work, arguments = asked
            try:
                pipe.send((True, work(d, *arguments)))
            except BaseException as error:  # noqa: BLE001 -- told to the test
                traceback.print_exc()
                pipe.send((False, _plain(error)))


def _plain(error: BaseException) -> BaseException:
    error.__cause__ = error.__context__ = None
    return error


@contextmanager
def workers(path: Path, *methods: str, **how: Any) -> Iterator[list[Worker]]:
    """Processes that share the dict at `path`, started one after the other: the first of them runs the node."""
    started: list[Worker] = []
    try:
        for method in methods:
            started.append(Worker(method, path, how))
            started[-1].end()
        yield started
    finally:
        for worker in started:
            worker.leave()


def put(d: Dict, key: str, value: object) -> int:
    """Store a value."""
    return d.set(key, value)


def look(d: Dict, key: str) -> object:
    """This process's copy of a value."""
    return d.get(key)


def len_of(d: Dict) -> int:
    """How many keys are here?"""
    return len(d)


_watches: list[Any] = []


def begin_watch(d: Dict) -> None:
    """Watch all keys from now on."""
    _watches.append(d.watch())


def told(d: Dict) -> int | str:
    """How many changes that watch is told; or why not."""
    with _watches.pop() as watch:
        try:
            return sum(1 for _ in iter(lambda: watch.next(1.0), None))
        except HistoryLost as error:
            return type(error).__name__


def role(d: Dict) -> str | None:
    """Does it run the node?"""
    return d.status().sharing


def attached(d: Dict) -> tuple[int, ...]:
    """Who else uses the node?"""
    return d.status().attached


def count(d: Dict, key: str, times: int) -> list[int]:
    """Increment, and see that each is here when it returns and nothing goes back."""
    sums = []
    for _ in range(times):
        sums.append(int(d.increment(key, timeout=20.0)))
        seen = d[key]
        assert seen >= sums[-1], f"{key} is {seen} here after it was {sums[-1]}"
    return sums


def running(path: Path) -> int:
    """The process that holds the lock of a directory; 0: none."""
    inode = str(path.stat().st_ino)
    locks = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return next((int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].rpartition(":")[2] == inode), 0)

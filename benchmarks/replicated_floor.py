"""One replicated write and nothing else: the hops and the commits of a write on the leader of three, in plain Python.

A caller hands a message to the thread of the leader, which sends it to two followers, commits its own row while they
commit theirs, takes the first answer, and wakes the caller. There are no elections, terms, answers to retries, keys or
values: what a replicated write takes beyond this is what all of that costs. Each follower is a process
(`python -m benchmarks.replicated_floor PORT FILE`), which ends when its connection does.
"""

from __future__ import annotations

import os
import select
import socket
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import run_threads
from benchmarks.processes import ROOT, Program, cpu_seconds

NUMBER_BYTES = 16
MESSAGE_BYTES = 180
KEEP = 500
"""Rows after which the older ones go, as they do from a log."""

Commit = Callable[[bytes], None]


def commits_to(path: str) -> Commit:
    """What commits a row to a file, WAL and synchronous=FULL as replidict does; without a file, nothing."""
    if not path:
        return lambda data: None
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE log (idx INTEGER PRIMARY KEY, term INTEGER, data BLOB NOT NULL) STRICT")
    count = 0

    def commit(data: bytes) -> None:
        nonlocal count
        count += 1
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO log VALUES (?, 1, ?)", (count, data))
        connection.execute("COMMIT")
        if count % KEEP == 0:
            connection.execute("DELETE FROM log WHERE idx <= ?", (count - KEEP,))

    return commit


def follow(port: int, path: str) -> None:
    """Commit what comes, and answer with its number."""
    commit = commits_to(path)
    with socket.create_connection(("127.0.0.1", port)) as leader:
        leader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := leader.recv(MESSAGE_BYTES, socket.MSG_WAITALL):
            commit(data)
            leader.sendall(data[:NUMBER_BYTES])


class Leader:
    """The thread that the caller hands its messages to."""

    def __init__(self, followers: list[socket.socket], commit: Commit) -> None:
        self._followers, self._commit = followers, commit
        self._queue: deque[tuple[bytes, threading.Lock]] = deque()
        self._pending: dict[bytes, threading.Lock] = {}
        self._waking, self._wake = os.pipe()
        self._written = 0
        self._thread = threading.Thread(target=self._run, name="floor")
        self._thread.start()

    def write(self, _: str) -> None:
        """One write; returns when it is committed here or there, and acknowledged by one follower."""
        lock = threading.Lock()
        lock.acquire()
        self._written += 1
        self._queue.append((b"%0*d" % (NUMBER_BYTES, self._written) + bytes(MESSAGE_BYTES - NUMBER_BYTES), lock))
        os.write(self._wake, b"!")
        lock.acquire()

    def stop(self) -> None:
        os.write(self._wake, b".")
        self._thread.join()
        os.close(self._waking)
        os.close(self._wake)

    def _run(self) -> None:
        poller = select.poll()
        by_descriptor = {follower.fileno(): follower for follower in self._followers}
        for descriptor in (self._waking, *by_descriptor):
            poller.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor != self._waking:
                    self._answered(by_descriptor[descriptor].recv(NUMBER_BYTES, socket.MSG_WAITALL))
                elif b"." in os.read(self._waking, 4096):
                    return
            while self._queue:
                message, lock = self._queue.popleft()
                self._pending[message[:NUMBER_BYTES]] = lock
                for follower in self._followers:
                    follower.sendall(message)
                self._commit(message)

    def _answered(self, number: bytes) -> None:
        lock = self._pending.pop(number, None)
        if lock is not None:  # else it is the second answer
            lock.release()


def replicated(directory: Path, seconds: float, *, disk: bool) -> dict[str, float]:
    """Writes of one caller, one after the other, with what the three processes used of a processor for each."""
    files = [str(directory / f"replicated-{number}.sqlite3") if disk else "" for number in range(3)]
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        followers, pids = [], [os.getpid()]
        for number in (1, 2):
            command = [sys.executable, "-m", "benchmarks.replicated_floor", str(port), files[number]]
            program = Program(command, directory / f"replicated-{number}.output", cwd=ROOT)
            stack.callback(program.kill)
            pids.append(program.pid)
            follower, _ = server.accept()
            stack.enter_context(follower)
            follower.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            followers.append(follower)
        leader = Leader(followers, commits_to(files[0]))
        stack.callback(leader.stop)
        run_threads(leader.write, [["-"]], seconds / 4)
        before = sum(map(cpu_seconds, pids))
        found = run_threads(leader.write, [["-"]], seconds)
        used = sum(map(cpu_seconds, pids)) - before
    for each in directory.glob("replicated-*"):
        each.unlink()
    return {
        **{name: found[name] for name in ("p50 ms", "p99 ms", "max ms", "per s")},
        "CPU us": used / found["count"] * 1e6,
    }


if __name__ == "__main__":
    follow(int(sys.argv[1]), sys.argv[2])

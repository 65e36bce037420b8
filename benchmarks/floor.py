"""What nothing that is durable and replicated can beat on this machine: its disk, SQLite on it, and its loopback."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from pathlib import Path

from benchmarks.measure import run_threads

Figures = dict[str, float]


def _figures(found: dict[str, float]) -> Figures:
    return {name: found[name] for name in ("p50 ms", "p99 ms", "max ms", "per s")}


def fdatasync(directory: Path, seconds: float) -> Figures:
    """Write 512 bytes in place and sync them, in a file that keeps its size, as a write-ahead log once it is warm."""
    path = directory / "fdatasync"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    # macOS has none, and its fsync does not reach the disk either: there the floor is lower than it should be.
    sync = getattr(os, "fdatasync", os.fsync)
    try:
        os.write(descriptor, bytes(1 << 20))
        os.fsync(descriptor)
        block = os.urandom(512)

        def once(_: str) -> None:
            os.pwrite(descriptor, block, 0)
            sync(descriptor)

        return _figures(run_threads(once, [["-"]], seconds))
    finally:
        os.close(descriptor)
        path.unlink()


def sqlite_commit(directory: Path, seconds: float, rows: int = 1) -> Figures:
    """Commit so many rows of 100 bytes, WAL and synchronous=FULL, as replidict does."""
    path = directory / f"floor-{rows}.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE log (idx INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT")
        batch = [(os.urandom(100),)] * rows

        def once(_: str) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO log (data) VALUES (?)", batch)
            connection.execute("COMMIT")

        return _figures(run_threads(once, [["-"]], seconds))
    finally:
        connection.close()
        for each in directory.glob(path.name + "*"):
            each.unlink()


def loopback(seconds: float) -> Figures:
    """100 bytes there and back by TCP, between two threads that sleep in `recv`."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for each in (near, far):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def echo() -> None:
        while data := far.recv(4096):
            far.sendall(data)

    answering = threading.Thread(target=echo, name="echo")
    answering.start()
    message = bytes(100)

    def once(_: str) -> None:
        near.sendall(message)
        near.recv(4096)

    try:
        return _figures(run_threads(once, [["-"]], seconds))
    finally:
        near.shutdown(socket.SHUT_RDWR)
        answering.join()
        near.close()
        far.close()


def clock(seconds: float) -> Figures:
    """Nothing at all, timed: what the clock and the loop add to every figure."""
    return _figures(run_threads(str, [["-"] * 1000], seconds))

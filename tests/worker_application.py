"""The application of a server with several workers, as tests run it: WSGI, with a dict that the workers share.

    SHARED_DICT='{"path": ..., "address": ..., "peers": [...], "options": {...}}' gunicorn tests.worker_application:app

Each request is answered with JSON: who has served it, what it gave, and what was wrong with what this process saw.
"""

from __future__ import annotations

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from replidict import HistoryLost, Options, ReplicatedDict, ReplidictError

CONFIG = json.loads(os.environ["SHARED_DICT"])
d = ReplicatedDict[str, Any](
    **{"share": True, "timeout": 10.0, **CONFIG, "options": Options(**CONFIG.get("options", {}))}
)


class Seen:
    """What one process has read of numbers that only grow."""

    def __init__(self) -> None:
        self._most: defaultdict[str, int] = defaultdict(int)
        self.wrong: list[str] = []
        self.told = 0
        self.lost = 0
        """Times that the watcher was too slow, or met a copy that was sent anew."""
        threading.Thread(target=self._watch, daemon=True).start()

    def read(self, key: str, written: int = 0) -> int:
        """Look a number up, after this process wrote it."""
        before = max(self._most[key], written)
        found = int(d.get(key, 0))
        if found < before:
            self.wrong.append(f"process {os.getpid()} reads {key} = {found} after it was {before} here")
        self._most[key] = max(before, found)
        return found

    def _watch(self) -> None:
        """Each count is told, once and in order."""
        while True:
            last = None
            try:
                with d.watch("n") as watch:
                    for change in watch:
                        for event in change.events:
                            if last is not None and event.value != last + 1:
                                self.wrong.append(f"process {os.getpid()} was told n = {event.value} after {last}")
                            last, self.told = event.value, self.told + 1
            except HistoryLost:
                self.lost += 1
            except ReplidictError:
                return  # it is closed


_seen: dict[int, Seen] = {}


def seen() -> Seen:
    """That of this process, which begins with its first request."""
    return _seen.get(os.getpid()) or _seen.setdefault(os.getpid(), Seen())


def add(key: str, value: str) -> bool:
    """Store a number under a new key."""
    added = d.add(key, int(value))
    if d.get(key) != int(value):
        seen().wrong.append(f"process {os.getpid()} does not read {key}, which it wrote")
    return added


def count(key: str) -> int:
    """Count one more."""
    total = int(d.increment(key))
    seen().read(key, total)
    return total


def locked(key: str) -> int | None:
    """Count one more, by reading and writing under a lock; None: another one has it."""
    lock = d.lock("x", ttl=2.0)
    if not lock.acquire(timeout=0.5):
        return None
    try:
        total = seen().read(key) + 1
        d.set(key, total, fence=lock.held)
        seen().read(key, total)
        return total
    finally:
        lock.release()


def held() -> int:
    """How many locks are held, and leases open."""
    d.barrier()
    return len(d.locks()) + d.status().leases


WORK: dict[str, Callable[..., object]] = {"/add": add, "/count": count, "/locked": locked, "/held": held}


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """Do what the path says."""
    mine = seen()
    said: dict[str, object] = {"pid": os.getpid(), "told": mine.told, "lost": mine.lost}
    try:
        said["value"] = WORK[environ["PATH_INFO"]](**dict(parse_qsl(environ["QUERY_STRING"])))
    except (ReplidictError, RuntimeError) as error:
        said["error"], said["text"] = type(error).__name__, str(error)
    said["wrong"], mine.wrong = mine.wrong, []
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(said).encode()]

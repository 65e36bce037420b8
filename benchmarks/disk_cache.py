"""diskcache as a system under test, for the single node: a cache on SQLite, shared by processes, not replicated.

At its defaults (`synchronous=NORMAL`) a write is not synced; `full` makes it so, as replidict is.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.store import Value


def missing() -> str | None:
    """Why diskcache can't take part; None if it can."""
    if find_spec("diskcache") is None:
        return "diskcache is left out: not installed (pip install --group bench)"
    return None


class DiskCache:
    """A cache, in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = {"sqlite_synchronous": 2} if config.get("full") else {}
        # No eviction: everything here is meant to keep what it is given.
        self._cache = import_module("diskcache").Cache(config["path"], eviction_policy="none", **settings)
        self.set = self.try_set = self._cache.set
        self.get = self.strong_get = self._cache.get

    def update(self, pairs: dict[str, Value]) -> None:
        with self._cache.transact():
            for key, value in pairs.items():
                self._cache.set(key, value)

    def barrier(self) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {"is_leader": True, "leader": None}

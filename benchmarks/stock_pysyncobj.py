"""Stock PySyncObj as a system under test: its own `ReplDict`, at the best settings that it has for this.

Not an equal: it syncs nothing to disk, and loses acknowledged writes (docs/design.md). It has no linearizable read.
`appendEntriesUseBatch=False` and a callback with a bare lock are what makes it fast; its defaults take 100 ms a write.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from benchmarks.store import Value

PATIENCE = 10.0
IMPATIENCE = 0.25  # a command sent to a dead leader gets no answer, ever: ask again soon


class Stock:
    """One node, in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
        from pysyncobj.batteries import ReplDict

        # It reports every deletion of applied entries (design, E1) as critical, hundreds of times in a run.
        logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)

        self._success = FAIL_REASON.SUCCESS
        self._dict = ReplDict()
        self._node = SyncObj(
            config["address"],
            config["peers"],
            consumers=[self._dict],
            conf=SyncObjConf(
                journalFile=config["path"] + ".journal",
                fullDumpFile=config["path"] + ".dump",
                appendEntriesUseBatch=False,
                connectionRetryTime=0.3,
            ),
        )
        self.get = self._dict.get

    def set(self, key: str, value: Value) -> None:
        self._wait(PATIENCE, self._dict.set, key, value)

    def try_set(self, key: str, value: Value) -> None:
        self._wait(IMPATIENCE, self._dict.set, key, value)

    def update(self, pairs: dict[str, Value]) -> None:
        self._wait(PATIENCE, self._dict.update, pairs)

    def strong_get(self, key: str) -> object:
        raise NotImplementedError("PySyncObj has no linearizable read")

    def barrier(self) -> None:
        raise NotImplementedError("PySyncObj has no barrier")

    def _wait(self, seconds: float, method: Any, *args: object) -> None:
        done = threading.Lock()
        done.acquire()
        outcome: list[Any] = []

        def callback(_: object, reason: Any) -> None:
            outcome.append(reason)
            done.release()

        method(*args, callback=callback)
        if not done.acquire(timeout=seconds):
            raise TimeoutError(f"no answer within {seconds:g} s")
        if outcome[0] != self._success:
            raise RuntimeError(f"refused for reason {outcome[0]}")

    def status(self) -> dict[str, Any]:
        status = self._node.getStatus()
        leader = status["leader"]
        address = None if leader is None else str(leader.address)
        return {
            "is_leader": leader is not None and leader == status["self"],
            "leader": address if self._node.isReady() else None,
            "term": status["raft_term"],
            "applied_index": status["last_applied"],
            "commit_index": status["commit_idx"],
        }

"""Waits until a test cluster has settled: a majority agrees on a leader, and the others know that they have none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from replidict.api.replicated_dict import ReplicatedDict
from replidict.monotonic_clock import clock

PATIENCE = 60.0
"""Seconds after which it is an error that nodes have not settled."""

LOOK_EVERY = 0.002
"""Seconds between two looks at the nodes."""


class Settling:
    """The nodes of a cluster, and the groups of running nodes that reach each other."""

    def __init__(self, dicts: Sequence[ReplicatedDict[Any, Any]], groups: Collection[Collection[int]]) -> None:
        self._dicts = dicts
        self._groups = [sorted(group) for group in groups]

    def leader(self) -> int | None:
        """The node that leads, once a majority agrees; None if no group is one."""
        for group in self._groups:
            if self._is_majority(group):
                return self._only_leader(group)
        return None

    def wait(self) -> None:
        """Wait until every group has settled."""
        for group in self._groups:
            if self._is_majority(group):
                self.until(partial(self._are_equal, group), f"nodes {group} agree on a leader and have the same")
            else:
                self.until(partial(self._lead_nobody, group), f"nodes {group} know that nobody leads them")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something. Raises `TimeoutError`, which says for what, if it does not come true."""
        deadline = clock() + PATIENCE
        while not condition():
            if clock() >= deadline:
                states = [d.status() for d in self._dicts]
                raise TimeoutError(f"waited {PATIENCE:g} s in vain until {what}: {states}")
            time.sleep(LOOK_EVERY)

    def _only_leader(self, group: list[int]) -> int:
        found: list[int] = []

        def is_found() -> bool:
            found[:] = self._leaders(group)
            return bool(found)

        self.until(is_found, f"nodes {group} agree on a leader")
        return found[0]

    def _is_majority(self, some: Collection[object]) -> bool:
        return 2 * len(some) > len(self._dicts)

    def _leaders(self, group: list[int]) -> list[int]:
        """The leader that all follow and are connected with; none if there is no such leader."""
        statuses = {i: self._dicts[i].status() for i in group}
        addresses = {status.address for status in statuses.values()}
        leading = [i for i, status in statuses.items() if status.is_leader]
        connected = all(addresses - {status.address} <= set(status.connected) for status in statuses.values())
        followed = len({status.leader for status in statuses.values()}) == 1
        return leading if connected and followed and len(leading) == 1 else []

    def _are_equal(self, group: list[int]) -> bool:
        return bool(self._leaders(group)) and all(self._dicts[i].wait_ready(0.5) for i in group)

    def _lead_nobody(self, group: list[int]) -> bool:
        return all(self._dicts[i].status().leader is None for i in group)

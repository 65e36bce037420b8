"""Watchers on every machine: of all keys, of one and of some, quick and slow, and one that moves from node to node.

Rules kept here:

1. Each is told the truth: every change of interest once, in order, whole, with the value before; or that something is
   lost, and then something is. What it makes of that is what the dict holds.
2. A watcher goes on behind the revision it has reached, whatever happens to its node meanwhile; one that was told of a
   loss begins with the state.
3. A quick watcher reads when it is woken, and never else: so a wake-up that is missing shows at the end.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import partial

from replidict.errors import HistoryLost
from replidict.machine.changes import KeyChange
from replidict.node.history import Cursor
from replidict.node.node import Node
from replidict.node.waiters import Interest
from replidict.testing.simulator.loop import Timer
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.cluster import Cluster

LAGS: list[float | None] = [None, 0.05, 1.0, 8.0]
"""Seconds between two looks; None: at once, when woken."""

MOVES = 5.0
"""Seconds that one who moves stays with a node."""


class Watcher:
    """One watcher."""

    def __init__(self, name: str, cluster: Cluster, interest: Interest, lag: float | None, rng: random.Random) -> None:
        self.name, self.interest, self.lag = name, interest, lag
        self.revision = 0
        self.told = self.losses = 0
        self._cluster, self._rng = cluster, rng
        self._checks = cluster.checker.watches
        self._state: dict[Hashable, bytes] = {}
        self._machine: Machine | None = None
        self._node: Node | None = None
        self._cursor: Cursor | None = None
        self._timer: Timer | None = None
        self._begun = False

    def attend(self, machine: Machine) -> None:
        """Watch at this machine's node, which has just started, or takes over."""
        self.leave()
        node = machine.node
        assert node is not None
        self._machine, self._node = machine, node
        if not self._begun:
            self._begin(node)
        try:
            self._cursor = Cursor(node.history, self.interest, self._woken, self.revision)
        except HistoryLost as lost:
            self._lose(node, lost)
            self._cursor = Cursor(node.history, self.interest, self._woken, self.revision)
        self._woken()

    def leave(self) -> None:
        """Its node is gone, or is left."""
        if self._cursor is not None:
            self._cursor.close()
        if self._timer is not None:
            self._timer.cancel()
        self._cursor = self._machine = self._node = self._timer = None

    def _begin(self, node: Node) -> None:
        """With the state, or with nothing at all, as the seed says."""
        self._begun = True
        if node.history.oldest or self._rng.random() < 0.5:
            self._take_state(node)

    def _take_state(self, node: Node) -> None:
        items = node.machine.items
        self._state = {key: item.value for key, item in items.items() if self.interest.covers(key)}
        self.revision = node.machine.revision

    def _woken(self) -> None:
        if self._timer is None:
            self._timer = self._cluster.loop.after(self.lag or 0.0, self._look)

    def _look(self) -> None:
        self._timer = None
        machine = self._machine
        if machine is None or machine.node is None or machine.node is not self._node:
            return  # it has died, and this one does not stay with its machine
        if machine.paused:
            self._timer = self._cluster.loop.after(0.2, self._look)
            return
        self.read_all(machine.node)
        if self.lag is not None:
            self._woken()

    def read_all(self, node: Node) -> int:
        """Read what is there; how much that was."""
        cursor, count = self._cursor, 0
        assert cursor is not None
        while True:
            try:
                found = cursor.read()
            except HistoryLost as lost:
                self._lose(node, lost)
                cursor.restart(self.revision)
                continue
            if found is None:
                break
            count += 1
            self._take(found.revision, found.changes)
            cursor.passed(found)
        self._checks.passed(self.name, self.interest, self.revision, cursor.revision)
        self.revision = cursor.revision
        if self.revision == node.machine.revision:
            self._compare(node)
        return count

    def _lose(self, node: Node, lost: HistoryLost) -> None:
        self.losses += 1
        self._cluster.trace.note(self.name, "lost", lost)
        if not self.revision < lost.oldest <= lost.current == node.machine.revision:
            raise Violation("watch", f"{self.name}, at {self.revision}, lost nothing: {lost}")
        self._take_state(node)

    def _take(self, revision: int, changes: Sequence[KeyChange]) -> None:
        self._cluster.trace.note(self.name, "told", revision)
        self._checks.told(self.name, self.interest, self.revision, revision, changes)
        self.told += 1
        for _, _, key, _, value, previous in changes:
            if self._state.get(key) != previous:
                raise Violation(
                    "watch", f"{self.name} is told {previous!r} was before, and has {self._state.get(key)!r}"
                )
            if value is None:
                del self._state[key]
            else:
                self._state[key] = value
        self.revision = revision

    def _compare(self, node: Node) -> None:
        held = {key: item.value for key, item in node.machine.items.items() if self.interest.covers(key)}
        if held != self._state:
            raise Violation("watch", f"{self.name}, at {self.revision}, makes {self._state} of it; it is {held}")

    def settle(self) -> None:
        """All is over: one that waits to be woken has nothing left to read, and all hold what their node holds."""
        machine = self._machine
        if machine is None or machine.node is None or machine.node is not self._node:
            return
        count = self.read_all(machine.node)
        if count and self.lag is None and self._timer is None:
            raise Violation("watch", f"nobody woke {self.name} for {count} changes")
        if self.revision != machine.node.machine.revision:
            raise Violation("watch", f"{self.name} ends at {self.revision}, not {machine.node.machine.revision}")


class Watchers:
    """All of a run."""

    def __init__(self, cluster: Cluster, keys: tuple[Hashable, ...], rng: random.Random) -> None:
        self._cluster, self._keys, self._rng = cluster, keys, rng
        self.all: list[Watcher] = []
        for machine in cluster.machines.values():
            self._populate(machine)
        cluster.on_machine.append(self._populate)
        self._mover = self._watcher("moves", Interest())
        self._move()

    def _watcher(self, name: str, interest: Interest) -> Watcher:
        rng = random.Random(self._rng.getrandbits(64))
        watcher = Watcher(f"watch {name}", self._cluster, interest, rng.choice(LAGS), rng)
        self.all.append(watcher)
        return watcher

    def _populate(self, machine: Machine) -> None:
        text = next(key for key in self._keys if isinstance(key, str))
        interests = {
            "all": Interest(), "key": Interest(key=frozenset((self._rng.choice(self._keys),))),
            "some": Interest(prefix=self._rng.choice((text, "", "last"))),
        }  # fmt: skip
        for kind, interest in interests.items():
            watcher = self._watcher(f"{kind} {machine.name}", interest)
            machine.on_start.append(partial(watcher.attend, machine))
            machine.on_end.append(watcher.leave)

    def _move(self) -> None:
        there = [machine for machine in self._cluster.machines.values() if machine.reachable]
        if there:
            self._mover.attend(self._rng.choice(there))
        self._cluster.loop.after(MOVES * self._rng.random(), self._move)

    def settle(self) -> None:
        """Check what they have in the end."""
        for watcher in self.all:
            watcher.settle()

    @property
    def told(self) -> int:
        """How many changes all of them were told."""
        return sum(watcher.told for watcher in self.all)

    @property
    def losses(self) -> int:
        """How often one of them was told of a loss."""
        return sum(watcher.losses for watcher in self.all)

"""Reads the cluster's clock on one node and, on the leader, appends the `Tick` entries that advance it.

Rules kept here:

1. Only a leader appends `Tick`: just before an entry that needs the time, when the next deadline is due, and every ten
   seconds while there are deadlines, so that little of a ttl is lost when all nodes stop. Without deadlines, nothing is
   appended.
2. A new leader continues from the larger of the last `Tick` in its log and the last time that the previous leader
   reported (every `AppendEntries` does), plus the time since by its own clock. So an election neither shortens nor
   restarts a ttl.
3. The previous leader's time is taken as it is, even if this node would have counted further: otherwise the fastest
   clock would gain on all others. Wall time is never used.
"""

from __future__ import annotations

from replidict.machine import commands as cmd
from replidict.machine.clock import Clock
from replidict.machine.state_machine import StateMachine
from replidict.raft.engine import Engine

EVERY_MS = 10_000
"""While there are deadlines, the clock is noted in the log so often."""


class Expiry:
    """The expiry of one node. For the node's thread; `now` is for any thread."""

    def __init__(self, engine: Engine, machine: StateMachine) -> None:
        self._engine, self._machine = engine, machine
        self._known = (machine.coordination.clock.now, engine.clock())  # (what was said, this node's clock then)
        self._term = 0  # the last one led
        self._ticked = 0  # what the last `Tick` in this leader's log says
        engine.state.before_timed = self._note_time
        engine.state.tell_time = self.tell
        engine.state.hear_time = self.hear

    @property
    def _clock(self) -> Clock:
        return self._machine.coordination.clock

    def now(self) -> int:
        """The time of the cluster's clock as far as this node knows it, in milliseconds."""
        said, at = self._known
        return max(said + int((self._engine.clock() - at) * 1000), self._clock.now)

    def hear(self, milliseconds: int) -> None:
        """The leader says what its clock shows."""
        if milliseconds:
            self._known = (milliseconds, self._engine.clock())

    def tell(self) -> int:
        """Leader: what this clock shows."""
        self._begin()
        return self.now()

    def _begin(self) -> None:
        """Rule 2, once in a term."""
        engine = self._engine
        if engine.state.term == self._term:
            return
        self._term = engine.state.term
        self._ticked = self._clock.now
        for entry in engine.log.entries_from(engine.state.last_applied + 1, 1 << 62):
            if cmd.is_tick(entry.command) and isinstance(tick := cmd.decode(entry.command), cmd.Tick):
                self._ticked = max(self._ticked, tick.milliseconds)
        self._known = (max(self.now(), self._ticked), engine.clock())

    def _note_time(self) -> None:
        """Leader: an entry comes next that needs the time."""
        self._begin()
        now = self.now()
        if now > self._ticked:
            self._ticked = now
            self._engine.replicated_log.append(cmd.encode(cmd.Tick(now)))

    def step(self) -> None:
        """Append what is due."""
        engine = self._engine
        if engine.state.is_leader and len(self._clock) and not engine.transfer.active:
            self._begin()
            due = self._due()
            if due is not None and due <= self.now():
                self._note_time()

    def _due(self) -> int | None:
        """When the next `Tick` is, on the cluster's clock."""
        deadline = self._clock.next_deadline
        if deadline is None:
            return None
        regular = self._ticked + EVERY_MS
        return regular if deadline <= self._ticked else min(deadline, regular)

    def next_deadline(self) -> float:
        """When `step` wants to run next, on this node's clock."""
        engine = self._engine
        if not engine.state.is_leader or engine.transfer.active or (due := self._due()) is None:
            return float("inf")
        said, at = self._known
        return at + (due - said + 0.5) / 1000

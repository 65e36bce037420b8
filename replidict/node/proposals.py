"""Writes: how they become commands in the log, and how each is applied once (Raft 8, thesis 6.3).

Rules kept here:

1. All waiting writes form one batch, in the order they came; a few batches are under way at a time.
2. A batch has a sequence number within this process's session. It is sent again, unchanged, whenever the leader or the
   connection to it changed, until it is applied here; the state machine applies it once and keeps the results.
3. A write is answered when its batch is applied on this node, so a read on this node sees it from then on.
4. A write that was never sent is surely not applied: `NotCommitted`. Any other without an answer is `OutcomeUnknown`.
5. A batch that is no longer waited for is sent again empty: either it was applied before, or it never will be. So an
   outcome does not stay unknown long after its caller gave up.
6. A write above the cluster's feature level is refused before it joins a batch, or waits until the level rises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from replidict.errors import LeaseLost, LockLost, NotCommitted, OutcomeUnknown, ReplidictError, raise_anew
from replidict.large_encoding import LARGE, encode_large
from replidict.machine import commands as cmd
from replidict.machine.outcomes import BatchApplied, Outcome, Refusal, SessionOpened
from replidict.node.activity import Activity
from replidict.node.consensus_interface import Consensus, Level
from replidict.options import Options

WINDOW = 4
"""Batches under way at a time: enough to keep disk and network busy, few enough to gather writes meanwhile."""

RETRY_AFTER = 10
"""Election timeouts after which a batch is sent again although nothing seems to have changed."""

REFUSALS: dict[str, type[ReplidictError]] = {error.__name__: error for error in (LeaseLost, LockLost)}
"""The errors by which the state machine refuses an operation that makes sense."""


class Write:
    """One write on its way. `done` is called once, by the node's thread, when `result` or `error` is set."""

    __slots__ = ("abandoned", "answered", "done", "error", "level", "operation", "result", "sent", "since", "size")

    def __init__(self, operation: cmd.Operation, size: int, done: Callable[[], object]) -> None:
        self.operation = operation
        self.size = size
        self.level = cmd.LEVEL_OF.get(type(operation), 1)
        self.done = done
        self.result: cmd.Result = None
        self.error: ReplidictError | None = None
        self.sent = self.answered = False
        self.since = 0.0
        self.abandoned = False


def result_of(answered: Write) -> cmd.Result:
    """The result of a write that is done. Raises its error if it has none."""
    if answered.error is not None:
        raise_anew(answered.error)
    if isinstance(answered.result, str):
        name, _, why = answered.result.partition(": ")
        if name in REFUSALS:
            raise REFUSALS[name](f"{why}: this write changed nothing")
        raise ReplidictError(f"this write could not be performed, and changed nothing: {answered.result}")
    return answered.result


@dataclass
class _Batch:
    sequence: int
    writes: list[Write]
    command: bytes
    sent_by: object = None  # the route it was last sent by
    sent_at: float = 0.0
    snapshots: int = 0  # installed before it was first sent


class Proposals:
    """The writes of one process. `submit` and `give_up` are for any thread, the rest for the node's thread."""

    def __init__(
        self, engine: Consensus, options: Options, wake: Callable[[], None], level: Level, activity: Activity
    ) -> None:
        self._engine = engine
        self._level = level
        self._activity = activity
        self._options = options
        self._wake = wake
        self._queue: deque[Write] = deque()
        self._left: list[tuple[float, int, Write]] = []  # a heap by deadline
        self._leaving = count()
        self._in_flight: dict[int, _Batch] = {}
        self._sequence = 0
        self._session: int | None = None
        self._nonce: bytes | None = None
        self._opening = _Batch(0, [], b"")
        self._snapshots = 0
        self._failure: ReplidictError | None = None
        self.waiting = False
        """Whether something has changed since the last step that may let writes go out."""
        self.answered_otherwise: Callable[[Write], bool] | None = None
        """For tests of failures: asked about each write; whether it answers that itself, so that it is not queued."""

    # -- any thread ---------------------------------------------------------------------------------------------------

    def submit(self, write: Write) -> None:
        """Queue a write. Raises what stopped the node, if something did."""
        write.since = self._engine.clock()
        if self.answered_otherwise is not None and self.answered_otherwise(write):
            return
        self._queue.append(write)
        if self._failure is not None and not write.sent:  # looked for after it was queued, as `stop` does it before
            raise_anew(self._failure)
        self.waiting = True
        self._wake()

    def give_up(self, write: Write) -> bool:
        """The caller's deadline has passed. Returns whether the write surely was and will not be applied."""
        write.abandoned = True  # before looking whether it was sent: `_gather` looks the other way round
        try:
            self._queue.remove(write)
        except ValueError:
            pass  # it was taken to be sent, or the node stopped meanwhile
        return not write.sent

    def leave(self, write: Write, seconds: float) -> None:
        """The caller no longer waits for this write. It may still be applied if it is sent within `seconds`."""
        heappush(self._left, (self._engine.clock() + seconds, next(self._leaving), write))

    @property
    def busy(self) -> bool:
        """Whether writes wait, or are under way: what becomes of one is not known yet, though its caller be gone."""
        return bool(self._queue or self._in_flight)

    # -- node's thread -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Send what waits, and again what may have got lost."""
        self.waiting = False  # before looking: what is queued from here on is new
        if self._left:
            self._see_to_those_left()
        if not self._queue and not self._in_flight:
            return
        route = self._engine.forwarding.route()
        if route is None:
            return
        if self._session is None:
            self._open_session(route)
            return
        now = self._engine.clock()
        again = now - RETRY_AFTER * self._options.election_timeout
        for batch in self._in_flight.values():
            if (batch.sent_by != route or batch.sent_at < again) and not self._send(batch, route, now):
                return
        while self._queue and len(self._in_flight) < WINDOW:
            gathered = self._gather()
            if gathered is None or not self._send(gathered, route, now):
                return

    def _see_to_those_left(self) -> None:
        """Give up those whose time is over, and forget those that were answered."""
        now = self._engine.clock()
        while self._left and (self._left[0][0] <= now or self._left[0][2].answered):
            write = heappop(self._left)[2]
            if not write.answered:
                self.give_up(write)

    def _open_session(self, route: object) -> None:
        opening, now = self._opening, self._engine.clock()
        if opening.sent_by == route and opening.sent_at > now - RETRY_AFTER * self._options.election_timeout:
            return
        if self._nonce is None:
            self._nonce = self._engine.rng.randbytes(16)
            opening.command = cmd.encode(cmd.OpenSession(self._nonce))
        self._send(opening, route, now)

    def _gather(self) -> _Batch | None:
        writes: list[Write] = []
        size, level = 0, self._level.current
        while self._queue:
            try:
                write = self._queue.popleft()
            except IndexError:
                break  # given up meanwhile
            if write.level > level or (writes and size + write.size > self._options.max_command_bytes):
                self._queue.appendleft(write)
                break
            write.sent = True
            if not write.abandoned:
                writes.append(write)
                size += write.size
        if not writes:
            return self._gather_behind(level)
        self._sequence += 1
        batch = _Batch(self._sequence, writes, b"", snapshots=self._snapshots)
        self._in_flight[batch.sequence] = batch  # first: whatever ends the node from here on, its writers are told
        batch.command = self._encode(batch)
        return batch

    def _gather_behind(self, level: int) -> _Batch | None:
        """The first write in the queue, if there is one, is above the level: refuse it, or wait (rule 6)."""
        try:
            write = self._queue.popleft()
        except IndexError:
            return None
        if write.level <= level or (why := self._level.refusal(write.level)) is None:
            self._queue.appendleft(write)
            return None
        self._refuse([write], NotCommitted(why))
        return self._gather()

    def _encode(self, batch: _Batch) -> bytes:
        assert self._session is not None
        acknowledged = next(iter(self._in_flight), batch.sequence) - 1
        operations = [write.operation for write in batch.writes]
        kind = cmd.TimedBatch if any(map(cmd.needs_time, operations)) else cmd.Batch
        encode = cmd.encode if sum([write.size for write in batch.writes]) < LARGE else encode_large
        return encode(kind(self._session, batch.sequence, acknowledged, operations))

    def _send(self, batch: _Batch, route: object, now: float) -> bool:
        if batch.sent_by is not None and batch.writes and all(write.abandoned for write in batch.writes):
            batch.writes = []  # rule 5
            batch.command = self._encode(batch)
        if not self._engine.forwarding.send(batch.command):
            return False
        batch.sent_by, batch.sent_at = route, now
        return True

    def on_outcome(self, outcome: Outcome) -> None:
        """An entry was applied on this node."""
        if isinstance(outcome, BatchApplied):
            if outcome.session == self._session:
                self._on_batch(outcome)
        elif isinstance(outcome, SessionOpened) and outcome.nonce == self._nonce and self._session is None:
            self._session, self._sequence = outcome.session, 0
        if self._queue:  # there may be room for it now
            self.waiting = True

    def _on_batch(self, outcome: BatchApplied) -> None:
        batch = self._in_flight.get(outcome.sequence)
        if batch is None:
            return  # sent twice, and answered the first time
        results = outcome.results
        if results is Refusal.GAP:
            batch.sent_by, self.waiting = None, True
        elif results is Refusal.NO_SESSION:
            self._session_ended()
        elif isinstance(results, Refusal):
            del self._in_flight[outcome.sequence]
            self._refuse(batch.writes, OutcomeUnknown(f"the answer to this write is no longer known: {results.value}"))
        else:
            del self._in_flight[outcome.sequence]
            if batch.writes:
                self._activity.count(len(batch.writes), batch.writes[0].since)
            for write, result in zip(batch.writes, results, strict=False):
                write.result, write.answered = result, True
                write.done()

    def _session_ended(self) -> None:
        """So many other sessions were opened since this one was used that it ended; begin another.

        This node saw every entry applied since a batch was sent, unless it installed a snapshot meanwhile. So a batch
        without an answer was not applied, and now never will be.
        """
        batches = list(self._in_flight.values())
        self._in_flight.clear()
        self._session = self._nonce = None
        self._opening = _Batch(0, [], b"")
        for batch in reversed(batches):
            if batch.snapshots != self._snapshots:
                self._refuse(batch.writes, OutcomeUnknown("the session of this write ended before its answer came"))
                continue
            for write in reversed(batch.writes):
                if not write.abandoned:
                    write.sent = False
                    self._queue.appendleft(write)

    def on_snapshot_installed(self) -> None:
        """Entries were jumped over: answers that were among them are asked for again."""
        self._snapshots += 1
        for batch in (*self._in_flight.values(), self._opening):
            batch.sent_by = None

    def _refuse(self, writes: list[Write], error: ReplidictError) -> None:
        for write in writes:
            write.error, write.answered = error, True
            write.done()

    def stop(self, failure: ReplidictError, unknown: ReplidictError) -> None:
        """The node goes no further: what was never sent gets `failure`, what was gets `unknown`."""
        self._failure = failure
        while self._queue:
            try:
                self._refuse([self._queue.popleft()], failure)
            except IndexError:
                break  # given up meanwhile
        for batch in self._in_flight.values():
            self._refuse(batch.writes, unknown)
        self._in_flight.clear()

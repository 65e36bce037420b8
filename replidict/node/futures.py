"""Writes with futures, so that one thread can have many under way.

Rules kept here:

1. Callbacks run in a thread of their own, one after the other: a slow one delays only other callbacks, never the node
   or a thread that waits for a future.
2. Every future is resolved, also when the node stops or no answer comes. All have the same timeout, so those submitted
   first are the first to run out of time.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from typing_extensions import override

from replidict.errors import NotCommitted, ReplidictError, raise_anew, waits_for_itself
from replidict.latch import Latch
from replidict.logging_thread import Logger
from replidict.machine import commands as cmd
from replidict.monotonic_clock import clock
from replidict.node.blocking_calls import given_up
from replidict.node.node import Node
from replidict.node.proposals import Write, result_of
from replidict.own_threads import OwnThread, in_node_thread

logger = Logger(__name__)


CALLBACKS_WITHIN = 10.0
"""Seconds for which `join` waits for callbacks: one may wait for something that whoever closes the dict holds."""


class _Answer(Future[Any]):
    """The future of one write.

    Whoever waits for it waits for the write itself, without the lock that each `Future` has, and without the thread
    that runs callbacks: so it can be waited for in a signal handler that has interrupted a wait, and in a callback.
    """

    def __init__(self, node: Node, operation: cmd.Operation, size: int, seconds: float) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self.deadline = clock() + seconds
        self._node, self._seconds = node, seconds
        self._answered = Latch()
        self.write: Write | None = Write(operation, size, self._answered.set)
        self._outcomes: dict[str, object] = {}
        self.told = False  # have its callbacks been run?

    @override
    def done(self) -> bool:
        return bool(self._outcomes)

    @override
    def running(self) -> bool:
        return not self.done()

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        outcome = self._wait(timeout)
        return outcome if isinstance(outcome, ReplidictError) else None

    @override
    def result(self, timeout: float | None = None) -> Any:
        outcome = self._wait(timeout)
        if isinstance(outcome, ReplidictError):
            raise_anew(outcome)
        return outcome

    def _wait(self, timeout: float | None) -> object:
        left = max(self.deadline - clock(), 0.0)
        if not self._outcomes and not self._answered.is_set:
            if in_node_thread():
                raise waits_for_itself(ReplidictError, "this future is not done")
            if not self._answered.wait(left if timeout is None else min(left, timeout)) and clock() < self.deadline:
                raise TimeoutError
        return self.settle()

    def settle(self) -> object:
        """Decide the outcome: the first caller decides, if there is no answer, that there will be none."""
        write = self.write
        if write is None:
            return self._outcomes["it"]
        if self._answered.is_set:
            try:
                outcome: object = result_of(write)
            except ReplidictError as error:
                outcome = error
        else:
            outcome = given_up(self._node, write, self._seconds)
        outcome = self._outcomes.setdefault("it", outcome)
        self.write = None  # which refers to this in turn
        return outcome

    def tell(self) -> None:
        """Run the callbacks."""
        outcome = self.settle()
        if isinstance(outcome, ReplidictError):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)


class Futures:
    """The futures of one node. Their thread starts with the first of them. Nothing here holds a lock."""

    def __init__(self, node: Node, thread_name: str) -> None:
        self._node = node
        self._under_way: deque[_Answer] = deque()
        self._answered: SimpleQueue[_Answer | None] = SimpleQueue()
        self._at_rest = False  # does the thread wait without a limit?
        self._over = False
        self._thread = OwnThread(self._run, thread_name)

    def submit(self, operation: cmd.Operation, size: int, seconds: float) -> Future[Any]:
        """Write an operation of about `size` bytes. `seconds` are the same for all.

        The future can't be cancelled; it gets the result, or what `blocking_calls.write` raises. Raises what ended the
        node, and `NotCommitted` if the system has no thread left.
        """
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        try:
            self._thread.start()
        except RecursionError:
            raise
        except RuntimeError as error:
            raise NotCommitted(f"this write was not sent: no thread can be started for futures: {error}") from error
        future = _Answer(self._node, operation, size, seconds)
        write = future.write
        assert write is not None
        answered = write.done

        def done() -> None:
            answered()
            write.done = _nothing  # it refers to the future, and the future to it
            self._answered.put(future)

        write.done = done
        self._node.proposals.submit(write)
        self._under_way.append(future)
        if self._at_rest:  # looked for after it was queued, as `_patience` does it before
            self._answered.put(None)  # there is a deadline now
        return future

    def finish(self) -> None:
        """The node has stopped, and told everybody: the thread ends when it has passed that on."""
        self._over = True
        self._answered.put(None)

    def join(self) -> None:
        """Wait until it has ended, after `finish`, but not longer for callbacks than `CALLBACKS_WITHIN`."""
        if not self._thread.join(CALLBACKS_WITHIN):
            logger.warning("%s: a callback of a future is not done yet", self._node.engine.address)

    def _run(self) -> None:
        while True:
            try:
                future = self._answered.get(timeout=self._patience())
            except Empty:
                self._expire()
                continue
            if future is not None:
                self._tell(future)
            elif self._over and self._answered.empty():
                break
            del future  # or what it gave is kept alive until there is another

    def _patience(self) -> float | None:
        """How long to wait for an answer; None: nothing is under way."""
        self._at_rest = True
        under_way = self._under_way
        while under_way and under_way[0].told:
            under_way.popleft()
        if not under_way:
            return None
        self._at_rest = False
        return max(under_way[0].deadline - clock(), 0.0)

    def _expire(self) -> None:
        """The first ones may have run out of time."""
        now = clock()
        while self._under_way and self._under_way[0].deadline <= now:
            self._tell(self._under_way.popleft())

    def _tell(self, future: _Answer) -> None:
        """Resolve a future, and see to it that what a callback raises ends nothing."""
        if future.told:
            return
        future.told = True
        try:
            future.tell()
        except BaseException:
            logger.exception("%s: a callback of a future failed", self._node.engine.address)


def _nothing() -> None:
    pass

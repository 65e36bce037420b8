"""Writes that no thread waits for: each has a future, so that one thread can have many under way.

Rules kept here:

1. Futures are resolved in a thread of their own, one after the other: whatever a callback does or waits for, it holds
   up other futures at most, and never the node.
2. Every future is resolved, also when the node ends or nobody answers: all have the same timeout, so those that were
   submitted first are the first to run out of time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from itertools import takewhile
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from replidict.errors import ReplidictError, raise_anew
from replidict.machine import commands as cmd
from replidict.node.blocking_calls import given_up, result_of
from replidict.node.node import Node
from replidict.node.proposals import Write

logger = logging.getLogger(__name__)


class _Pending(NamedTuple):
    write: Write
    future: Future[Any]
    seconds: float
    deadline: float


class Futures:
    """Those of one node. The thread begins with the first of them."""

    def __init__(self, node: Node, thread_name: str) -> None:
        self._node = node
        self._mutex = threading.Lock()
        self._under_way: deque[_Pending] = deque()
        self._answered: SimpleQueue[_Pending | None] = SimpleQueue()
        self._at_rest = False  # does the thread wait without a limit?
        self._over = False
        self._thread = threading.Thread(target=self._run, name=thread_name, daemon=True)

    def submit(self, operation: cmd.Operation, size: int, seconds: float) -> Future[Any]:
        """Have an operation of about so many bytes done. `seconds` are the same for all.

        The future can't be cancelled; it gets the result, or what `waiting.write` raises. Raises what ended the node.
        """
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        write = Write(operation, size, lambda: self._answered.put(pending))
        pending = _Pending(write, future, seconds, time.monotonic() + seconds)
        with self._mutex:
            if self._thread.ident is None:
                self._thread.start()
        self._node.proposals.submit(write)
        with self._mutex:
            self._under_way.append(pending)
            at_rest, self._at_rest = self._at_rest, False
        if at_rest:
            self._answered.put(None)  # there is a deadline now
        return future

    def finish(self) -> None:
        """The node has stopped, and told everybody: the thread ends when it has passed that on."""
        self._over = True
        self._answered.put(None)

    def join(self) -> None:
        """Wait until it has ended, after `finish`."""
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                pending = self._answered.get(timeout=self._patience())
            except Empty:
                self._expire()
                continue
            if pending is not None:
                self._resolve(pending)
            elif self._over and self._answered.empty():
                break

    def _patience(self) -> float | None:
        """How long to wait for an answer; None: nothing is under way."""
        with self._mutex:
            under_way = self._under_way
            while under_way and under_way[0].future.done():
                under_way.popleft()
            self._at_rest = not under_way
            return max(under_way[0].deadline - time.monotonic(), 0.0) if under_way else None

    def _expire(self) -> None:
        """The first ones may have run out of time."""
        now = time.monotonic()
        with self._mutex:
            late = list(takewhile(lambda pending: pending.deadline <= now, self._under_way))
        for pending in late:
            if not pending.future.done():
                self._tell(pending, given_up(self._node, pending.write, pending.seconds))

    def _resolve(self, pending: _Pending) -> None:
        pending.write.done = _nothing  # it refers to the write, which would wait for the garbage collector
        if pending.future.done():
            return  # too late
        try:
            result = result_of(pending.write)
        except ReplidictError as error:
            self._tell(pending, error)
        else:
            self._tell(pending, result)

    def _tell(self, pending: _Pending, outcome: object) -> None:
        """Resolve a future, and see to it that what a callback raises ends nothing."""
        try:
            if isinstance(outcome, ReplidictError):
                pending.future.set_exception(outcome)
            else:
                pending.future.set_result(outcome)
        except BaseException:
            logger.exception("%s: a callback of a future failed", self._node.engine.address)


def _nothing() -> None:
    pass

"""Callbacks for when a node stops by itself."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from replidict.errors import ClosedError, ReplidictError

logger = logging.getLogger(__name__)

Callback = Callable[[ReplidictError], object]


class StopCallbacks:
    """Calls each callback once, in a thread of its own. It has no lock, so `add` may be called in a signal handler."""

    def __init__(self) -> None:
        self._callbacks: deque[Callback] = deque()
        self._failure: ReplidictError | None = None

    def add(self, callback: Callback) -> None:
        """Have it called when the node has stopped; now if it has."""
        self._callbacks.append(callback)
        self._begin()

    def tell(self, failure: ReplidictError) -> None:
        """The node has stopped with this. Nobody is told of a node that was closed."""
        if type(failure) is not ClosedError:
            self._failure = failure
            self._begin()

    def _begin(self) -> None:
        if self._failure is None or not self._callbacks:
            return
        try:
            threading.Thread(target=self._run, args=(self._failure,), name="on_stop of a ReplicatedDict").start()
        except RuntimeError:  # the system has no thread left, or the interpreter exits
            self._run(self._failure)

    def _run(self, failure: ReplidictError) -> None:
        while True:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            try:
                callback(failure)
            except Exception:
                logger.exception("a callback of on_stop raised")

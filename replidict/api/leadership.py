"""`Leadership`: a function that runs in one process of the cluster at a time, while that process holds a lock."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from replidict.api.held_lock import Held, give_back, is_held
from replidict.api.lock_waiting import Patience, obtain
from replidict.errors import ReplidictError
from replidict.latch import Latch
from replidict.node.lock_requests import Wanted
from replidict.node.node import Node
from replidict.own_threads import in_node_thread

logger = logging.getLogger(__name__)

SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds for which who failed does not stand again: the shorter one first, then twice as long each time."""


class Leadership:
    """One candidate: it waits for the lock of its name, and runs `work(held)` in a thread while it holds the lock.

    When the lock is lost, `held.lost` is set: the work must stop, and this candidate waits for the lock again. When the
    work returns while the lock is held, it is done: the lock is released and this candidate ends. When the work raises,
    the error is logged and kept in `error`, the lock is released, and this candidate tries again after a pause that
    grows. `ReplicatedDict.run_as_leader` makes it.

    Attributes:
        error: The error that the work raised last; None if it never raised.

    Example:
        >>> candidate = d.run_as_leader("scheduler", lambda held: held.lost.wait())
        >>> candidate.stop()
        >>> candidate.is_leader
        False
    """

    def __init__(self, node: Node, wanted: Wanted, work: Callable[[Held], object], timeout: float) -> None:
        self._node, self._wanted, self._work, self._timeout = node, wanted, work, timeout
        self._patience = Patience()
        self._stopping, self._ended = Latch(), Latch()
        self._held: Held | None = None
        self.error: Exception | None = None
        """What the work raised the last time that it raised."""
        self._thread = threading.Thread(target=self._run, name=f"candidate {wanted.name}", daemon=True)
        self._thread.start()

    @property
    def is_leader(self) -> bool:
        """Whether this candidate holds the lock, and has not lost it."""
        return is_held(self._held)

    def stop(self) -> None:
        """End this candidate: set `held.lost`, wait for the work to return, and release the lock.

        After the dict's timeout the lock is released even if the work still runs. Any thread may call it, and again.
        """
        self._stopping.set()
        self._patience.end()
        held = self._held
        if held is not None:
            held.lost.set()
        if threading.get_ident() == self._thread.ident or in_node_thread():
            return
        if not self._ended.wait(self._timeout) and held is not None:
            self._node.locks.withdraw(held._request)

    def _run(self) -> None:
        try:
            self._stand()
        finally:
            self._ended.set()

    def _stand(self) -> None:
        pause = SHORTEST_PAUSE
        while not self._stopping.is_set:
            try:
                held = obtain(self._node, self._wanted, None, patience=self._patience)
            except ReplidictError as error:
                if self._node.failure is None:
                    self.error = error
                    logger.exception("nobody stands for %r here any more", self._wanted.name)
                return
            if held is None:
                return
            failed = self._lead(held)
            if failed is None:
                return
            if failed:
                self._stopping.wait(pause * (1 + random.random()))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = SHORTEST_PAUSE

    def _lead(self, held: Held) -> bool | None:
        """Do the work. Returns whether it failed; None: it is done."""
        self._held = held
        failed: bool | None = None
        try:
            if not self._stopping.is_set:
                self._work(held)
        except Exception as error:
            self.error, failed = error, True
            logger.exception("the work of the leader of %r failed", self._wanted.name)
        finally:
            self._held = None
            if failed is None and held.lost.is_set():
                failed = False
            try:
                give_back(held, self._timeout)
            except ReplidictError:
                failed = failed or False  # lost: it was not for the work to end
        return failed

    def __repr__(self) -> str:
        state = "leads" if self.is_leader else "over" if self._ended.is_set else "stands"
        return f"<{type(self).__name__} {self._wanted.name!r}, {state}>"

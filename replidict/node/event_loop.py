"""The thread in which a node lives, and how other threads wake it.

Rules kept here:

1. Everything below this floor runs in this one thread. Others only queue writes and reads, and call `wake`.
2. Whatever ends the node is logged once, told to everybody who waits, and raised by every call from then on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from replidict.errors import ClosedError, RemovedError, ReplidictError, StorageError
from replidict.node.node import Node

logger = logging.getLogger(__name__)

# A lease must not outlive a suspended machine: this clock goes on while it sleeps, where there is such a one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

LONGEST_PAUSE = 1.0
"""Seconds between two steps at most."""


clock: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Seconds on this machine's clock that never goes back."""


class Waker:
    """A pipe by which any thread ends the tick thread's wait."""

    def __init__(self) -> None:
        self.sleeping = False
        self._mutex = threading.Lock()  # a closed descriptor's number may be another file's already
        self._open = True
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def listen(self, poller: Poller) -> None:
        """Have the poller wait for this as well."""
        poller.subscribe(self._read_end, self._drain, POLL_EVENT_TYPE.READ)

    def _drain(self, descriptor: int, events: int) -> None:
        os.read(self._read_end, 4096)

    def wake(self) -> None:
        """End the wait, if there is one."""
        if self.sleeping:
            self.sleeping = False
            with self._mutex:
                try:
                    if self._open:
                        os.write(self._write_end, b"!")
                except BlockingIOError:
                    pass  # there are enough in it to wake anybody

    def close(self) -> None:
        """Let go of the pipe. Idempotent."""
        with self._mutex:
            if self._open:
                self._open = False
                os.close(self._read_end)
                os.close(self._write_end)

    def abandon(self) -> None:
        """Let go of the pipe in a forked child, where nobody can be holding the lock any more."""
        self._mutex = threading.Lock()
        self.close()


class Ticker:
    """Runs a node until it is told to stop, or fails."""

    def __init__(
        self,
        node: Node,
        waker: Waker,
        ending: Callable[[ReplidictError], None],
        ended: Callable[[], None],
    ) -> None:
        """`ending` is told why the node stops, before those who wait are; `ended` is called when all is over."""
        self._node = node
        self._waker = waker
        self._ending = ending
        self._ended = ended
        self._stopping = False
        self._over = threading.Event()  # an interrupted `join` would take the thread for ended
        waker.listen(node.engine.poller)
        self._thread = threading.Thread(target=self._run, name=f"replidict {node.engine.address}", daemon=True)

    def start(self) -> None:
        """Begin. If it is interrupted (Ctrl-C), the thread may be running: `stop` it.

        Raises `RuntimeError` if the system has no thread left; the node has stopped then, as after `stop`.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._stopping = True
            self._run()
            raise

    def stop(self) -> None:
        """Stop the node and wait until it has; the second time, or after an interruption, just wait."""
        self._stopping = True
        self._waker.sleeping = True  # whatever it does now, it looks again
        self._waker.wake()
        if threading.current_thread() is not self._thread:
            self._over.wait()
            if self._thread.is_alive():
                self._thread.join()

    def _run(self) -> None:
        node, waker, engine = self._node, self._waker, self._node.engine
        failure: ReplidictError
        try:
            while not self._stopping:
                waker.sleeping = True  # before looking whether there is work: who queues some afterwards wakes us
                pause = min(node.idle_until() - clock(), LONGEST_PAUSE)
                if self._stopping:
                    break
                engine.poll(max(pause, 0.0))
                waker.sleeping = False
                node.step()
            failure = ClosedError("this ReplicatedDict is closed: open another one on the same directory")
        except (StorageError, RemovedError) as error:
            logger.error("%s: this node has stopped: %s", engine.address, error)
            failure = error
        except Exception as error:
            logger.exception("%s: this node has stopped because of an internal error", engine.address)
            failure = StorageError(
                f"this node has stopped because of an internal error: {type(error).__name__}: {error}"
            )
        finally:
            waker.sleeping = False
        try:
            self._ending(failure)
            node.stop(failure)
        except Exception:
            logger.exception("%s: could not let go of everything", engine.address)
        finally:
            self._ended()
            self._over.set()

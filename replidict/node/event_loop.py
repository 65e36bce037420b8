"""The thread that runs a node, and how other threads wake it.

Rules kept here:

1. `node` and the floors below it run in this one thread. Other threads only queue writes and reads, and call `wake`.
2. Whatever stops the node is logged once, reported to every waiting call, and raised by every call from then on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from replidict.errors import ClosedError, RemovedError, ReplidictError, StorageError
from replidict.logging_thread import Logger
from replidict.monotonic_clock import clock
from replidict.node.node import Node
from replidict.own_threads import OWN_THREADS, OwnThread, node_thread

logger = Logger(__name__)

LONGEST_PAUSE = 1.0
"""Seconds between two steps at most."""

CHECK_EVERY = 1.0
"""Seconds between two looks whether the directory is still this node's alone."""


class _Descriptor:
    """A file descriptor, closed when nobody refers to it any more. Its number may be another file's from then on: so
    whoever uses it holds a reference until that is done, or until it is interrupted."""

    def __init__(self, number: int) -> None:
        os.set_blocking(number, False)
        self.number = number

    def close(self) -> None:
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    __del__ = close


class Waker:
    """A pipe with which any thread wakes the node's thread."""

    def __init__(self) -> None:
        self.sleeping = self.woken = False
        read_end, write_end = map(_Descriptor, os.pipe())
        self._ends: tuple[_Descriptor, _Descriptor] | None = (read_end, write_end)

    def listen(self, poller: Poller) -> None:
        """Have the poller wait for this as well."""
        if self._ends is not None:
            poller.subscribe(self._ends[0].number, self._drain, POLL_EVENT_TYPE.READ)

    def _drain(self, descriptor: int, events: int) -> None:
        os.read(descriptor, 4096)
        self.woken = True

    def wake(self) -> None:
        """End the wait, if there is one."""
        if self.sleeping:
            self.sleeping = False
            ends = self._ends
            try:
                if ends is not None:
                    os.write(ends[1].number, b"!")
            except BlockingIOError:
                pass  # there are enough in it to wake anybody

    def close(self) -> None:
        """Close the pipe, once no thread writes to it. Idempotent."""
        self._ends = None

    def abandon(self) -> None:
        """Close the pipe in a forked child, where no other thread can be writing to it."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()


class Ticker:
    """Runs a node until it is told to stop, or fails."""

    def __init__(
        self,
        node: Node,
        waker: Waker,
        ending: Callable[[ReplidictError], None],
        ended: Callable[[], None],
        check: Callable[[], None],
    ) -> None:
        """`check` is called regularly and may raise `StorageError`; `ending` is called with the reason when the node
        stops, before waiting calls are told; `ended` is called when all is over."""
        self._node = node
        self._waker = waker
        self._ending = ending
        self._ended = ended
        self._check = check
        self._stopping = False
        waker.listen(node.engine.poller)
        self._thread = OwnThread(self._run, f"{OWN_THREADS}{node.engine.address}")

    def start(self) -> None:
        """Begin. If it is interrupted (Ctrl-C), the thread may be running: `stop` it.

        Raises `RuntimeError` if the system has no thread left; the node has stopped then, as after `stop`.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self.end_unstarted()
            raise

    def end_unstarted(self) -> None:
        """Have the node stop, in this thread, because it has none."""
        self._stopping = True
        self._run()

    def stop(self) -> None:
        """Have the node stop. Idempotent."""
        self._stopping = True
        self._waker.sleeping = True  # whatever it does now, it looks again
        self._waker.wake()

    def join(self) -> None:
        """Wait until the node has stopped, after `stop`; not from within."""
        self._thread.join()

    def _run(self) -> None:
        with node_thread():
            try:
                failure = self._step_until_it_ends()
            except BaseException as error:  # noqa: BLE001 -- also SystemExit: nobody would know that the thread is gone
                failure = _internal(error)
            self._waker.sleeping = False
            try:
                with ExitStack() as ends:
                    ends.callback(self._node.stop, failure)
                    self._ending(failure)
            except BaseException:
                logger.exception("%s: could not let go of everything", self._node.engine.address)
            finally:
                self._ended()

    def _step_until_it_ends(self) -> ReplidictError:
        node, waker, engine = self._node, self._waker, self._node.engine
        check_at = float("-inf")
        try:
            while not self._stopping:
                waker.sleeping = True  # before looking whether there is work: who queues some afterwards wakes us
                due = node.idle_until()
                pause = min(due - clock(), LONGEST_PAUSE)
                if self._stopping:
                    break
                engine.poll(max(pause, 0.0))
                waker.sleeping = False
                if waker.woken or node.is_due(due):
                    waker.woken = False
                    node.step()
                if clock() >= check_at:
                    check_at = clock() + CHECK_EVERY
                    self._check()
        except (StorageError, RemovedError) as error:
            failure = self._reason(error)
            logger.error("%s: this node has stopped: %s", engine.address, failure)
            return failure
        except BaseException as error:
            logger.exception("%s: this node has stopped because of an internal error", engine.address)
            return _internal(error)
        return ClosedError("this ReplicatedDict is closed: open another one on the same directory")

    def _reason(self, error: StorageError | RemovedError) -> ReplidictError:
        """Why the node really stops: what looks like a bad disk may be another process that writes to it."""
        try:
            self._check()
            self._check()  # which gives the benefit of the doubt once
        except StorageError as other:
            other.__cause__ = error
            return other
        return error


def _internal(error: BaseException) -> StorageError:
    return StorageError(
        f"this node has stopped because of an internal error: {type(error).__name__}: {error}".removesuffix(": ")
    )

"""How a node's answers are delivered to an event loop: one wake-up for all answers of a step.

Rules kept here:

1. There is no thread: the node's thread puts an answer into the inbox of the loop that waits for it, and goes on.
2. All answers of a step reach a loop by one `call_soon_threadsafe`, at the end of the step.
3. A loop handles a limited number of answers in one iteration, and the rest in the next ones, so that other work goes
   on.
4. An inbox does not keep its loop alive. What arrives for a closed loop is dropped.
5. There is no lock, so a signal handler or a finalizer may ring a bell as well.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import AbstractEventLoop, Future
from collections import deque

from replidict.logging_thread import Logger
from replidict.node.step_end import StepEnd

logger = Logger(__name__)

AT_ONCE = 64
"""Answers that a loop hears of in one round: each lets a coroutine go on."""


class Inbox:
    """Delivers the answers of one node to one event loop."""

    def __init__(self, loop: AbstractEventLoop, step_end: StepEnd) -> None:
        self._loop = weakref.ref(loop)
        self._step_end = step_end
        self._rung: deque[Bell] = deque()
        self._told = False  # is the loop going to look?

    @property
    def loop(self) -> AbstractEventLoop | None:
        """The loop, unless it is gone."""
        return self._loop()

    def put(self, bell: Bell) -> None:
        """This one has rung; for any thread."""
        self._rung.append(bell)
        if not self._told:  # looked for after it was put in, as `_empty` does it before
            self._told = True
            self._step_end.call(self._wake)

    def _wake(self) -> None:
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._empty)
        except RuntimeError:  # it is closed
            while self._rung:
                self._rung.popleft().forget()
            self._told = False
        except Exception:  # a loop of somebody else's must not end the node
            logger.exception("an event loop can't be woken")

    def _empty(self) -> None:
        """Have the coroutines go on. In the loop."""
        for _ in range(AT_ONCE):
            if not self._rung:
                break
            self._rung.popleft().hear()
        if not self._rung:
            self._told = False
            if not self._rung:
                return
            self._told = True  # something came in between
        asyncio.get_running_loop().call_soon(self._empty)


class Bell:
    """What a coroutine waits on; it can be rung and waited on repeatedly."""

    __slots__ = ("_inbox", "_waiting", "rung")

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._waiting: Future[None] | None = None
        self.rung = False
        """Whether it has rung since somebody waited."""

    def ring(self) -> None:
        """Something has happened. For any thread; it neither blocks nor raises."""
        self.rung = True
        self._inbox.put(self)

    def hear(self) -> None:
        """Wake the waiter, unless the ring was noticed before without waiting. In the loop."""
        if self.rung:
            self._wake()

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def forget(self) -> None:
        """The loop is closed. The waiter never goes on, and this must not keep it alive: when it is freed, it releases
        what it has asked for."""
        self._waiting = None

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it rings, for `seconds` at most. Returns whether it rang."""
        if not self.rung:
            loop = asyncio.get_running_loop()
            if self._inbox.loop is not loop:
                raise RuntimeError("this belongs to another event loop: use it where it was made")
            self._waiting = loop.create_future()
            timer = None if seconds is None else loop.call_later(seconds, self._wake)
            try:
                await self._waiting
            finally:
                self._waiting = None
                if timer is not None:
                    timer.cancel()
        if self.rung:
            self.rung = False  # before its owner looks what has happened
            return True
        return False

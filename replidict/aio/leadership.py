"""Leadership for coroutines: work that runs in one process of the cluster at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self

from replidict.aio.calls import Calls, ended
from replidict.aio.inbox import Bell
from replidict.aio.lock import obtain
from replidict.api.held_lock import Held, is_held
from replidict.api.leadership import LONGEST_PAUSE, SHORTEST_PAUSE
from replidict.errors import LockLost, ReplidictError
from replidict.node.lock_requests import Wanted

logger = logging.getLogger(__name__)


class Leadership:
    """One candidate: a task that waits for the lock of its name, and runs `work(held)` while it holds the lock.

    When the lock is lost, the work is cancelled, and this candidate stands again once the work has ended. When the work
    returns although the lock is held, it is done: the lock is given back, and this candidate does not stand again. When
    the work raises, that is logged and kept in `error`, the lock is given back, and this candidate stands again after a
    pause that grows. `async with` it, or call `stop`: it goes on until then, or until the loop ends.
    """

    def __init__(self, calls: Calls[Any, Any], wanted: Wanted, work: Callable[[Held], Awaitable[object]]) -> None:
        self._calls, self._wanted, self._work = calls, wanted, work
        self._held: Held | None = None
        self.error: Exception | None = None
        """What the work raised the last time that it raised."""
        self._task = asyncio.get_running_loop().create_task(self._stand(), name=f"candidate {wanted.name}")

    @property
    def is_leader(self) -> bool:
        """Whether this candidate has the lock, and has not lost it."""
        return is_held(self._held)

    async def stop(self) -> None:
        """Withdraw the candidate. Running work is cancelled and waited for, and the lock is released.

        After the dict's timeout the lock is given back all the same: what still runs then has lost it. Idempotent.
        """
        self._task.cancel()
        await ended(self._task)

    async def wait(self) -> None:
        """Wait until this candidacy is over: its work is done, it was stopped, or the dict is closed."""
        await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def _stand(self) -> None:
        pause = SHORTEST_PAUSE
        while True:
            bell = self._calls.bell()
            try:
                held = await obtain(self._calls.inside.node, bell, self._wanted, None)
            except ReplidictError as error:
                if self._calls.inside.node.failure is None:
                    self.error = error
                    logger.exception("nobody stands for %r here any more", self._wanted.name)
                return
            assert held is not None, "it waits for as long as it takes"
            failed = await self._lead(held, bell)
            if failed is None:
                return
            if failed:
                await asyncio.sleep(pause * (1 + random.random()))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = SHORTEST_PAUSE

    async def _lead(self, held: Held, bell: Bell) -> bool | None:
        """Do the work. Returns whether it failed; None: it is done."""
        self._held = held
        work = asyncio.get_running_loop().create_task(self._do(held), name=f"leader {self._wanted.name}")
        work.add_done_callback(lambda _: bell.ring())
        try:
            while not work.done() and not held.lost.is_set():
                await bell.wait()  # it rings when the lock is lost, too
            work.cancel()
            await asyncio.wait([work])
        except asyncio.CancelledError:
            held.lost.set()
            work.cancel()
            with suppress(asyncio.CancelledError):  # of others, who stop it as well
                await ended(work, self._calls.inside.timeout)
            if work.done():
                self._outcome(work, held)
            raise
        else:
            return self._outcome(work, held)
        finally:
            self._held = None
            with suppress(LockLost):
                await self._calls.give_back(held)

    async def _do(self, held: Held) -> None:
        await self._work(held)

    def _outcome(self, work: asyncio.Task[None], held: Held) -> bool | None:
        """The work has ended: whether it failed; None: it is done."""
        if work.cancelled():
            return False
        error = work.exception()
        if error is None:
            return False if held.lost.is_set() else None
        if not isinstance(error, Exception):
            raise error
        self.error = error
        logger.error("the work of the leader of %r failed", self._wanted.name, exc_info=error)
        return True

    def __repr__(self) -> str:
        state = "leads" if self.is_leader else "over" if self._task.done() else "stands"
        return f"<{type(self).__name__} {self._wanted.name!r}, {state}>"

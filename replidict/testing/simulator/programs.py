"""Runs a workload in each simulated process, and starts it again when the process is restarted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from replidict.errors import ReplidictError
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.program_dict import ProgramDict
from replidict.testing.simulator.program_loop import ProgramLoop

Workload = Callable[[Any, int, random.Random], Coroutine[Any, Any, object]]


class Program:
    """The workload on one machine."""

    def __init__(self, workload: Workload, machine: Machine, number: int, seed: int) -> None:
        self._workload, self._machine, self._number, self._seed = workload, machine, number, seed
        self._world = machine.cluster
        self._loop: ProgramLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._runs = 0
        self._again = True
        self.name = f"program {number}"
        self.error: BaseException | None = None
        """What it has raised that it should not have."""
        machine.on_start.append(self._start)
        machine.on_end.append(self._end)
        machine.on_resume.append(self._resume)

    @property
    def face(self) -> ProgramDict:
        """The dict as it has it now."""
        node = self._machine.node
        assert node is not None
        return ProgramDict(node, self._world.trace, self.name)

    @property
    def done(self) -> bool:
        """Whether it has nothing more to do, unless its process begins again."""
        return self._task is not None and self._task.done()

    def run(self, coroutine: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        """Have something else run in its process, which must be there."""
        assert self._loop is not None
        return self._loop.create_task(coroutine)

    def cancel(self) -> None:
        """Have it end, and not begin again."""
        self._again = False
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._resume()

    def _start(self) -> None:
        node = self._machine.node
        assert node is not None
        node.locks.holder = f"{self.name} on {self._machine.address}"
        self._loop = ProgramLoop(  # type: ignore[abstract]  # what it leaves out is not for workloads
            self._world.loop, lambda: self._machine.paused
        )
        self._begin(self._loop)

    def _begin(self, loop: ProgramLoop) -> None:
        if loop.over or not self._again:
            return
        self._runs += 1
        self._world.trace.note(self.name, "begin", f"run {self._runs}")
        rng = random.Random(f"{self._seed} workload {self._number} {self._runs}")
        self._task = loop.create_task(self._workload(self.face, self._number, rng))
        self._task.add_done_callback(self._ended)

    def _end(self) -> None:
        if self._loop is not None:
            self._loop.end()

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.resume()

    def _ended(self, task: asyncio.Task[object]) -> None:
        error = None if task.cancelled() else task.exception()
        self._world.trace.note(self.name, "end", "" if error is None else type(error).__name__)
        if isinstance(error, ReplidictError | TimeoutError):  # it begins again, as a supervisor would have it
            loop = self._loop
            assert loop is not None
            self._world.loop.after(RESTART_AFTER, lambda: self._begin(loop))
        elif error is not None:
            self.error = error


RESTART_AFTER = 0.5
"""Seconds after which a program begins again that has ended with an error of its dict, or a timeout."""

"""`simulate`: runs a user's program on several machines in simulated time, with crashes and network partitions.

Rules kept here:

1. A run is a function of workload and seed: nothing else has an influence, neither real time nor the iteration order of
   sets or the scheduling of threads.
2. Faults end before the run does. Then programs have time to finish, and all nodes become equal, before `check`.
"""

from __future__ import annotations

import gc
import inspect
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replidict.options import Options
from replidict.testing.simulator.faults import Nemesis
from replidict.testing.simulator.programs import Program, Workload
from replidict.testing.simulator.violation import Violation
from replidict.testing.simulator.world import World

FAULTS: dict[str, tuple[str, ...]] = {
    "crash": ("crash", "crash of the leader", "crash of all", "power loss"),
    "pause": ("pause", "pause of the leader"),
    "partition": ("node cut off", "leader cut off", "split", "one-way", "connection lost"),
    "slow network": ("slow link",),
    "slow disk": ("slow node",),
    "clock": ("clock rate",),
}
"""What can go wrong, and in which ways."""

ALONE = ("crash", "pause", "slow disk", "clock")
"""Those of them that can befall a single machine."""

FINISHING = 15.0
"""Simulated seconds that programs have, after the last fault, to finish by themselves; then they are cancelled."""

LEAVING = 15.0
"""Simulated seconds that those which are cancelled have, and then the nodes to become equal."""

DRIFT = 0.04
"""By how much a clock may run fast or slow."""

KEPT = 2_000
"""Lines of the trace that can be looked at: what programs did and what befell machines, not what nodes said."""

SHOWN = 40
"""Lines of the trace that the text of a failure has."""


class SimulationFailed(AssertionError):
    """A simulated workload, or its check, has failed. The same seed fails in the same way, step by step."""

    def __init__(self, seed: int, trace: list[str], why: str) -> None:
        super().__init__(seed, trace, why)
        self.seed = seed
        """With which it fails again."""
        self.trace = trace
        """What happened, the last lines of it: time, who, what."""
        self.why = why

    def __str__(self) -> str:
        last = "\n".join(self.trace[-SHOWN:])
        return f"seed {self.seed}: {self.why}\n{last}\nIt fails again with simulate(..., seed={self.seed})."


@dataclass(frozen=True)
class SimulationResult:
    """The numbers of a run that did not fail."""

    seed: int
    nodes: int
    seconds: float
    digest: str
    """Stands for all that happened: two runs with the same digest were the same."""

    trace: list[str] = field(repr=False)
    """What happened, the last lines of it: time, who, what."""

    faults: Counter[str]
    """How often what went wrong."""


def simulate(
    workload: Workload,
    *,
    seed: int = 0,
    nodes: int = 3,
    seconds: float = 60.0,
    faults: Collection[str] = tuple(FAULTS),
    check: Callable[[list[Any]], object] | None = None,
) -> SimulationResult:
    """Run a program on each of several machines, in simulated time, while faults befall them.

    Machines, network, disks and clocks are simulated, the nodes are real. Which faults come, and when, is drawn by the
    seed; with `faults=()` nothing goes wrong. A run of a minute takes about half a second.

    Args:
        workload: `async def workload(d, node, random)`: `d` is the dict for coroutines on machine `node`, `random` a
            generator of its own. It runs on every machine, and again when that has crashed, or when it ends with an
            error of the dict, such as `NotCommitted`, or with `TimeoutError`. Time is simulated for all of asyncio, and
            for nothing else: it must not use threads, files, or `time`.
        seed: Decides all that is left to chance.
        nodes: How many machines.
        seconds: For how long faults come. After that those workloads that do not end by themselves are cancelled.
        faults: Which kinds may come, of `FAULTS`.
        check: `check(dicts)`, called at the end, when all nodes are equal, with the dict of each for plain reads; a
            coroutine function gets those for coroutines.

    Returns:
        What happened.

    Raises:
        SimulationFailed: An assertion of workload or check did not hold, or another error came out of one.
        ValueError: An argument makes no sense.

    Example:
        >>> async def count(d, node, random):  # doctest: +SKIP
        ...     await d.increment("visits")
        >>> simulate(count, seed=7, check=lambda dicts: dicts[0]["visits"] >= 3)  # doctest: +SKIP
    """
    _check_arguments(workload, nodes, seconds, faults)
    with _quiet(), _without_collector(), tempfile.TemporaryDirectory(prefix="replidict-") as directory:
        addresses = [f"n{number}:7000" for number in range(nodes)]
        world = World(seed, addresses, Options(), Path(directory), keep_trace=KEPT, shows_messages=False)
        try:
            return _Run(world, workload, seconds, faults).through(check)
        except Violation as violation:
            raise SimulationFailed(seed, world.trace.lines(), f"the simulated nodes: {violation}") from violation
        finally:
            world.destroy()


def _check_arguments(workload: object, nodes: object, seconds: object, faults: Collection[str]) -> None:
    if not _is_coroutine_function(workload):
        raise ValueError(f"workload={workload!r}: must be a coroutine function that takes (d, node, random)")
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise ValueError(f"nodes={nodes!r}: must be a positive number of machines")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
        raise ValueError(f"seconds={seconds!r}: must be a positive number of seconds")
    unknown = sorted(set(faults) - FAULTS.keys())
    if unknown or isinstance(faults, str):
        raise ValueError(f"faults={faults!r}: must be some of {', '.join(map(repr, FAULTS))}")


def _is_coroutine_function(function: object) -> bool:
    return any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004


@contextmanager
def _quiet() -> Iterator[None]:
    """Nodes that fail on purpose log a lot."""
    logger = logging.getLogger("replidict")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Switch the garbage collector off: locks are released when they are collected, and the time of that must not
    depend on what else is in memory."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Run:
    """One run, from beginning to end."""

    def __init__(self, world: World, workload: Workload, seconds: float, faults: Collection[str]) -> None:
        self._world, self._seconds = world, seconds
        rng = random.Random(f"seed {world.seed} simulation")
        self._draw_world(rng)
        possible = [group for group in FAULTS if group in faults and (len(world.machines) > 1 or group in ALONE)]
        groups = rng.sample(possible, min(len(possible), rng.choice((2, 3))))
        kinds = [kind for group in groups for kind in rng.sample(FAULTS[group], min(2, len(FAULTS[group])))]
        pace = rng.choice((1.0, 2.0, 5.0)), rng.choice((0.5, 2.0, 5.0))
        self._nemesis = Nemesis(world, rng, drift=DRIFT, kinds=kinds, pace=pace)
        self._strikes = bool(kinds)
        world.trace.note("seed", str(world.seed), f"{kinds} every {pace[0]:g} s, for {pace[1]:g} s")
        machines = world.machines.values()
        self._programs = [Program(workload, machine, i, world.seed) for i, machine in enumerate(machines)]

    def _draw_world(self, rng: random.Random) -> None:
        self._world.network.delay = rng.choice(((0.0002, 0.002), (0.001, 0.02), (0.0001, 0.08)))
        self._world.fsync_time = rng.choice((0.0003, 0.002, 0.02))

    def through(self, check: Callable[[list[Any]], object] | None) -> SimulationResult:
        """All of it."""
        world = self._world
        world.start()
        if self._strikes:
            self._nemesis.start()
            self._nemesis.revive()
        self._go_on(self._seconds, lambda: False)
        self._nemesis.stop()
        world.trace.note("seed", "faults end")
        self._go_on(FINISHING, lambda: all(program.done for program in self._programs))
        for program in self._programs:
            program.cancel()
        self._go_on(LEAVING, lambda: all(program.done for program in self._programs))
        if not all(program.done for program in self._programs):
            self._fail(f"a workload was cancelled, and has not ended within {LEAVING:g} s")
        self._go_on(LEAVING, self._is_settled)
        if not self._is_settled():
            self._fail(f"nodes are not equal within {LEAVING:g} s after the last fault")
        if check is not None:
            self._check(check)
        trace = world.trace
        return SimulationResult(
            world.seed, len(self._programs), self._seconds, trace.digest(), trace.lines(), self._nemesis.counts
        )

    def _go_on(self, seconds: float, enough: Callable[[], bool]) -> None:
        loop = self._world.loop
        loop.run_until(loop.now + seconds, lambda: enough() or any(each.error for each in self._programs))
        for program in self._programs:
            if program.error is not None:
                self._fail(f"{program.name}: {_described(program.error)}", program.error)

    def _is_settled(self) -> bool:
        """Whether all nodes run and are equal, and nothing is under way."""
        nodes = [machine.node for machine in self._world.machines.values()]
        leaders = [node for node in nodes if node is not None and node.engine.is_leader]
        return len(leaders) == 1 and all(
            node is not None
            and node.engine.term == leaders[0].engine.term
            and node.engine.last_applied == leaders[0].engine.log.last_index
            and not node.proposals.busy
            for node in nodes
        )

    def _check(self, check: Callable[[list[Any]], object]) -> None:
        faces = [program.face for program in self._programs]
        try:
            if not _is_coroutine_function(check):
                check([face.sync for face in faces])
                return
            task = self._programs[0].run(check(faces))  # type: ignore[arg-type]  # it is a coroutine
            self._go_on(FINISHING, task.done)
            if not task.done():
                self._fail(f"check has not ended within {FINISHING:g} s")
            task.result()
        except SimulationFailed:
            raise
        except Exception as error:  # noqa: BLE001 -- it is the user's, and named
            self._fail(f"check: {_described(error)}", error)

    def _fail(self, why: str, cause: BaseException | None = None) -> None:
        raise SimulationFailed(self._world.seed, self._world.trace.lines(), why) from cause


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")

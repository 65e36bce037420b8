"""Simulated machines: they start, step, pause, crash and restart a node each.

Rules kept here:

1. A machine has a clock of its own, with its own rate and offset; everything a node sees of time is this clock. It
   goes on while the process is down, and begins anew when the machine loses its power.
2. A step happens at one moment of the simulation, but takes time: what it sends after a commit leaves that much later,
   and the node is busy until it is over.
3. A crash takes the process at any moment, also in the middle of a statement; only its disk is left.
4. A machine whose disk says that it is no member any more does not start, and only one that is none stops for that
   reason.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from replidict.errors import ClosedError, RemovedError, ReplidictError, StorageError, removed
from replidict.machine.codec import DEFAULT_CODEC
from replidict.options import Options
from replidict.protocol.peer_messages import Message
from replidict.release import FIRST, THIS
from replidict.security import split_address
from replidict.storage import records, snapshot
from replidict.storage.directory import Beginning
from replidict.storage.store import Store
from replidict.testing.simulator.disk import Crash, Disk, Fault, Write
from replidict.testing.simulator.loop import Loop, Timer, Trace
from replidict.testing.simulator.network import Event, Hello, Network
from replidict.testing.simulator.simulated_background import SimulatedBackground
from replidict.testing.simulator.simulated_node import SimulatedNode
from replidict.testing.simulator.transport import SimulatedTransport
from replidict.testing.simulator.violation import Violation

LONGEST_PAUSE = 1.0
"""Seconds between two steps at most, as in the product's ticker."""

SPIN = 20
"""A node that wants the next step at once so many times in a row, with nothing to do in it, is slowed down."""


class Observer:
    """Is told what happens to machines, and does nothing about it. Whoever checks something overrides what it needs."""

    def founded(self, identities: Mapping[str, str]) -> None:
        """The cluster begins, with these disks by address."""

    def new_disk(self, disk: Disk) -> None:
        """A disk comes into a machine."""

    def started(self, machine: Machine) -> None:
        """A node has loaded what its disk holds."""

    def stepped(self, machine: Machine) -> None:
        """A node has made a step."""

    def knows_committed(self, machine: Machine) -> None:
        """A node is about to end, and may take more as committed than before."""

    def committed(self, machine: Machine, writes: list[Write]) -> None:
        """A transaction is about to be durable on a node's disk."""

    def sent(self, machine: Machine, receiver: str, message: Message) -> None:
        """A message leaves a node."""

    def left(self, machine: Machine) -> None:
        """A node has stopped because it is no member any more."""


class Surroundings(Protocol):
    """What the machines of a simulation share; see `world`."""

    seed: int
    options: Options
    directory: Path
    loop: Loop
    trace: Trace
    network: Network
    counters: dict[str, int]
    fsync_time: float
    step_time: float

    @property
    def observer(self) -> Observer:
        """The observer of this simulation."""
        ...


class Machine:
    """One simulated machine and the node on it, if it runs. An `End` of the network."""

    def __init__(self, cluster: Surroundings, address: str, beginning: Beginning) -> None:
        self.cluster = cluster
        self.address = address
        self.name = split_address(address)[0]
        self.rng = random.Random(f"{cluster.seed} {self.name}")
        self.disk = self._new_disk(beginning)
        self.release = THIS
        """What it runs, from the next start on."""
        self.removed = False
        """Whether its node knows that it is no member any more."""
        self.diskless = False
        """Whether its disk is lost, and no new one came yet."""
        self.directory = cluster.directory / self.name
        self.directory.mkdir()
        self.node: SimulatedNode | None = None
        self.transport: SimulatedTransport | None = None
        self.paused = False
        self.powered = True
        self.incarnation = 0
        self.lag = 0.0
        self.slowness = 1.0
        self.damage_next_snapshot = False
        self.differs = False
        """Is it set up otherwise than the others, so that its node may have to stop though its disk is well?"""
        self.backs_up = False
        """Does a backup begin before each step? It has the state table brought up to date..."""
        self.crashes_in_backups = False
        """... and the node dies at once when that is done, the first time when more than that waits to be written."""
        self.on_start: list[Callable[[], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self.on_resume: list[Callable[[], None]] = []
        self._inbox: list[Event] = []
        self._woken = False
        self._timer: Timer | None = None
        self._busy_until = 0.0
        self._stepping = False
        self._hits = 0  # of its disk when it was started
        self._idle_steps = 0
        self._store: Store | None = None
        self._clock = [(0.0, self.rng.uniform(10.0, 10_000.0), 1.0)]  # (since, then showed, rate), newest last

    def _new_disk(self, beginning: Beginning) -> Disk:
        disk = Disk(self.address, beginning, partial(self.cluster.observer.committed, self))
        disk.latency = self._fsync
        self.cluster.observer.new_disk(disk)
        return disk

    def replace_disk(self, beginning: Beginning) -> None:
        """A new disk comes into the machine, which must not run; what was on the old one is lost."""
        assert self.node is None
        self.cluster.trace.note(self.address, "new disk", beginning.node_id)
        self.disk.destroy()
        self.disk = self._new_disk(beginning)
        self.removed = self.diskless = False

    # -- its clock --------------------------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        """The true time, within a step too."""
        return self.cluster.loop.now + self.lag

    def clock(self) -> float:
        """The time of the machine's clock."""
        since, showed, rate = self._clock[-1]
        return showed + (self.time - since) * rate

    def true_time(self, shown: float) -> float:
        """When the clock shows, or showed, this."""
        for since, showed, rate in reversed(self._clock):
            if shown >= showed:
                return since + (shown - showed) / rate
        return self._clock[0][0] - (self._clock[0][1] - shown)

    def _reboot(self) -> None:
        """The machine was without power: its clock counts from its start."""
        self._clock = [(self.cluster.loop.now, self.rng.uniform(1.0, 100.0), self._clock[-1][2])]

    def set_rate(self, rate: float) -> None:
        """Have the clock run fast or slow from now on."""
        self._clock.append((self.cluster.loop.now, self.clock(), rate))
        self._schedule()

    # -- its process ------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        return self.node is not None

    @property
    def reachable(self) -> bool:
        """Whether it runs and answers."""
        return self.node is not None and not self.paused

    def start(self) -> None:
        """Start the node on what its disk holds."""
        cluster = self.cluster
        assert self.node is None and not self.diskless
        self.incarnation += 1
        self.paused = False
        self.powered = True
        self._hits = self.disk.hits
        cluster.trace.note(self.address, "start", f"incarnation {self.incarnation}")
        difference = self.disk.differences()
        if difference is not None:
            raise Violation("disk", f"{self.address}: {difference}")
        self._inbox = []
        self._idle_steps = 0
        self._busy_until = cluster.loop.now
        options = cluster.options
        try:
            self._store = Store(self.disk.connect(), self.disk.uri, log_retain=options.log_retain)
            self.node = SimulatedNode(
                self._store,
                codec=DEFAULT_CODEC,
                options=options,
                transport=self._transport,
                clock=self.clock,
                rng=random.Random(f"{cluster.seed} {self.name} {self.incarnation}"),
                background=SimulatedBackground(cluster.loop, self._job_time, self._before_job),
                snapshot_directory=self.directory,
                wake=self.wake,
            )
        except StorageError as error:
            raise Violation("restart", f"{self.address} can't start on what it wrote itself: {error}") from error
        self.node.feature_level.release = self.release
        cluster.observer.started(self)
        try:
            self._must_be_member(self._store.members)
            self.node.recover()
            cluster.observer.stepped(self)
        except (StorageError, RemovedError) as error:
            self.stop(error)
            return
        except Crash:
            self.crash()
            return
        finally:
            self._busy_until += self.lag  # its clock never goes back
            self.lag = 0.0
        assert self.transport is not None
        cluster.network.started(self.transport)
        self._schedule()
        for hook in self.on_start:
            hook()

    def _must_be_member(self, known: records.Members) -> None:
        """As `replidict.server.open_node` does."""
        if self.address not in (*known.voters, *known.learners):
            raise removed(self.address)

    def _transport(self, *arguments: Any) -> SimulatedTransport:
        cluster, on_send = self.cluster, partial(self.cluster.observer.sent, self)
        may_hold_lease = cluster.options.lease_reads or self.release == FIRST  # which does not say
        hello = Hello(self.disk.node_id, self.release, may_hold_lease)
        self.transport = SimulatedTransport(cluster.network, self.address, hello, on_send, *arguments)
        return self.transport

    def _job_time(self) -> float:
        return self.rng.choice((0.0, 0.001, 0.01, 0.1)) * self.rng.random()

    def _before_job(self, function: Callable[..., Any], *arguments: Any) -> None:
        if self.damage_next_snapshot and function is snapshot.check:
            self.damage_next_snapshot = False
            path: Path = arguments[0]
            data = bytearray(path.read_bytes())
            used = [position for position, byte in enumerate(data) if byte]  # much of a small file is empty
            for _ in range(self.rng.choice((1, 5))):
                data[self.rng.choice(used)] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)

    def _fsync(self) -> None:
        self.lag += self.cluster.fsync_time * self.slowness * (0.5 + self.rng.random())

    def crash(self, *, silently: bool = False) -> None:
        """The process is killed, or with `silently` the machine loses its power."""
        node = self._gone(silently)
        if node is None:
            return
        self.powered = not silently
        self.cluster.trace.note(self.address, "crash")
        self._abandon(node)
        if silently:
            self._reboot()

    def _abandon(self, node: SimulatedNode) -> None:
        """Do what the system does when a process dies: files are closed, transactions are not committed."""
        snapshots = node.engine.snapshots
        node.engine.transport.destroy()
        node._background.close()
        if snapshots._file is not None:
            snapshots._file.close()
        if snapshots._incoming is not None:
            snapshots._incoming.file.close()
        node.scrubber.close()
        node.store._db.close()

    def stop(self, failure: ReplidictError) -> None:
        """The node ends in an orderly way: it was closed, or it failed."""
        node = self._gone(silently=False)
        if node is None:
            return
        self.cluster.trace.note(self.address, "stop", str(failure).replace(self.disk.uri, "its disk"))
        self.node = node  # callbacks may look
        try:
            node.stop(failure)
        except Crash:
            self.cluster.trace.note(self.address, "crash", "while stopping")
            self._abandon(node)
        finally:
            self.node = None
        if self.disk.hits == self._hits and isinstance(failure, StorageError) and not self.differs:
            raise Violation("fail-stop", f"{self.address} stopped although its disk is well: {failure}")
        if isinstance(failure, RemovedError):
            self.removed = True
            self.cluster.observer.left(self)
            self.cluster.counters["removed"] += 1

    def close(self) -> None:
        """Stop as `close()` does."""
        self.stop(ClosedError("closed"))

    def _gone(self, silently: bool) -> SimulatedNode | None:
        node, self.node = self.node, None
        if node is None:
            return None
        self.paused = False
        self._inbox = []
        self.lag = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.cluster.network.died(self.address, silently=silently)
        for hook in self.on_end:
            hook()
        return node

    def pause(self) -> None:
        """SIGSTOP: nothing runs, and the clock goes on."""
        if self.node is not None:
            self.paused = True
            self.cluster.trace.note(self.address, "pause")

    def resume(self) -> None:
        """SIGCONT."""
        if self.paused:
            self.paused = False
            self.cluster.trace.note(self.address, "resume")
            self._schedule()
            for hook in self.on_resume:
                hook()

    # -- its steps --------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Another thread queued something."""
        self._woken = True
        if not self._stepping and self.node is not None:
            self._schedule_at(self.cluster.loop.now)

    def receive(self, event: Event) -> None:
        """Something arrived from the network."""
        self._inbox.append(event)
        if not self._stepping:
            self._schedule_at(self.cluster.loop.now)

    def _schedule_at(self, time: float) -> None:
        if self.paused or self.node is None:
            return
        time = max(time, self._busy_until)
        if self._timer is not None:
            if self._timer.action is not None and self._timer.time <= time:
                return
            self._timer.cancel()
        self._timer = self.cluster.loop.at(time, self._step)

    def _schedule(self) -> None:
        """Have the next step done when the node wants it."""
        if self.node is None:
            return
        now = self.cluster.loop.now
        if self._inbox:
            self._schedule_at(now)
            return
        due = self.node.idle_until()
        if due == float("-inf"):
            # What is always due costs no end of steps.
            pause = 0.0 if self._idle_steps < SPIN else min(0.01, 0.0005 * (self._idle_steps - SPIN))
            self.cluster.counters["spins"] += self._idle_steps == SPIN
            self._schedule_at(now + pause)
            return
        since, showed, rate = self._clock[-1]
        self._schedule_at(min(since + (due - showed) / rate + 1e-9, now + LONGEST_PAUSE))

    def _step(self) -> None:
        node, cluster = self.node, self.cluster
        self._timer = None
        if node is None or self.paused:
            return
        self._stepping = True
        cluster.counters["steps"] += 1
        inbox, self._inbox = self._inbox, []
        engine = node.engine
        before = (engine.last_applied, engine.log.last_index)
        transport = self.transport
        assert transport is not None
        try:
            due = node.idle_until()
            for event in inbox:
                transport.handle(event)
            if self.backs_up:
                if self.crashes_in_backups and node.store.term_pending:
                    self.disk.fault, self.crashes_in_backups = Fault("committed", 0, True), False
                node.call(node.store.flush)
            if self._woken or node.is_due(due):
                self._woken = False
                node.step()
            cluster.observer.stepped(self)
        except Crash:
            cluster.observer.knows_committed(self)
            self.crash()
            return
        except (StorageError, RemovedError) as error:
            cluster.observer.knows_committed(self)
            self.stop(error)
            return
        except Violation:
            raise
        except Exception as error:
            raise Violation("internal error", f"{self.address}: {traceback.format_exc()}") from error
        finally:
            self._stepping = False
            lag, self.lag = self.lag, 0.0
        if inbox or before != (engine.last_applied, engine.log.last_index):
            self._idle_steps = 0
        else:
            self._idle_steps += 1
        self._busy_until = cluster.loop.now + lag + cluster.step_time * self.slowness
        self._schedule()

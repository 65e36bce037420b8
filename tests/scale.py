"""What a cluster does far apart, on slow disks, and with many of everything: the figures of docs/scale.md.

`python -m tests.scale ROW` prints one of its tables: `area`, `disk`, `readers` and `leases` are simulated (whole nodes
on a simulated clock, network and disk), `watches` and `keys` are measured on this machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from unittest import mock

from typing_extensions import override

from replidict import Options, ReplicatedDict
from replidict.machine import commands as cmd
from replidict.machine.codec import encode, encode_key
from replidict.node.held_leases import HeldLease
from replidict.node.linearizable_reads import Read
from replidict.node.proposals import Write
from replidict.storage import records
from replidict.storage.directory import Beginning
from replidict.testing.simulator import network
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.world import CLUSTER_ID, World

VALUE = b"x" * 100
"""What is written, in all rows."""


class Far(World):
    """Voters, and readers beside them, with messages that take `round_trip` seconds there and back."""

    def __init__(
        self, voters: int, directory: Path, options: Options, *, readers: int = 0, round_trip: float = 0.0005,
        sync: float = 0.001, seed: int = 1,
    ) -> None:  # fmt: skip
        self.voters = [f"v{number}:7000" for number in range(voters)]
        self.readers = [f"zr{number}:7000" for number in range(readers)]
        super().__init__(seed, [*self.voters, *self.readers], options, directory, shows_messages=False)
        self.network.delay = (round_trip / 2, round_trip / 2 * 1.1)
        self.fsync_time = sync

    @override
    def founding(self, addresses: list[str]) -> Beginning:
        members = records.Members(0, sorted(self.voters), sorted(self.readers), readers=sorted(self.readers))
        return Beginning(CLUSTER_ID, self.new_identity(), members)

    @property
    def leader(self) -> Machine | None:
        """Who leads."""
        return next((m for m in self.machines.values() if m.node is not None and m.node.engine.is_leader), None)

    def pass_time(self, seconds: float, enough: Callable[[], bool] | None = None) -> None:
        """Go on."""
        self.loop.run_until(self.loop.now + seconds, enough)

    def settle(self) -> Machine:
        """Start all, and wait until somebody leads whom everybody follows, at the newest feature level."""
        self.start()
        nodes = [machine.node for machine in self.machines.values()]
        self.pass_time(60, lambda: all(node is not None and node.feature_level.current > 1 for node in nodes))
        self.pass_time(5)
        leader = self.leader
        assert leader is not None, "nobody leads"
        return leader

    @property
    def term(self) -> int:
        """The latest term."""
        return max(m.node.engine.term for m in self.machines.values() if m.node is not None)


@contextmanager
def far(voters: int, options: Options | None = None, **more: float) -> Iterator[Far]:
    """A cluster like this, not started yet."""
    base = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="replidict-scale-", dir=base if base.is_dir() else None))
    try:
        with mock.patch.object(network, "MOST_MESSAGES", 1 << 40):
            world = Far(voters, directory, options or Options(), **more)  # type: ignore[arg-type]
            try:
                yield world
            finally:
                world.destroy()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass
class Caller:
    """One client of one node, which calls again as soon as it is answered."""

    machine: Machine
    reads: bool = False
    took: list[float] = field(default_factory=list)
    stopped: bool = False
    _began: float = 0.0

    def call(self) -> None:
        """Call, and again when that is answered."""
        node = self.machine.node
        if self.stopped or node is None:
            return
        self._began = self.machine.cluster.loop.now
        if self.reads:
            node.reads.submit(Read(self._answered))
        else:
            operation = cmd.Put(encode_key(f"key {len(self.took)}"), encode(VALUE))
            node.proposals.submit(Write(operation, 200, self._answered))

    def _answered(self) -> None:
        self.took.append(self.machine.time - self._began)
        self.machine.cluster.loop.after(0.001, self.call)


def times(world: Far, machine: Machine, seconds: float, *, reads: bool = False) -> list[float]:
    """How long the calls of one client take that makes one after the other on this machine."""
    caller = Caller(machine, reads)
    caller.call()
    world.pass_time(seconds)
    caller.stopped = True
    world.pass_time(2)
    return caller.took[3:]  # the first one opens the session


def outage(world: Far, *, silently: bool) -> float:
    """The leader's process is killed, or its machine loses its power: how long it takes until a write that another
    node was asked for at that moment is acknowledged."""
    leader = world.leader
    assert leader is not None
    other = next(machine for machine in world.machines.values() if machine is not leader)
    leader.crash(silently=silently)
    assert other.node is not None
    told: list[float] = []
    began = world.loop.now
    write = Write(cmd.Put(encode_key("after"), encode(VALUE)), 200, lambda: told.append(other.time - began))
    other.node.proposals.submit(write)
    world.pass_time(60, lambda: bool(told))
    leader.start()
    world.pass_time(10 + 3 * world.network.rng.random())
    return told[0] if told else float("inf")


def milliseconds(seconds: float) -> str:
    """As people read it."""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def table(titles: str, rows: Iterator[list[object]]) -> None:
    """Print a table, row by row."""
    names = titles.split("; ")
    print(f"| {' | '.join(names)} |")
    print(f"|{'---|' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


# -- simulated --------------------------------------------------------------------------------------------------------


def patient(round_trip: float) -> Options:
    """Options for nodes that far apart: see docs/scale.md."""
    heartbeat = max(0.1, round_trip)
    return Options(heartbeat=heartbeat, election_timeout=max(0.5, 5 * heartbeat))


def area(voters: int, round_trip: float, minutes: float = 5, outages: int = 10) -> list[object]:
    """A row of the table for nodes far apart."""
    options = patient(round_trip)
    with far(voters, options, round_trip=round_trip) as world:
        leader = world.settle()
        follower = next(machine for machine in world.machines.values() if machine is not leader)
        writes, remote = times(world, leader, 20), times(world, follower, 20)
        reads, elsewhere = times(world, leader, 5, reads=True), times(world, follower, 5, reads=True)
        term = world.term
        world.pass_time(minutes * 60)
        elections = world.term - term
        killed = [outage(world, silently=False) for _ in range(outages)]
        lost = [outage(world, silently=True) for _ in range(outages)]
    return [
        voters, milliseconds(round_trip), f"{options.heartbeat:g}, {options.election_timeout:g} s",
        milliseconds(median(writes)), milliseconds(median(remote)), milliseconds(median(reads)),
        milliseconds(median(elsewhere)), elections, f"{median(killed):.1f} s, {max(killed):.1f} s",
        f"{median(lost):.1f} s, {max(lost):.1f} s",
    ]  # fmt: skip


def disk(sync: float, seconds: float = 30, at_once: float = 3) -> list[object]:
    """A row of the table for slow disks: three nodes in one place."""
    with far(3, sync=sync) as world:
        leader = world.settle()
        term = world.term
        took = times(world, leader, seconds)
        callers = [Caller(leader) for _ in range(64)]
        for caller in callers:
            caller.call()
        world.pass_time(at_once)
        rate = sum(len(caller.took) for caller in callers) / at_once
        for caller in callers:
            caller.stopped = True
        world.pass_time(2)
        elections = world.term - term
    return [milliseconds(sync), milliseconds(median(took)), milliseconds(quantiles(took, n=100)[98]),
            f"{rate:,.0f}", elections]  # fmt: skip


def readers(number: int, seconds: float = 10) -> list[object]:
    """A row of the table for read replicas: three voters, and so many members without a vote."""
    with far(3, readers=number) as world:
        leader = world.settle()
        spent = [0.0]
        step = leader._step

        def timed() -> None:
            began = time.process_time()
            step()
            spent[0] += time.process_time() - began

        leader._step = timed  # type: ignore[method-assign]
        world.pass_time(seconds)
        idle, spent[0] = spent[0] / seconds, 0.0
        sent = world.network.messages
        took = times(world, leader, seconds)
        busy = max(spent[0] - idle * seconds, 0.0) / len(took)
        messages = (world.network.messages - sent) / len(took)
        assert leader.node is not None
        index = leader.node.engine.last_applied
        world.pass_time(1)
        behind = sum(m.node is None or m.node.engine.last_applied < index for m in world.machines.values())
    return [number, milliseconds(median(took)), f"{messages:.0f}", f"{busy * 1e6:.0f} µs", f"{idle:.1%}", behind]


def leases(number: int, minutes: float = 10) -> list[object]:
    """A row of the table for leases of 10 s, spread over three nodes; a leader is paused or cut off once a minute."""
    with far(3, round_trip=0.002) as world:
        world.settle()
        nodes = [machine.node for machine in world.machines.values() if machine.node is not None]
        held: list[HeldLease] = [nodes[n % 3].leases.ask(10.0)[0] for n in range(number)]
        world.pass_time(5)
        assert all(lease.granted and not lease.lost.is_set() for lease in held)
        first = max(node.engine.last_applied for node in nodes)
        world.pass_time(60)
        entries = max(node.engine.last_applied for node in nodes) - first
        term = world.term
        for minute in range(int(minutes)):
            leader = world.leader
            assert leader is not None
            ways = [(leader.address, other) for other in world.voters if other != leader.address]
            if minute % 2:
                leader.pause()
            else:
                world.network.block(ways)
            world.pass_time(3)
            leader.resume()
            world.network.unblock(ways if not minute % 2 else [])
            world.pass_time(57)
        lost = sum(lease.lost.is_set() for lease in held)
        return [f"{number:,}", f"{entries / 60:.1f}", world.term - term, lost]


# -- measured on this machine -----------------------------------------------------------------------------------------


def watches(number: int, writes: int = 2_000) -> list[object]:
    """A row of the table for watches: so many of a single key each in one process, then so many of everything."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ReplicatedDict[str, bytes](Path(directory) / "d", options=Options(durability="process")) as d,
    ):
        d["warm"] = VALUE
        alone = _write_time(d, writes)
        before = _resident()
        open_ = [d.watch(f"watched/{n}") for n in range(number)]
        each = (_resident() - before) / number
        of_one_key = _write_time(d, writes)
        d["watched/7"] = VALUE
        change = open_[7].next(timeout=10)
        assert change is not None and change.events[0].key == "watched/7"
        for watch in open_:
            watch.close()
        open_ = [d.watch() for _ in range(number)]
        began = time.process_time()
        d["told to all"] = VALUE
        assert all(watch.next(timeout=10) is not None for watch in open_)
        told = (time.process_time() - began) / number
        for watch in open_:
            watch.close()
    return [f"{number:,}", _micro(alone), _micro(of_one_key), _micro(told), f"{each / 1024:.1f} KiB"]


def _write_time(d: ReplicatedDict[str, bytes], writes: int) -> float:
    """The processor's time that a write takes, with all that it has to tell: the best of ten series, for others want
    the processor, too."""
    took = []
    for _ in range(10):
        began = time.process_time()
        for n in range(writes // 10):
            d[f"written/{n}"] = VALUE
        took.append((time.process_time() - began) / (writes // 10))
    return min(took)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"


def _resident() -> int:
    """Bytes of memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def keys(number: int) -> list[object]:
    """A row of the table for keys: `key/0000007` and so on with values of 100 bytes, in one node."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "d"
        with ReplicatedDict[str, bytes](path, timeout=600) as d:
            d.update((f"key/{n:07}", VALUE) for n in range(number))
            backup = d.backup(Path(directory) / "backup")
        script = (
            "import sys; from tests.scale import _resident; from replidict import ReplicatedDict; "
            "before = _resident(); d = ReplicatedDict(sys.argv[1]); d.wait_ready(600); "
            "print(_resident() - before); d.close()"
        )
        answer = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
        memory = int(answer.stdout)
        size = backup.path.stat().st_size
    return [f"{number:,}", f"{memory / 2**20:,.0f} MiB", f"{memory / number:.0f} bytes",
            f"{size / 2**20:,.0f} MiB", f"{size / number:.0f} bytes"]  # fmt: skip


ROWS: dict[str, tuple[str, Callable[[], Iterator[list[object]]]]] = {
    "area": (
        "Voters; Round trip; heartbeat, election_timeout; Write on the leader; Write elsewhere; "
        "Linearizable read on the leader; Elsewhere; Elections in 5 minutes; Leader killed: median, longest; "
        "Without power: median, longest",
        lambda: (area(voters, trip) for voters, trip in ((3, 0.02), (3, 0.08), (5, 0.08), (3, 0.2), (7, 0.2))),
    ),
    "disk": (
        "A sync takes; Write, median; 99 in 100; Writes/s of 64 at once; Elections",
        lambda: map(disk, (0.001, 0.01, 0.05, 0.2)),
    ),
    "readers": (
        "Readers; Write; Messages a write; Python on the leader a write; Idle; Behind after a second",
        lambda: map(readers, (0, 10, 100)),
    ),
    "leases": ("Leases; Log entries/s; Elections in 10 minutes; Lost", lambda: map(leases, (3, 1_000))),
    "watches": (
        "Watches; A write without; With watches of other keys; What all watch, for each of them; Memory of each",
        lambda: map(watches, (100, 10_000)),
    ),
    "keys": (
        "Keys; Memory after a restart; a key; Snapshot; a key",
        lambda: map(keys, (100_000, 1_000_000)),
    ),
}  # fmt: skip
"""The tables, by name: their titles, and their rows."""


def main(arguments: list[str] | None = None) -> int:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("row", nargs="*", choices=[*ROWS, []], help="which tables; all by default")
    logging.getLogger("replidict").setLevel(logging.CRITICAL)
    for name in parser.parse_args(arguments).row or ROWS:
        table(ROWS[name][0], ROWS[name][1]())
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

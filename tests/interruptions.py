"""Uses a dict while signal handlers and finalizers, which use it as well, interrupt every call at random points.

    python -m tests.interruptions --count 10000

A signal arrives every few milliseconds, and the collector runs all the time, in whatever thread it happens to: each
handler and each `__del__` makes a random public call. Nothing may hang; every write that was acknowledged is there at
the end, also after the dict is opened again; and of an update of several keys all is seen or nothing. Every now and
then a handler closes the dict, wherever the program is then, and it is opened again.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from replidict import ClosedError, NotCommitted, Options, OutcomeUnknown, ReplicatedDict, ReplidictError
from tests.clusters import free_addresses

Dict = ReplicatedDict[Any, Any]

PAIR = 5  # keys that are always written together
PATIENCE = 60  # seconds in which something must happen
CLOSE_EVERY = 50  # interruptions


class Program:
    """The dict, what was written to it, and what was seen."""

    def __init__(self, path: Path, seed: int, members: int) -> None:
        self.rng = random.Random(seed)
        self.path = path
        self.addresses = free_addresses(members) if members > 1 else []
        self.acknowledged: list[int] = []
        self.futures: list[tuple[int, Future[int]]] = []
        self.numbers = iter(range(1, 1 << 62))
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.others = [self.open(number) for number in range(1, members)]
        self.d = self.open(0)
        self.d.wait_ready(PATIENCE)
        self.permits = self.d.semaphore("permits", 2)
        self.calls: list[Callable[[Dict], object]] = [
            self.write, self.write, self.update, self.update, self.submit, self.read_pair, self.read_pair, self.look,
            self.look, self.iterate, self.current, self.change, self.tell, self.lock, self.lock, self.permit,
            self.lease, self.watch, self.transact, self.count, self.expire, self.page,
        ]  # fmt: skip

    def open(self, number: int) -> Dict:
        options = Options(durability="process", snapshot_retain=0)
        if not self.addresses:
            return ReplicatedDict(self.path / "0", timeout=PATIENCE, options=options)
        mine, others = self.addresses[number], [each for each in self.addresses if each != self.addresses[number]]
        return ReplicatedDict(self.path / str(number), address=mine, peers=others, timeout=PATIENCE, options=options)

    # -- what is called -----------------------------------------------------------------------------------------------

    def call(self, where: str, calls: list[Callable[[Dict], object]] | None = None) -> None:
        """Make a random call; what it may raise, in the node's own thread or on a closed dict, is counted."""
        call = self.rng.choice(calls or self.calls)
        try:
            call(self.d)
        except (ClosedError, NotCommitted, OutcomeUnknown, ReplidictError) as error:
            self.counts[f"{where}: {type(error).__name__}"] += 1
        except BaseException as error:
            self.wrong.append(f"{where}: {call.__name__}: {type(error).__name__}: {error}")
            raise
        self.counts[where] += 1

    def write(self, d: Dict) -> None:
        number = next(self.numbers)
        d[("one", number)] = number
        self.acknowledged.append(number)

    def submit(self, d: Dict) -> None:
        number = next(self.numbers)
        future = d.submit(("one", number), number)
        self.futures.append((number, future))
        if self.rng.random() < 0.5:
            future.result()

    def update(self, d: Dict) -> None:
        number = next(self.numbers)
        d.update({("pair", each): number for each in range(PAIR)})

    def read_pair(self, d: Dict) -> None:
        moment = d.snapshot()
        self.see([moment.get(("pair", each)) for each in range(PAIR)])
        pairs = dict(d.items())
        self.see([pairs.get(("pair", each)) for each in range(PAIR)])

    def see(self, values: list[Any]) -> None:
        if len(set(values)) != 1:
            self.wrong.append(f"half an update: {values}")

    def look(self, d: Dict) -> None:
        number = self.acknowledged[-1] if self.acknowledged else 0
        if number and (d.get(("one", number)) != number or ("one", number) not in d):
            self.wrong.append(f"{number} was acknowledged, and is not seen")
        len(d)
        d.versioned(("pair", 0))

    def iterate(self, d: Dict) -> None:
        list(d), list(reversed(d)), list(d.values()), len(d.keys())

    def current(self, d: Dict) -> None:
        d.get(("pair", 0), linearizable=True)
        d.barrier()

    def change(self, d: Dict) -> None:
        d.setdefault("x", 1)
        d.add("y", 2)
        d.compare_and_set("x", 1, 2)
        d.pop("x", None)
        del_y = d.versioned("y")
        if del_y is not None:
            d.replace("y", 3, revision=del_y.revision)

    def tell(self, d: Dict) -> None:
        d.status(), d.members(), repr(d), d.revision

    def lock(self, d: Dict) -> None:
        """Interrupted while it holds the lock, a call of the handler gets it not: it must not wait for long."""
        lock = d.lock(self.rng.choice("ab"), shared=self.rng.random() < 0.3)
        if lock.acquire(blocking=False) if self.rng.random() < 0.5 else lock.acquire(timeout=0.01):
            held = lock.held
            assert held is not None
            held.on_lost(lambda: None)
            try:
                if not held.lost.wait(self.rng.choice([0, 0.001])):
                    d.set(("held", lock.name), held.token, fence=held)
            finally:
                lock.release()
        d.locks(), lock.locked(), repr(lock)

    def permit(self, d: Dict) -> None:
        if self.permits.acquire(timeout=0.01):
            try:
                repr(self.permits), self.permits.held
            finally:
                self.permits.release()

    def lease(self, d: Dict) -> None:
        with d.lease(ttl=5) as lease:
            d.set("leased", 1, lease=lease)
            if not lease.lost.wait(self.rng.choice([0, 0.001])):
                lease.check()

    def watch(self, d: Dict) -> None:
        with d.watch(("pair", 0), snapshot=self.rng.random() < 0.5) as changes:
            changes.next(timeout=0.001)

    def transact(self, d: Dict) -> None:
        def write_all(t: Any) -> None:
            number = t[("pair", 0)]
            for each in range(PAIR):
                t[("pair", each)] = -number

        d.transact(write_all)

    def count(self, d: Dict) -> None:
        d.increment("count")

    def expire(self, d: Dict) -> None:
        d.set("mortal", 1, ttl=self.rng.choice([0.001, 10]))
        d.expire("mortal", 5)
        try:
            d.ttl("mortal")
        except KeyError:
            pass  # its time was over

    def page(self, d: Dict) -> None:
        d.scan("", limit=3), d.scan("mor")

    def back_up(self, d: Dict) -> None:
        target = self.path / f"backup-{next(self.numbers)}"
        d.backup(target)
        target.unlink()

    # -- interruptions ------------------------------------------------------------------------------------------------

    def on_signal(self, number: int, frame: object) -> None:
        self.call("signal")
        if self.counts["signal"] % CLOSE_EVERY == 0:
            self.d.close()
            self.counts["closed in a handler"] += 1
        self.arm()

    def arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(0.0001, 0.003))

    def litter(self) -> None:
        """Leave something behind for the collector that uses the dict when it is collected."""
        Litter(self)

    def interruptions(self) -> int:
        return self.counts["signal"] + self.counts["finalizer"] + self.counts["finalizer in a thread of the dict"]

    def run(self, count: int) -> None:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        signal.signal(signal.SIGALRM, self.on_signal)
        threshold = gc.get_threshold()
        gc.set_threshold(40, 2, 2)
        told = 0
        self.update(self.d)
        self.arm()
        while (done := self.interruptions()) < count and not self.wrong:
            self.litter()
            self.call("program", [*self.calls, self.back_up] if self.rng.random() < 0.02 else None)
            if self.d._host.node.failure is not None:
                self.reopen()
            if done >= told + 100:
                told = done
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.set_threshold(*threshold)
        self.reopen()
        faulthandler.cancel_dump_traceback_later()

    def reopen(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.d.close()
        for number, future in self.futures:
            if future.exception(PATIENCE) is None:
                self.acknowledged.append(number)
        self.futures.clear()
        self.d = self.open(0)
        self.d.barrier()
        self.permits = self.d.semaphore("permits", 2)
        lost = [number for number in self.acknowledged if self.d.get(("one", number)) != number]
        if lost:
            self.wrong.append(f"lost: {lost}")
        self.arm()

    def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in (self.d, *self.others):
            each.close()


class Litter:
    """Garbage in a cycle, so that the collector frees it: in any thread, anywhere."""

    def __init__(self, program: Program) -> None:
        self.me = self
        self.program = program

    def __del__(self) -> None:
        inside = threading.current_thread() is not threading.main_thread()
        self.program.call("finalizer in a thread of the dict" if inside else "finalizer")


def main() -> None:
    """Run until so many interruptions have happened; says what happened, and ends with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as path:
        program = Program(Path(path), arguments.seed, arguments.members)
        program.run(arguments.count)
        program.close()
    print(f"seed {arguments.seed}, {program.interruptions()} interruptions in {time.perf_counter() - began:.1f} s")
    for what, count in sorted(program.counts.items()):
        print(f"  {what}: {count}")
    print("\n".join(program.wrong) or "all is well")
    sys.exit(bool(program.wrong))


if __name__ == "__main__":
    main()

"""The lock requests of one process: queued, granted, lost, withdrawn.

Rules kept here:

1. A request is put into the log once. This node sees the grant, or the loss, in its own log: there is no polling, and
   only the requests concerned are woken.
2. A withdrawn request leaves the queue, or releases what was granted meanwhile, by one command that is sent until it is
   applied. The requests of a process that is gone end with its lease.
3. A lock counts as held as long as its lease does (see `held_leases`), and once lost stays lost.
4. There is no lock, as in `held_leases`: taking a request out of the dict ends it. Requests are found by name in an
   index that only the node's thread uses; other threads queue additions and removals.
5. A request is taken out of the dict once its release is queued, and not before: whoever is interrupted in between, by
   Ctrl-C for instance, or what has become of it in `forgotten`, can release it again. A second release does nothing.
"""

from __future__ import annotations

import _thread
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from replidict.errors import LeaseLost, LockLost, OutcomeUnknown, ReplidictError
from replidict.latch import SetOnce
from replidict.logging_thread import Logger
from replidict.machine import commands as cmd
from replidict.machine.state_machine import StateMachine
from replidict.node.consensus_interface import Consensus
from replidict.node.held_leases import HeldLease, Leases
from replidict.node.proposals import Proposals, Write, result_of
from replidict.status import LockInfo

logger = Logger(__name__)


class Wanted(NamedTuple):
    """The arguments of a request: see `commands.Acquire`; `ttl` in seconds."""

    name: str
    ttl: float
    shared: bool
    permits: int
    info: str


class State(Enum):
    """The states of a request."""

    ASKED = "not answered yet"
    WAITING = "in line"
    HELD = "granted"
    REFUSED = "not free, and was not to wait"
    OVER = "not in line, and does not hold"


class Request:
    """One request for a lock. The node's thread calls `woken` whenever the state has changed."""

    lease: HeldLease

    def __init__(self, wanted: Wanted, number: int, woken: Callable[[], object]) -> None:
        self.name = wanted.name
        self.number = number
        self.answer = State.ASKED  # of the cluster: set by the node's thread only
        self.over = False
        self.token = 0
        self.lost = SetOnce()
        self.why = ""
        self.error: ReplidictError | None = None
        """Why it is over, if it makes no sense to ask again."""
        self.on_lost: deque[Callable[[], object]] = deque()
        self.woken = woken

    @property
    def state(self) -> State:
        """How far it is."""
        return State.OVER if self.over else self.answer


def holder_at(address: str) -> str:
    """Describe this process, at the node of this address, in words."""
    return f"{address}, process {os.getpid()} on {socket.gethostname()}"


class Locks:
    """The lock requests of one process. Methods are for the node's thread, unless they say otherwise."""

    def __init__(
        self,
        engine: Consensus,
        machine: StateMachine,
        proposals: Proposals,
        leases: Leases,
    ) -> None:
        self._engine, self._machine, self._proposals, self._leases = engine, machine, proposals, leases
        self._requests: dict[int, Request] = {}
        self._by_name: dict[str, dict[int, Request]] = {}
        self._changed: deque[Request] = deque()  # to be put into the index, or taken out
        self.forgotten: deque[Request] = deque()
        """For any thread, also in the middle of anything: these are granted, and nobody refers to them any more."""
        self.holder = holder_at(engine.address)
        """Says in words who this is."""

    # -- any thread ---------------------------------------------------------------------------------------------------

    def request(self, wanted: Wanted, woken: Callable[[], object]) -> Request:
        """Make a request. Nobody knows of it yet: whoever has it sees to its end from here on."""
        return Request(wanted, self._engine.rng.getrandbits(62), woken)

    def ask(self, request: Request, wanted: Wanted, wait: bool) -> None:
        """Ask for a lock; `wait`: stand in line for it. Raises what ended the node."""
        self._requests[request.number] = request
        self._changed.append(request)
        request.lease = self._leases.for_lock(wanted.ttl, request.number, lambda why: self._lose(request, why))
        sent = self._engine.clock()
        operation = cmd.Acquire(
            wanted.name, request.number, request.lease.id, wanted.shared, wanted.permits, wait, self.holder,
            wanted.info,
        )  # fmt: skip
        size = 64 + len(wanted.name) + len(wanted.info) + len(self.holder)
        write = Write(operation, size, lambda: self._answered(request, write, sent))
        self._proposals.submit(write)

    def withdraw(self, request: Request) -> None:
        """Rule 2, for a request that is no longer needed, whatever its state."""
        if request.number in self._requests:
            request.over = True
            self._leases.submit_for_sure(cmd.Release(request.name, request.number))
            self._drop(request)

    def release(self, request: Request, done: Callable[[], object]) -> Write | None:
        """Give back what is held; `done` is called when that is applied. Returns None if it was lost before."""
        if request.number not in self._requests:
            return None
        request.over = True
        write = Write(cmd.Release(request.name, request.number), 64, done)
        self._proposals.submit(write)
        self._drop(request)
        return write

    def see_to(self, request: Request) -> None:
        """Raise `LockLost` if another holder can have been granted this lock already."""
        if request.state is State.HELD:
            try:
                self._leases.see_to(request.lease)
            except LeaseLost as error:
                raise LockLost(f"the lock {request.name!r} is lost: {error}") from None
        elif request.lost.is_set():
            raise LockLost(f"the lock {request.name!r} is lost: {request.why}")
        else:
            raise LockLost(f"the lock {request.name!r} was released")

    def tell_when_lost(self, request: Request, callback: Callable[[], object]) -> None:
        """Have `callback` called once, in a thread of its own, when the lock is lost; now, if it is."""
        request.on_lost.append(callback)
        if request.lost.is_set():  # looked for after it is known, as `_lose` does it before
            _tell(request)

    def _drop(self, request: Request, lost: str | None = None) -> bool:
        """The request is over, as far as this process is concerned. Returns whether it was not before."""
        if self._requests.pop(request.number, None) is None:
            return False
        if lost is not None:
            request.why = lost
            request.lost.set()
        request.over = True
        self._changed.append(request)
        lease = getattr(request, "lease", None)  # none yet if it was interrupted
        if lease is not None:
            self._leases.leave(lease, request.number)
        else:
            self._leases.leave_all(request.number)
        return True

    def _lose(self, request: Request, why: str) -> None:
        """The lease has ended, or the lock was taken away."""
        if self._drop(request, why):
            _tell(request)
            request.woken()

    def infos(self, now: int) -> tuple[LockInfo, ...]:
        """All holders in the cluster, by name and token; `now` is the cluster's clock. For the node's thread."""
        offset = time.time() - now / 1000
        return tuple(
            LockInfo(name, ticket.holder, ticket.info, ticket.token, offset + ticket.since / 1000, len(lock.queue))
            for name, lock in sorted(self._machine.coordination.locks.by_name.items())
            for ticket in lock.holders.values()
        )

    # -- node's thread -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Give back what was forgotten."""
        while self.forgotten:
            self.withdraw(self.forgotten.popleft())
        self._settle()

    def _settle(self) -> None:
        """Take into the index what came and went."""
        while self._changed:
            request = self._changed.popleft()
            if not request.over:
                self._by_name.setdefault(request.name, {})[request.number] = request
            elif request.name in self._by_name:
                self._by_name[request.name].pop(request.number, None)
                if not self._by_name[request.name]:
                    del self._by_name[request.name]

    def _answered(self, request: Request, write: Write, sent: float) -> None:
        if request.state is not State.ASKED:
            return  # it was given up meanwhile
        try:
            result = result_of(write)
        except ReplidictError as error:
            if isinstance(error, LeaseLost):
                self._leases.give_back(request.lease, "it has ended, says the log")
            elif isinstance(error, OutcomeUnknown):
                self.withdraw(request)
            else:
                request.error = error
            self._drop(request)
            request.woken()
            return
        self._leases.acknowledged(request.lease, sent)
        if result is False:
            request.answer = State.REFUSED
        elif result is None:
            request.answer = State.WAITING
        else:
            assert isinstance(result, int)
            request.token, request.answer = result, State.HELD
        request.woken()

    def hear(self, names: Iterable[str]) -> None:
        """These rows of the state have changed."""
        if self._requests:
            for name in names:
                if name.startswith("lock:"):
                    self._look(name.removeprefix("lock:"))

    def _look(self, name: str) -> None:
        self._settle()
        requests = list(self._by_name.get(name, {}).values())
        lock = self._machine.coordination.locks.by_name.get(name)
        for request in requests:
            ticket = None if lock is None else lock.holders.get(request.number)
            if request.state is State.HELD and ticket is None:
                self._lose(request, "it was taken away: somebody called break_lock")
            elif request.state is State.WAITING and ticket is not None:
                request.token, request.answer = ticket.token, State.HELD
                request.woken()
            elif request.state is State.WAITING and (lock is None or request.number not in lock.queue):
                self._lose(request, "it is not in line any more")

    def look_at_all(self) -> None:
        """A snapshot was installed."""
        self._settle()
        for name in list(self._by_name):
            self._look(name)

    def abandon(self, why: str) -> None:
        """This is a forked child: all of it is the parent's."""
        for request in self._requests.values():
            request.why = why
            request.lost.set()
            request.over = True
        self._requests = {}


def _tell(request: Request) -> None:
    """Call the callbacks for a lost lock, in a thread in which they hold up nothing else."""
    callbacks: list[Callable[[], object]] = []
    while request.on_lost:
        try:
            callbacks.append(request.on_lost.popleft())
        except IndexError:
            break  # others have taken it
    if not callbacks:
        return

    def run() -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("a callback for the loss of the lock %r failed", request.name)

    def begin() -> None:
        threading.Thread(target=run, name=f"lost lock {request.name}", daemon=True).start()

    try:
        # `Thread.start` takes a lock of `threading`, which an interrupted thread that waits for this one may hold.
        _thread.start_new_thread(begin, ())
    except RuntimeError:
        logger.exception("nobody can be told that the lock %r is lost: there is no thread left", request.name)

"""The requests of one process for locks: in line, granted, lost, given up.

Rules kept here:

1. A request goes into the log once. That it is granted, or lost, this node sees in its own log: nobody asks again and
   again, and only who is concerned is woken.
2. Whoever gives up leaves the line, and gives back what was granted meanwhile, by one command that is sent until it is
   applied. A process that is gone leaves with its lease.
3. What is held counts as held as long as its lease does (see `leases`), and is lost once and for all.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from replidict.errors import LeaseLost, LockLost, OutcomeUnknown, ReplidictError
from replidict.machine import commands as cmd
from replidict.machine.state_machine import StateMachine
from replidict.node.leases import HeldLease, Leases
from replidict.node.proposals import Proposals, Write, result_of
from replidict.raft.engine import Engine
from replidict.status import LockInfo

logger = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """What is asked for: see `commands.Acquire`; `ttl` in seconds."""

    name: str
    ttl: float
    shared: bool
    permits: int
    info: str


class State(Enum):
    """How far a request is."""

    ASKED = "not answered yet"
    WAITING = "in line"
    HELD = "granted"
    REFUSED = "not free, and was not to wait"
    OVER = "not in line, and does not hold"


class Request:
    """One request for a lock. `woken` is called by the tick thread whenever the state has changed."""

    def __init__(self, wanted: Wanted, number: int, lease: HeldLease, woken: Callable[[], object]) -> None:
        self.name = wanted.name
        self.number = number
        self.lease = lease
        self.state = State.ASKED
        self.token = 0
        self.lost = threading.Event()
        self.why = ""
        self.error: ReplidictError | None = None
        """Why it is over, if it makes no sense to ask again."""
        self.on_lost: list[Callable[[], object]] = []
        self.woken = woken


class Locks:
    """Those of one process. Only what says so is for any thread, the rest for the tick thread."""

    def __init__(
        self,
        engine: Engine,
        machine: StateMachine,
        proposals: Proposals,
        leases: Leases,
    ) -> None:
        self._engine, self._machine, self._proposals, self._leases = engine, machine, proposals, leases
        self._mutex = threading.Lock()
        self._requests: dict[str, dict[int, Request]] = {}
        self.forgotten: deque[Request] = deque()
        """For any thread, also in the middle of anything: these are granted, and nobody refers to them any more."""
        self.holder = f"{engine.address}, process {os.getpid()} on {socket.gethostname()}"
        """Says in words who this is."""

    # -- any thread ---------------------------------------------------------------------------------------------------

    def ask(self, wanted: Wanted, wait: bool, woken: Callable[[], object]) -> Request:
        """Ask for a lock; `wait`: stand in line for it. Raises what ended the node."""
        lease = self._leases.for_lock(wanted.ttl)
        request = Request(wanted, self._engine.rng.getrandbits(62), lease, woken)
        sent = self._engine.clock()
        operation = cmd.Acquire(
            wanted.name, request.number, lease.id, wanted.shared, wanted.permits, wait, self.holder, wanted.info
        )
        size = 64 + len(wanted.name) + len(wanted.info) + len(self.holder)
        write = Write(operation, size, lambda: self._answered(request, write, sent))
        with self._mutex:
            self._requests.setdefault(wanted.name, {})[request.number] = request
        try:
            self._proposals.submit(write)
        except ReplidictError:
            self._drop(request)
            raise
        self._leases.tell_when_lost(lease, request.number, lambda why: self._lose(request, why))
        return request

    def withdraw(self, request: Request) -> None:
        """Rule 2, for a request that is of no use to anybody any more, whatever became of it."""
        if self._drop(request):
            self._leases.submit_for_sure(cmd.Release(request.name, request.number))

    def release(self, request: Request, done: Callable[[], object]) -> Write | None:
        """Give back what is held; `done` is called when that is applied. Returns None if it was lost before."""
        if not self._drop(request):
            return None
        write = Write(cmd.Release(request.name, request.number), 64, done)
        self._proposals.submit(write)
        return write

    def see_to(self, request: Request) -> None:
        """Raise `LockLost` unless nobody else can have been granted this lock yet."""
        if request.state is State.HELD:
            try:
                self._leases.see_to(request.lease)
            except LeaseLost as error:
                raise LockLost(f"the lock {request.name!r} is lost: {error}") from None
        elif request.lost.is_set():
            raise LockLost(f"the lock {request.name!r} is lost: {request.why}")
        else:
            raise LockLost(f"the lock {request.name!r} was given back")

    def tell_when_lost(self, request: Request, callback: Callable[[], object]) -> None:
        """Have `callback` called once, in a thread of its own, when the lock is lost; now, if it is."""
        with self._mutex:
            if not request.lost.is_set():
                request.on_lost.append(callback)
                return
        _tell(request.name, [callback])

    def _drop(self, request: Request) -> bool:
        """The request is over, as far as this process is concerned. Returns whether it was not before."""
        with self._mutex:
            if request.state is State.OVER:
                return False
            request.state = State.OVER
            of_name = self._requests[request.name]
            del of_name[request.number]
            if not of_name:
                del self._requests[request.name]
        self._leases.leave(request.lease, request.number)
        return True

    def _lose(self, request: Request, why: str) -> None:
        """The lease has ended, or the lock was taken away."""
        held = request.state is State.HELD
        if not self._drop(request):
            return
        with self._mutex:
            request.why = why
            told, request.on_lost = request.on_lost, []
            if held:
                request.lost.set()
        if held and told:
            _tell(request.name, told)
        request.woken()

    def infos(self, now: int) -> tuple[LockInfo, ...]:
        """Who in the cluster holds what, by name and token; `now` is the cluster's clock. For the tick thread."""
        offset = time.time() - now / 1000
        return tuple(
            LockInfo(name, ticket.holder, ticket.info, ticket.token, offset + ticket.since / 1000, len(lock.queue))
            for name, lock in sorted(self._machine.coordination.locks.by_name.items())
            for ticket in lock.holders.values()
        )

    # -- tick thread --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Give back what was forgotten."""
        while self.forgotten:
            self.withdraw(self.forgotten.popleft())

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
            request.state = State.REFUSED
        elif result is None:
            request.state = State.WAITING
        else:
            assert isinstance(result, int)
            request.token, request.state = result, State.HELD
        request.woken()

    def hear(self, names: Iterable[str]) -> None:
        """These rows of the state have changed."""
        if self._requests:
            for name in names:
                if name.startswith("lock:"):
                    self._look(name.removeprefix("lock:"))

    def _look(self, name: str) -> None:
        with self._mutex:
            requests = list(self._requests.get(name, {}).values())
        lock = self._machine.coordination.locks.by_name.get(name)
        for request in requests:
            ticket = None if lock is None else lock.holders.get(request.number)
            if request.state is State.HELD and ticket is None:
                self._lose(request, "it was taken away: somebody called break_lock")
            elif request.state is State.WAITING and ticket is not None:
                request.token, request.state = ticket.token, State.HELD
                request.woken()
            elif request.state is State.WAITING and (lock is None or request.number not in lock.queue):
                self._lose(request, "it is not in line any more")

    def look_at_all(self) -> None:
        """A snapshot was installed."""
        for name in list(self._requests):
            self._look(name)

    def abandon(self, why: str) -> None:
        """This is a forked child: all of it is the parent's."""
        self._mutex = threading.Lock()
        for of_name in self._requests.values():
            for request in of_name.values():
                request.state, request.why = State.OVER, why
                request.lost = threading.Event()
                request.lost.set()
        self._requests = {}


def _tell(name: str, callbacks: list[Callable[[], object]]) -> None:
    """Call them where they hold up nobody."""

    def run() -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                logger.exception("a callback for the loss of the lock %r failed", name)

    try:
        threading.Thread(target=run, name=f"lost lock {name}", daemon=True).start()
    except RuntimeError:
        logger.exception("nobody can be told that the lock %r is lost: there is no thread left", name)

"""The leases of one process: granted, renewed by the node's own thread, and known to be lost in time.

Rules kept here:

1. One command renews all leases in use, when a third of the shortest ttl has passed.
2. A lease counts from when its last acknowledged renewal was *sent*, and for nine tenths of its ttl only: the cluster's
   clock may run a tenth faster than this one, and counts from when the leader received the renewal.
3. A lease is lost when that time is over here, whether or not the cluster can be reached; when the log says that it
   ended; and when the node stops. A lost lease stays lost. It is then revoked, if possible.
4. A revocation is sent until it is applied. Nothing waits for that, and the lease expires in any case.
5. There is no lock: a signal handler or a finalizer may come between any two steps. Each step is one operation of a
   `dict`. Taking a lease out of the dict ends it, so one caller does. A user of a lease registers first and then checks
   whether the lease is lost; whoever ends the lease marks it lost first and then looks for users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

from replidict.errors import ClosedError, LeaseLost, NotCommitted, OutcomeUnknown, ReplidictError
from replidict.latch import Latch, SetOnce
from replidict.machine import commands as cmd
from replidict.machine.state_machine import StateMachine
from replidict.node.consensus_interface import Consensus
from replidict.node.proposals import Proposals, Write
from replidict.raft.bounded_staleness import CLOCK_DRIFT

RENEW_AFTER = 1 / 3
"""Of a ttl: then a lease is renewed."""

REUSE_BEFORE = 0.5
"""Of a ttl: a lease that nobody uses is used again only before so much has passed since its last renewal."""


def _nothing(*_: object) -> None:
    pass


class HeldLease:
    """A lease of this process. It is `granted` once the first answer has arrived."""

    def __init__(self, lease: int, ttl: float) -> None:
        self.id = lease
        self.ttl = ttl
        self.counts_from = float("-inf")  # on this machine's clock: when the last renewal was sent, of those answered
        self.granted = False
        self.users: dict[int, Callable[[str], object]] = {}
        """By number, what is called once with the reason when it is lost, by the thread that finds out."""
        self.lost = SetOnce()
        self.why = ""

    @property
    def until(self) -> float:
        """When it must be taken for lost, on this machine's clock (rule 2)."""
        return self.counts_from + self.ttl * (1 - CLOCK_DRIFT)


class Leases:
    """All leases of one process. Methods are for the node's thread, unless they say otherwise."""

    def __init__(self, engine: Consensus, machine: StateMachine, proposals: Proposals) -> None:
        self._engine, self._machine, self._proposals = engine, machine, proposals
        self._held: dict[int, HeldLease] = {}
        self._shared: dict[float, HeldLease] = {}  # for locks, by ttl
        self._closing = False
        self._renewing = False
        self._due = float("inf")
        self._changed = False  # by any thread: `step` has something to look at

    # -- any thread ---------------------------------------------------------------------------------------------------

    @property
    def held(self) -> tuple[int, ...]:
        """The ids of the leases that this process holds or has asked for."""
        return tuple(self._held)

    def ask(
        self,
        ttl: float,
        done: Callable[[], object] = _nothing,
        *,
        number: int = 0,
        tell: Callable[[str], object] = _nothing,
    ) -> tuple[HeldLease, Write]:
        """Ask for a lease of `ttl` seconds, with one user. `done` is called when the write is answered.

        Raises what ended the node.
        """
        lease = HeldLease(self._engine.rng.getrandbits(62), ttl)
        lease.users[number] = tell
        sent = self._engine.clock()

        def answered() -> None:
            if write.error is None and write.result is True:
                self.acknowledged(lease, sent)
            elif isinstance(write.error, NotCommitted):
                lease.users.clear()  # each has asked for a lock behind this, and hears the reason from that
                self._forget(lease, str(write.error))
            else:
                self.give_back(lease, "it could not be granted")
            done()

        write = Write(cmd.OpenLease(lease.id, milliseconds(ttl)), 32, answered)
        self._held[lease.id] = lease
        try:
            if self._closing:  # looked for after it is known, as `end_all` does it before
                raise ClosedError("this ReplicatedDict is being closed: it takes no lease and no lock any more")
            self._proposals.submit(write)
        except BaseException:
            self._held.pop(lease.id, None)
            raise
        return lease, write

    def for_lock(self, ttl: float, number: int, tell: Callable[[str], object]) -> HeldLease:
        """A lease for the lock of this number, shared with all locks of this ttl; `leave` it when that is not held any
        more. `tell` is called once with the reason if it is lost before, maybe at once.

        A new one is asked for, and what is submitted after this is applied after that.
        """
        lease = self._shared.get(ttl)
        if lease is not None and (lease.users or self._engine.clock() < lease.counts_from + REUSE_BEFORE * ttl):
            lease.users[number] = tell
            if not lease.lost.is_set() or lease.users.pop(number, None) is None:
                self._changed = True
                return lease
        lease, _ = self.ask(ttl, number=number, tell=tell)
        self._shared[ttl] = lease
        return lease

    def leave(self, lease: HeldLease, number: int) -> None:
        """A lock does not need it any more. Without any, it is not renewed, and given back when its time is over."""
        lease.users.pop(number, None)

    def leave_all(self, number: int) -> None:
        """The lock of this number does not need any lease any more."""
        for lease in list(self._shared.values()):
            self.leave(lease, number)

    def give_back(self, lease: HeldLease, why: str, done: Callable[[], object] = _nothing) -> None:
        """End a lease that this process holds, or has asked for; `done` is called when it has ended."""
        if self._forget(lease, why):
            self.submit_for_sure(cmd.EndLeases([lease.id]), done)
        else:
            done()

    def _forget(self, lease: HeldLease, why: str) -> bool:
        """It is lost. Returns whether this call made it so."""
        if self._held.pop(lease.id, None) is None:
            return False
        lease.why = why
        lease.lost.set()
        while True:
            try:
                _, tell = lease.users.popitem()
            except KeyError:
                return True
            tell(why)

    def see_to(self, lease: HeldLease) -> None:
        """Raise `LeaseLost` if the lease may have ended."""
        if lease.lost.is_set():
            raise LeaseLost(f"this lease of {lease.ttl:g} s is lost: {lease.why}")
        if self._engine.clock() >= lease.until:
            raise LeaseLost(f"this lease of {lease.ttl:g} s is lost: {_NOT_RENEWED}")

    def remaining(self, lease: HeldLease) -> float:
        """For how many seconds `see_to` surely passes, if nothing is renewed."""
        return 0.0 if lease.lost.is_set() else max(lease.until - self._engine.clock(), 0.0)

    def submit_for_sure(self, operation: cmd.Operation, done: Callable[[], object] = _nothing) -> None:
        """Rule 4. `done` is called when it is applied, or the node has stopped."""

        def answered() -> None:
            if isinstance(write.error, OutcomeUnknown):
                self.submit_for_sure(operation, done)
            else:
                done()

        write = Write(operation, 64, answered)
        try:
            self._proposals.submit(write)
        except ReplidictError:
            done()  # the node has stopped

    def end_all(self, seconds: float) -> None:
        """The dict is closed: give everything back, and wait up to so long until that is done."""
        self._closing = True
        leases = list(self._held.values())
        if not leases:
            return
        for lease in leases:
            self._forget(lease, "the dict was closed")
        done = Latch()
        try:
            self._proposals.submit(Write(cmd.EndLeases([lease.id for lease in leases]), 64, done.set))
        except ReplidictError:
            return
        done.wait(seconds)

    # -- node's thread -------------------------------------------------------------------------------------------------

    def acknowledged(self, lease: HeldLease, sent: float) -> None:
        """A renewal is applied that was sent then."""
        lease.granted = True
        lease.counts_from = max(lease.counts_from, sent)
        self._due = float("-inf")

    def step(self) -> None:
        """Find what is lost by now, and renew what is in use."""
        now = self._engine.clock()
        if now < self._due and not self._changed:
            return
        self._changed = False  # before looking: what changes from here on is new
        self._due = float("inf")
        granted = [lease for lease in list(self._held.values()) if lease.granted]
        for lease in granted:
            if now >= lease.until:
                self.give_back(lease, _NOT_RENEWED)
        living = [lease for lease in granted if lease.users and now < lease.until]
        renewal = min((lease.counts_from + RENEW_AFTER * lease.ttl for lease in living), default=float("inf"))
        if renewal <= now and not self._renewing:
            self._renew(living, now)
        if self._renewing:
            renewal = float("inf")
        self._due = min([renewal, *(lease.until for lease in granted if now < lease.until)])

    def _renew(self, leases: list[HeldLease], sent: float) -> None:
        def answered() -> None:
            self._renewing = False
            self._due = float("-inf")
            if write.error is None:
                for lease in leases:
                    if lease.id in self._machine.coordination.leases.open:
                        self.acknowledged(lease, sent)

        self._renewing = True
        write = Write(cmd.RenewLeases([lease.id for lease in leases]), 16 * len(leases), answered)
        self._proposals.submit(write)

    def elapse(self, seconds: float) -> None:
        """Advance the time since the last renewals, for tests."""
        for lease in list(self._held.values()):
            lease.counts_from -= seconds
        self._changed = True

    def next_deadline(self) -> float:
        """When `step` wants to run next."""
        return float("-inf") if self._changed else self._due

    def hear(self, names: Iterable[str]) -> None:
        """These rows of the state have changed."""
        for name in names:
            if name.startswith("lease:"):
                self._look(int(name.removeprefix("lease:")))

    def _look(self, number: int) -> None:
        lease = self._held.get(number)
        if lease is not None and lease.granted and number not in self._machine.coordination.leases.open:
            self._forget(lease, "it has ended, says the log: its time was over, or it was released")

    def look_at_all(self) -> None:
        """A snapshot was installed."""
        for number in list(self._held):
            self._look(number)

    def stop(self, why: str) -> None:
        """The node goes no further."""
        for lease in list(self._held.values()):
            self._forget(lease, why)

    def abandon(self, why: str) -> None:
        """Forget everything in a forked child: the leases belong to the parent. No waiting thread exists here."""
        for lease in self._held.values():
            lease.users.clear()
            lease.why = why
            lease.lost.set()
        self._held = {}


_NOT_RENEWED = "no renewal was acknowledged in time"


def milliseconds(seconds: float) -> int:
    """So many that nothing which lasts them is over sooner, although the clock shows whole ones."""
    return ceil(seconds * 1000) + 1

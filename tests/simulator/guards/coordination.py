"""Guards of the clock, of leases, locks and fences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from replidict.machine import commands as cmd
from replidict.machine import locks as machine_locks
from replidict.node import expiry, held_leases, lock_requests
from tests.simulator import coordination_scenarios as scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("never early", scenario=scenarios.a_follower_that_says_what_time_it_is)
def only_the_leader_ticks() -> Replacements:
    """A follower says that much time has passed, and everything expires (etcd-io/etcd#12528)."""
    yield cmd, "may_be_proposed", lambda data: True


@guard("never early", 25)
def no_clock_but_the_cluster_s() -> Replacements:
    """A leader says what its own clock shows: the next one's is another."""

    def now(self: expiry.Expiry) -> int:
        return int(self._engine.clock() * 1000)

    yield expiry.Expiry, "now", now


@guard("never late", scenario=scenarios.leaders_that_come_and_go)
def an_election_restarts_no_ttl() -> Replacements:
    """A new leader counts on from the last `Tick`, and forgets what has passed since: a ttl never ends."""

    def hear(self: expiry.Expiry, milliseconds: int) -> None:
        pass

    def begin(self: expiry.Expiry) -> None:
        if self._engine.term != self._term:
            self._known = (0, self._engine.clock())
        original(self)

    original = expiry.Expiry._begin
    yield expiry.Expiry, "hear", hear
    yield expiry.Expiry, "_begin", begin


@guard("one holder", 25)
def granted_to_one() -> Replacements:
    """A lock is granted to whoever asks."""
    yield machine_locks.Lock, "_may_grant", property(lambda self: bool(self.queue))


@guard("never late", 25)
def who_is_gone_leaves_the_line() -> Replacements:
    """A waiter whose lease has ended stays in line, and is granted the lock."""

    def end(self: machine_locks.Locks, ended: Iterable[int]) -> None:
        waiting = {}
        for lease in ended:
            for request, name in self._of_lease.get(lease, {}).items():
                if request in self.by_name[name].queue:
                    waiting[request] = (name, self.by_name[name].queue[request])
        original(self, ended)
        for request, (name, ticket) in waiting.items():
            lock = self.by_name.setdefault(name, machine_locks.Lock(0))
            lock.queue[request] = ticket
            self._of_lease.setdefault(ticket.lease, {})[request] = name
            self._settle(name, lock)

    original = machine_locks.Locks.end
    yield machine_locks.Locks, "end", end


@guard("tokens", 25)
def tokens_grow() -> Replacements:
    """Each name counts its own tokens, from what its holders have."""

    def settle(self: machine_locks.Locks, name: str, lock: machine_locks.Lock) -> None:
        self.token = max((ticket.token for ticket in lock.holders.values()), default=0)
        original(self, name, lock)

    original = machine_locks.Locks._settle
    yield machine_locks.Locks, "_settle", settle


@guard("fences", 25)
def fences_are_compared() -> Replacements:
    """A write with the token of a lock that is lost is applied."""
    yield machine_locks.Locks, "see_to", lambda self, name, token: None


@guard("one holder", scenario=scenarios.an_answer_that_takes_long)
def a_renewal_counts_from_when_it_was_sent() -> Replacements:
    """A holder counts from the answer to its renewal, which may be old: the lock is another's by then."""

    def acknowledged(self: held_leases.Leases, lease: held_leases.HeldLease, sent: float) -> None:
        original(self, lease, self._engine.clock())

    original = held_leases.Leases.acknowledged
    yield held_leases.Leases, "acknowledged", acknowledged


@guard("one holder", scenario=scenarios.one_that_leaves_the_line)
def released_by_its_holder() -> Replacements:
    """Whoever leaves the line, or releases, takes the lock from the one that has it."""

    def release(self: machine_locks.Locks, name: str, request: int) -> bool | None:
        lock = self.by_name.get(name)
        return original(self, name, next(iter(lock.holders)) if lock is not None and lock.holders else request)

    original = machine_locks.Locks.release
    yield machine_locks.Locks, "release", release


@guard("never late", 25)
def who_gives_up_gives_back() -> Replacements:
    """A request that is withdrawn stays in the log: the lock is granted to nobody."""

    def withdraw(self: lock_requests.Locks, request: lock_requests.Request) -> None:
        leave: Callable[..., Any] = self._leases.leave
        self._leases.leave = lambda *arguments: None  # type: ignore[method-assign]
        try:
            self._drop(request)
        finally:
            self._leases.leave = leave  # type: ignore[method-assign]

    yield lock_requests.Locks, "withdraw", withdraw

"""Locks and semaphores: their holders and their queues.

Rules kept here:

1. A lock is granted by the command that frees it, to the next in the queue; a request that need not wait is granted at
   once. A request is queued once, holds the lock once, and depends on a lease, with which it ends.
2. First come, first served. Readers of a shared lock hold it together, but none overtakes a waiting writer.
3. Each grant in the cluster has a token larger than all before. The token alone identifies the holder.
4. A name belongs to a lock, or to a semaphore with a number of permits, as long as it is held or waited for.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from replidict.errors import LockLost
from replidict.machine.clock import Clock

EXCLUSIVE = 0
"""The permits of a lock: one holder, or as many as share it."""


class OtherKind(Exception):
    """The name belongs to a lock of another kind."""


class Ticket(msgspec.Struct, array_like=True):
    """A request for a lock: its lease, its holder and, once granted, its token and the time of the grant."""

    request: int
    lease: int
    shared: bool
    holder: str
    info: str
    token: int = 0
    since: int = 0


class Lock(msgspec.Struct, array_like=True):
    """One name: the number of permits (`EXCLUSIVE` for a lock), its holders and its queue, each in order."""

    permits: int
    holders: dict[int, Ticket] = {}
    queue: dict[int, Ticket] = {}

    @property
    def _may_grant(self) -> bool:
        """Whether the first in line can have it."""
        if not self.queue or not self.holders:
            return bool(self.queue)
        if self.permits != EXCLUSIVE:
            return len(self.holders) < self.permits
        return next(iter(self.queue.values())).shared and next(iter(self.holders.values())).shared

    def next(self) -> Ticket | None:
        """Take the first in line out of it, if it can have the lock."""
        return self.queue.pop(next(iter(self.queue))) if self._may_grant else None


class _LockRow(msgspec.Struct, array_like=True):
    permits: int
    holders: list[Ticket]
    queue: list[Ticket]


class Locks:
    """All locks that are held or waited for, by name."""

    def __init__(self, clock: Clock, dirty: set[str]) -> None:
        """`dirty` gets the names of the rows that change."""
        self.by_name: dict[str, Lock] = {}
        self.token = 0
        """Of the last grant."""
        self._of_lease: dict[int, dict[int, str]] = {}  # by lease and request, the name
        self._clock = clock
        self._dirty = dirty

    def acquire(self, name: str, ticket: Ticket, permits: int, wait: bool) -> int | bool | None:
        """Join the line, or do so only if there is none. Returns the token, None (it waits) or False (it does not)."""
        lock = self.by_name.get(name)
        if lock is None:
            lock = self.by_name[name] = Lock(permits)
        elif lock.permits != permits:
            raise OtherKind(f"{name!r} is {_kind(lock.permits)}, as long as somebody has it, and not {_kind(permits)}")
        request = ticket.request
        if request in lock.holders:
            return lock.holders[request].token
        if request not in lock.queue:
            lock.queue[request] = ticket
            self._of_lease.setdefault(ticket.lease, {})[request] = name
            self._settle(name, lock)
            if request in lock.holders:
                return lock.holders[request].token
        if wait:
            return None
        self._leave(lock, request)  # the last in line: nobody else is next for that
        return False

    def release(self, name: str, request: int) -> bool | None:
        """Give a lock back, or leave the line. Returns whether it was held; None: no such request."""
        lock = self.by_name.get(name)
        if lock is None or (request not in lock.holders and request not in lock.queue):
            return None
        held = request in lock.holders
        self._leave(lock, request)
        self._settle(name, lock)
        return held

    def break_(self, name: str, token: int) -> bool:
        """Take a lock away from the holder with this token. Returns whether there was one."""
        lock = self.by_name.get(name)
        holders = {} if lock is None else lock.holders
        request = next((ticket.request for ticket in holders.values() if ticket.token == token), None)
        return request is not None and self.release(name, request) is True

    def see_to(self, name: str, token: int) -> None:
        """Raise `LockLost` unless somebody holds this lock with this token."""
        lock = self.by_name.get(name)
        if lock is None or all(ticket.token != token for ticket in lock.holders.values()):
            raise LockLost(f"the lock {name!r} is not held with the token {token} (any more)")

    def end(self, leases: Iterable[int]) -> None:
        """These leases have ended: all that hangs on them goes first, then what is free is granted."""
        touched = set()
        for lease in leases:
            for request, name in list(self._of_lease.get(lease, {}).items()):
                self._leave(self.by_name[name], request)
                touched.add(name)
        for name in sorted(touched):
            self._settle(name, self.by_name[name])

    def _leave(self, lock: Lock, request: int) -> None:
        ticket = lock.holders.pop(request, None) or lock.queue.pop(request)
        of_lease = self._of_lease[ticket.lease]
        del of_lease[request]
        if not of_lease:
            del self._of_lease[ticket.lease]

    def _settle(self, name: str, lock: Lock) -> None:
        while (ticket := lock.next()) is not None:
            self.token += 1
            self._dirty.add("token")
            ticket.token, ticket.since = self.token, self._clock.now
            lock.holders[ticket.request] = ticket
        if not lock.holders:
            del self.by_name[name]
        self._dirty.add(f"lock:{name}")

    @property
    def holders(self) -> int:
        """How many hold a lock; for any thread."""
        return sum(len(lock.holders) for lock in list(self.by_name.values()))

    @property
    def waiters(self) -> int:
        """How many wait for one; for any thread."""
        return sum(len(lock.queue) for lock in list(self.by_name.values()))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def row(self, name: str) -> bytes | None:
        """A lock as a row; None: it is free and nobody waits."""
        lock = self.by_name.get(name)
        if lock is None:
            return None
        return msgspec.msgpack.encode(_LockRow(lock.permits, list(lock.holders.values()), list(lock.queue.values())))

    def load(self, rows: Iterable[tuple[str, bytes]], token: int) -> None:
        """Become what the rows say."""
        self.token = token
        for name, data in rows:
            row = msgspec.msgpack.decode(data, type=_LockRow)
            holders, queue = ({ticket.request: ticket for ticket in each} for each in (row.holders, row.queue))
            self.by_name[name] = Lock(row.permits, holders, queue)
            for ticket in (*row.holders, *row.queue):
                self._of_lease.setdefault(ticket.lease, {})[ticket.request] = name


def _kind(permits: int) -> str:
    return "a lock" if permits == EXCLUSIVE else f"a semaphore with permits={permits}"

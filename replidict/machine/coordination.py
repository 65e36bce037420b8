"""Combines clock, leases and locks: what ends together, and how all of it is stored in named rows.

Rules kept here:

1. Everything that is due at a `Tick` is removed as one change, in order of deadline; so is what ends with a revoked
   lease.
2. All requests of ending leases are removed from their queues before anything is granted, so that no lock is granted to
   a process that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import msgspec

from replidict.machine import commands as cmd
from replidict.machine.clock import Clock, Kind
from replidict.machine.leases import Leases
from replidict.machine.locks import Locks, Ticket

Remove = Callable[[list[Hashable], bool], None]
"""Removes these keys, as one change; it is told whether they have expired."""


class Coordination:
    """The part of the replicated state that concerns time, leases and locks."""

    def __init__(self, remove: Remove) -> None:
        self._remove = remove
        self._dirty: set[str] = set()
        self.expired = 0
        """Keys and leases that have expired, as far as this was there to see it."""
        self._clear()

    def _clear(self) -> None:
        self.clock = Clock()
        self.leases = Leases(self.clock, self._dirty)
        self.locks = Locks(self.clock, self._dirty)

    # -- commands and operations --------------------------------------------------------------------------------------

    def tick(self, tick: cmd.Tick) -> None:
        """Time has passed."""
        if tick.milliseconds > self.clock.now:
            self._dirty.add("clock")
        if tick.token > self.locks.token:
            self.locks.token = tick.token
            self._dirty.add("token")
        due = self.clock.advance(tick.milliseconds)
        if not due:
            return
        keys: dict[Hashable, None] = {}
        leases = []
        for kind, number in due:
            if kind is Kind.KEY:
                keys[self.leases.mortal[number].key] = None
            else:
                leases.append(number)
                keys.update(dict.fromkeys(self.leases.end(number)))
        self.expired += len(keys) + len(leases)
        self._end(leases, list(keys), expired=True)

    def _end(self, leases: list[int], keys: list[Hashable], *, expired: bool) -> None:
        if keys:
            self._remove(keys, expired)
        self.locks.end(leases)

    def open_lease(self, op: cmd.OpenLease) -> cmd.Result:
        """See the operation."""
        self.leases.grant(op.lease, op.ttl_ms)
        return True

    def renew_leases(self, op: cmd.RenewLeases) -> cmd.Result:
        """See the operation."""
        return sum([self.leases.renew(lease) for lease in op.leases])

    def end_leases(self, op: cmd.EndLeases) -> cmd.Result:
        """See the operation."""
        leases = [lease for lease in dict.fromkeys(op.leases) if lease in self.leases.open]
        keys = [key for lease in leases for key in self.leases.end(lease)]
        self._end(leases, keys, expired=False)
        return len(leases)

    def acquire(self, op: cmd.Acquire) -> cmd.Result:
        """See the operation."""
        self.leases.see_to(op.lease)
        ticket = Ticket(op.request, op.lease, op.shared, op.holder, op.info)
        result = self.locks.acquire(op.name, ticket, op.permits, op.wait)
        self.leases.renew(op.lease)
        return result

    def release(self, op: cmd.Release) -> cmd.Result:
        """See the operation."""
        return self.locks.release(op.name, op.request)

    def break_lock(self, op: cmd.BreakLock) -> cmd.Result:
        """See the operation."""
        return self.locks.break_(op.name, op.token)

    # -- rows ---------------------------------------------------------------------------------------------------------

    @property
    def changed_rows(self) -> dict[str, bytes | None]:
        """The rows that have changed since the last call, by name; None: the row is gone."""
        return {name: self._row(name) for name in self._dirty}

    @property
    def changed(self) -> bool:
        """Whether any row has changed."""
        return bool(self._dirty)

    def take_rows(self) -> dict[str, bytes | None]:
        """The same, and from now on they count as unchanged."""
        rows = self.changed_rows if self._dirty else {}
        self._dirty.clear()
        return rows

    def _row(self, row: str) -> bytes | None:
        kind, _, name = row.partition(":")
        match kind:
            case "lease":
                return self.leases.lease_row(int(name))
            case "deadline":
                return self.leases.deadline_row(int(name))
            case "lock":
                return self.locks.row(name)
            case "clock":
                return msgspec.msgpack.encode(self.clock.now)
        return msgspec.msgpack.encode(self.locks.token)

    def load(self, rows: Mapping[str, bytes], keys: Callable[[], Mapping[int, Hashable]]) -> None:
        """Become what the rows say. `keys` gives those in the map, by position."""
        self._dirty.clear()
        self._clear()
        if "clock" in rows:
            self.clock.now = msgspec.msgpack.decode(rows["clock"], type=int)
        token = msgspec.msgpack.decode(rows["token"], type=int) if "token" in rows else 0
        self.locks.load(_named("lock:", rows), token)
        mortal = any(name.startswith("deadline:") for name in rows)
        self.leases.load(_numbered("lease:", rows), _numbered("deadline:", rows), keys() if mortal else {})


def _named(prefix: str, rows: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    return ((name.removeprefix(prefix), data) for name, data in rows.items() if name.startswith(prefix))


def _numbered(prefix: str, rows: Mapping[str, bytes]) -> Iterator[tuple[int, bytes]]:
    return ((int(name), data) for name, data in _named(prefix, rows))


PERFORM: dict[type[cmd.Operation], Callable[[Coordination, Any], cmd.Result]] = {
    cmd.OpenLease: Coordination.open_lease,
    cmd.RenewLeases: Coordination.renew_leases,
    cmd.EndLeases: Coordination.end_leases,
    cmd.Acquire: Coordination.acquire,
    cmd.Release: Coordination.release,
    cmd.BreakLock: Coordination.break_lock,
}
"""What does the operations that touch no key by name."""

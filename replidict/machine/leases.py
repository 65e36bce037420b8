"""Leases, and keys that expire: by their own ttl, with a lease, or by whichever ends first.

Rules kept here:

1. A deadline is the clock's time when the command is applied, plus the ttl. Renewing a lease moves its deadline.
2. A key's row names the lease that it is attached to. A lease's row does not list its keys.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

import msgspec

from replidict.errors import LeaseLost
from replidict.machine.clock import Clock, Kind


class Lease(msgspec.Struct):
    """A lease: its ttl in milliseconds, and the positions of the keys attached to it."""

    ttl_ms: int
    keys: dict[int, None] = {}


class Mortal(msgspec.Struct):
    """A key that expires, and the lease that it is attached to, if any."""

    key: Hashable
    lease: int | None


class _LeaseRow(msgspec.Struct, array_like=True):
    ttl_ms: int
    deadline: int


class _DeadlineRow(msgspec.Struct, array_like=True):
    deadline: int | None
    lease: int | None


_pack = msgspec.msgpack.encode


class Leases:
    """All leases by id, and all expiring keys by position."""

    def __init__(self, clock: Clock, dirty: set[str]) -> None:
        """`dirty` gets the names of the rows that change."""
        self.open: dict[int, Lease] = {}
        self.mortal: dict[int, Mortal] = {}
        self._clock = clock
        self._dirty = dirty

    # -- leases -------------------------------------------------------------------------------------------------------

    def grant(self, lease: int, ttl_ms: int) -> None:
        """Open a lease, or give one that is open another ttl."""
        known = self.open.setdefault(lease, Lease(ttl_ms))
        known.ttl_ms = ttl_ms
        self.renew(lease)

    def renew(self, lease: int) -> bool:
        """Have a lease live for another ttl. Returns whether it is open."""
        known = self.open.get(lease)
        if known is None:
            return False
        self._clock.set(Kind.LEASE, lease, self._clock.now + known.ttl_ms)
        self._dirty.add(f"lease:{lease}")
        return True

    def see_to(self, lease: int) -> None:
        """Raise `LeaseLost` if it is not open."""
        if lease not in self.open:
            raise LeaseLost(f"the lease {lease} has ended, or was never granted")

    def end(self, lease: int) -> list[Hashable]:
        """Close a lease that is open. Returns the keys that end with it, in the order in which they were stored."""
        ended = self.open.pop(lease)
        self._clock.set(Kind.LEASE, lease, None)
        self._dirty.add(f"lease:{lease}")
        return [self.mortal[position].key for position in sorted(ended.keys)]

    # -- keys ---------------------------------------------------------------------------------------------------------

    def attach(self, position: int, key: Hashable, ttl_ms: int | None, lease: int | None) -> None:
        """Have a key end with these, and with nothing else."""
        self.detach(position)
        if ttl_ms is None and lease is None:
            return
        if lease is not None:
            self.open[lease].keys[position] = None
        self.mortal[position] = Mortal(key, lease)
        self._set_deadline(position, ttl_ms)

    def expire(self, position: int, key: Hashable, ttl_ms: int) -> None:
        """Set a key's time to live from now, replacing the one before; its lease stays."""
        self.mortal.setdefault(position, Mortal(key, None))
        self._set_deadline(position, ttl_ms)

    def _set_deadline(self, position: int, ttl_ms: int | None) -> None:
        self._clock.set(Kind.KEY, position, None if ttl_ms is None else self._clock.now + ttl_ms)
        self._dirty.add(f"deadline:{position}")

    def detach(self, position: int) -> None:
        """A key is permanent from now on, or gone."""
        mortal = self.mortal.pop(position, None)
        if mortal is None:
            return
        if mortal.lease in self.open:
            del self.open[mortal.lease].keys[position]
        self._clock.set(Kind.KEY, position, None)
        self._dirty.add(f"deadline:{position}")

    def detach_all(self) -> None:
        """All keys are gone."""
        for position in list(self.mortal):
            self.detach(position)

    def deadline(self, position: int) -> int | None:
        """When this key ends, as things are, on the cluster's clock; None: it does not."""
        mortal = self.mortal.get(position)
        if mortal is None:
            return None
        own = self._clock.deadline(Kind.KEY, position)
        lease = None if mortal.lease is None else self._clock.deadline(Kind.LEASE, mortal.lease)
        return min((each for each in (own, lease) if each is not None), default=None)

    # -- rows ---------------------------------------------------------------------------------------------------------

    def lease_row(self, lease: int) -> bytes | None:
        """A lease as a row; None: there is none."""
        known, deadline = self.open.get(lease), self._clock.deadline(Kind.LEASE, lease)
        return None if known is None or deadline is None else _pack(_LeaseRow(known.ttl_ms, deadline))

    def deadline_row(self, position: int) -> bytes | None:
        """The row with a key's deadline and lease; None: the key is permanent, or gone."""
        mortal = self.mortal.get(position)
        return None if mortal is None else _pack(_DeadlineRow(self._clock.deadline(Kind.KEY, position), mortal.lease))

    def load(
        self,
        leases: Iterable[tuple[int, bytes]],
        deadlines: Iterator[tuple[int, bytes]],
        keys: Mapping[int, Hashable],
    ) -> None:
        """Become what the rows say. `keys` are those in the map, by position."""
        for number, data in leases:
            lease = msgspec.msgpack.decode(data, type=_LeaseRow)
            self.open[number] = Lease(lease.ttl_ms)
            self._clock.set(Kind.LEASE, number, lease.deadline)
        for position, data in deadlines:
            row = msgspec.msgpack.decode(data, type=_DeadlineRow)
            self.mortal[position] = Mortal(keys[position], row.lease)
            self._clock.set(Kind.KEY, position, row.deadline)
            if row.lease is not None:
                self.open[row.lease].keys[position] = None

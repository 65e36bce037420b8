"""The commands that the log can hold, and the results of applying them.

Rules kept here:

1. A command is a pure description: keys and values are already encoded, nothing is decided later.
2. Tags are never reused, and fields are only added at the end, with a default: old logs stay readable.
3. `decode` raises `UnknownCommand` for what this release does not know. Any other error is a failure of this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from replidict.errors import StorageError


class _Operation(msgspec.Struct, frozen=True, array_like=True):
    """One change to the map, atomic by itself."""


class Put(_Operation, frozen=True, tag=1):
    """Store a value; gives the revision."""

    key: bytes
    value: bytes


class Add(_Operation, frozen=True, tag=2):
    """Store a value if the key is absent; gives whether it was."""

    key: bytes
    value: bytes


class SetDefault(_Operation, frozen=True, tag=3):
    """Store a value if the key is absent; gives the value that is there afterwards."""

    key: bytes
    value: bytes


class Delete(_Operation, frozen=True, tag=4):
    """Remove a key; gives whether it was there."""

    key: bytes


class Pop(_Operation, frozen=True, tag=5):
    """Remove a key; gives its value, or None."""

    key: bytes


class PopItem(_Operation, frozen=True, tag=6):
    """Remove the key inserted last; gives [key, value], or None if the map is empty."""


class Update(_Operation, frozen=True, tag=7):
    """Store many values at once; gives the revision they all get."""

    items: list[tuple[bytes, bytes]]


class Clear(_Operation, frozen=True, tag=8):
    """Remove everything; gives how many keys there were."""


class CompareAndSet(_Operation, frozen=True, tag=9):
    """Store a value if the present one equals `expected`, by `==` of the decoded values; gives whether it did."""

    key: bytes
    expected: bytes
    value: bytes


class Replace(_Operation, frozen=True, tag=10):
    """Store a value if the present one has this revision; gives whether it did."""

    key: bytes
    value: bytes
    revision: int


class Remove(_Operation, frozen=True, tag=40):
    """Remove a key if its value has this revision and, with `last`, if it is the key inserted last.

    Gives True; False if the value, or the key inserted last, is another one; None if there is nothing to remove.
    """

    key: bytes
    revision: int
    last: bool = False


class Take(_Operation, frozen=True, tag=41):
    """Remove a key, or without one the key inserted last, if any machine can decode its value (`codec.is_portable`).

    Gives [key, value]; False if some machine may not be able to decode it; None if there is nothing to remove.
    """

    key: bytes | None = None


class Increment(_Operation, frozen=True, tag=31):
    """Add to a number; gives the new value, None if the present one is no number that `by` can be added to, and False
    if the sum can't be kept. An absent key counts as `default`; both are encoded without the codec of the user."""

    key: bytes
    by: bytes
    default: bytes


class Transact(_Operation, frozen=True, tag=30):
    """Do all writes, in order and as one revision, if each key of `checks` was last written by the revision beside it
    (None: if it is absent), and `whole`, unless it is None, is the revision of the whole map.

    Gives the revision (the present one, if nothing changed); or the keys that did not hold, none of them if it was
    `whole`; or the key of an increment that can't be done.
    """

    checks: list[tuple[bytes, int | None]]
    writes: list[Put | Delete | Increment | Expiring]
    whole: int | None = None


class Expiring(_Operation, frozen=True, tag=11):
    """A write whose key ends by itself: so many milliseconds from now, with a lease, or with whichever is first.

    Gives what the write does. Refused with `LeaseLost` if there is no such lease.
    """

    operation: Put | Add | CompareAndSet | Replace
    ttl_ms: int | None
    lease: int | None


class Fenced(_Operation, frozen=True, tag=12):
    """A write, if this lock is held with this token; else it is refused with `LockLost`."""

    name: str
    token: int
    operation: Put | Add | CompareAndSet | Replace | Expiring | Increment | Transact


class Expire(_Operation, frozen=True, tag=13):
    """Have a key end so many milliseconds from now, or never (None); gives whether it is there."""

    key: bytes
    ttl_ms: int | None


class OpenLease(_Operation, frozen=True, tag=14):
    """Grant a lease that lives so many milliseconds without being renewed. Its owner has drawn its id."""

    lease: int
    ttl_ms: int


class RenewLeases(_Operation, frozen=True, tag=15):
    """Have leases live for their whole ttl again; gives how many of them there are still."""

    leases: list[int]


class EndLeases(_Operation, frozen=True, tag=16):
    """Give leases back: their keys and locks go. Gives how many there were."""

    leases: list[int]


class Acquire(_Operation, frozen=True, tag=17):
    """Ask for a lock, or for one of so many permits of a semaphore (0: a lock). The lease is renewed as well.

    Gives the token if it is granted. If not: None, and it waits in line, or with `wait=False` False, and it does not.
    The process that asks has drawn the request's number; `holder` says which that is, `info` what it says of it.
    """

    name: str
    request: int
    lease: int
    shared: bool
    permits: int
    wait: bool
    holder: str
    info: str


class Release(_Operation, frozen=True, tag=18):
    """Give a lock back, or leave the line; gives whether it was held, None if there is no such request."""

    name: str
    request: int


class BreakLock(_Operation, frozen=True, tag=19):
    """Take a lock from the holder with this token; gives whether there was one."""

    name: str
    token: int


Operation: TypeAlias = (
    Put
    | Add
    | SetDefault
    | Delete
    | Pop
    | PopItem
    | Update
    | Clear
    | CompareAndSet
    | Replace
    | Increment
    | Transact
    | Expiring
    | Fenced
    | Expire
    | OpenLease
    | RenewLeases
    | EndLeases
    | Acquire
    | Release
    | BreakLock
    | Remove
    | Take
)

Result: TypeAlias = bool | int | bytes | list[bytes] | str | None
"""What one operation gives: see each operation. A text says why it was not performed: an error's name, and its text."""

_OF_TIME = frozenset({Transact, Expiring, Fenced, Expire, OpenLease, RenewLeases, Acquire})


def needs_time(operation: Operation) -> bool:
    """Whether what an operation does depends on the clock."""
    if type(operation) not in _OF_TIME:
        return False
    if isinstance(operation, Fenced):
        return needs_time(operation.operation)
    if isinstance(operation, Transact):
        return any(map(needs_time, operation.writes))
    return not isinstance(operation, Expiring | Expire) or operation.ttl_ms is not None


class _Command(msgspec.Struct, frozen=True, array_like=True):
    """One log entry's content."""


class NoOp(_Command, frozen=True, tag=1):
    """The entry with which a leader opens its term (Raft 8)."""


class OpenSession(_Command, frozen=True, tag=2):
    """Open a session (thesis 6.3). Its number is the index of this entry; the nonce tells the asker which is its."""

    nonce: bytes


class Batch(_Command, frozen=True, tag=3):
    """Writes that waited together, in order. `sequence` counts a session's batches from 1, without gaps.

    Batches up to `acknowledged` have been answered: their results need not be kept any longer.
    """

    session: int
    sequence: int
    acknowledged: int
    operations: list[Operation]


class Configuration(_Command, frozen=True, tag=4):
    """The members of the cluster from this entry on (thesis 4.1): addresses, in ascending order.

    `node_ids` holds the identities of those that are known: whoever comes under such an address must have that one.
    `readers` are the learners that stay ones; the others become voters once they are level (4.2.1).
    """

    voters: list[str]
    learners: list[str]
    node_ids: dict[str, str] = {}
    readers: list[str] = []


class RaiseLevel(_Command, frozen=True, tag=5):
    """From this entry on the cluster has this feature level, or the one that it has, if that is higher.

    The leader proposes it once every member knows the level. It is the first thing that an older release can't read, so
    it marks the file that it is written to.
    """

    level: int


class Tick(_Command, frozen=True, tag=6):
    """So much time has passed in the cluster, says its leader; nobody else may. It never goes back.

    `token`: tokens of locks go on above this one. That is for a cluster that may not know of all that were granted.
    """

    milliseconds: int
    token: int = 0


class TimedBatch(Batch, frozen=True, tag=7):
    """A `Batch` with operations for which time counts: the leader puts a `Tick` before it."""


Command: TypeAlias = NoOp | OpenSession | Batch | Configuration | RaiseLevel | Tick | TimedBatch

LEVEL_OF: dict[type, int] = dict.fromkeys(
    (
        *(Remove, Take, Increment, Transact, Tick, TimedBatch, Expiring, Fenced, Expire),
        *(OpenLease, RenewLeases, EndLeases, Acquire, Release, BreakLock),
    ),
    2,
)
"""The level that the cluster must have for a command or operation to be proposed; 1 if it is not listed."""

encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Command] = msgspec.msgpack.Decoder(Command).decode


class UnknownCommand(Exception):
    """Bytes that are no command of this release: one of a later release, or none at all."""


def decode(data: bytes) -> Command:
    """Read a log entry's content. Raises `UnknownCommand`."""
    try:
        return _decode(data)
    except ValueError as error:  # msgspec's own errors, and broken UTF-8
        raise UnknownCommand(str(error)) from error


def decode_at(index: int, data: bytes) -> Command:
    """Read the content of the log entry at `index`. Raises `StorageError`, which ends a node, if this release can't."""
    try:
        return _decode(data)
    except ValueError as error:
        raise StorageError(
            f"entry {index} of the log is a command that this release does not know, so a newer one wrote it: {error}. "
            "This node has stopped, so as not to differ from the others. Upgrade replidict here to the release of the "
            "other nodes, then open it again: what was acknowledged is there"
        ) from error


NO_OP = encode(NoOp())


def is_configuration(data: bytes) -> bool:
    """Whether a log entry holds a `Configuration`, by a glance at its first two bytes."""
    return data[1:2] == b"\x04"


def raises_level(data: bytes) -> bool:
    """Whether a log entry holds a `RaiseLevel`, by a glance at its first two bytes."""
    return data[1:2] == b"\x05"


def is_tick(data: bytes) -> bool:
    """Whether a log entry holds a `Tick`, by a glance at its first two bytes."""
    return data[1:2] == b"\x06"


def is_timed(data: bytes) -> bool:
    """Whether a log entry holds a `TimedBatch`, by a glance at its first two bytes."""
    return data[1:2] == b"\x07"


def may_be_proposed(data: bytes) -> bool:
    """Whether a follower may ask for this: writes and sessions that this release knows. The rest is for the leader to
    say."""
    try:
        return isinstance(decode(data), Batch | OpenSession)
    except (UnknownCommand, RecursionError):
        return False

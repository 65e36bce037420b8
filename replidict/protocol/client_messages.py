"""The messages between a node and its clients: programs that are no members, such as the command `replidict`.

Rules kept here:

1. Requests and answers have decoders of their own, so that nothing a client sends can be a message of Raft.
2. Every request has an id, which its answers carry, and a bounded timeout. One answer ends it: `Keys`, `Piece` and
   `Events` are parts that precede that one. An error is a `Failed`; one of id 0 concerns the client itself.
3. Fields are only added at the end, with a default, and a tag is never reused, as in `peer_messages`.

Keys and values are encoded by `replidict.machine.codec`, whatever codec the node has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from replidict.protocol.log_entry import Number
from replidict.release import FIRST
from replidict.status import LockInfo, Member, Status

TIMEOUT_MAX = 3600.0  # seconds
PAGE_MAX = 1_000_000  # keys in the answers to one request

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=TIMEOUT_MAX)]
_Limit = Annotated[int, msgspec.Meta(ge=0, le=PAGE_MAX)]
_Text = Annotated[str, msgspec.Meta(max_length=300)]


class _Request(msgspec.Struct, frozen=True, array_like=True):
    """Common shape of all requests; `timeout` in seconds."""

    id: Number
    timeout: _Seconds


class Get(_Request, frozen=True, tag=1):
    """The value of a key, this node's or a linearizable one. Answer: `Value`."""

    key: bytes
    linearizable: bool


class Set(_Request, frozen=True, tag=2):
    """Store a value. Answer: `Stored`."""

    key: bytes
    value: bytes


class Add(_Request, frozen=True, tag=3):
    """Store a value if the key is absent. Answer: `Held`."""

    key: bytes
    value: bytes


class Replace(_Request, frozen=True, tag=4):
    """Store a value if this revision wrote the present one. Answer: `Held`."""

    key: bytes
    value: bytes
    revision: Number


class Delete(_Request, frozen=True, tag=5):
    """Remove a key. Answer: `Held`, whether it was there."""

    key: bytes


class ListKeys(_Request, frozen=True, tag=6):
    """The keys that begin with a text (all keys, if it is empty), in order, behind `after`. Answers: `Keys`, `Done`.

    In order: texts by code point, then all other keys, by their bytes.
    """

    prefix: str
    after: bytes | None
    limit: _Limit
    linearizable: bool


class GetStatus(_Request, frozen=True, tag=7):
    """The node's status. Answer: `StatusIs`."""


class GetMembers(_Request, frozen=True, tag=8):
    """The members of the cluster. Answer: `MembersAre`."""


class AddPeer(_Request, frozen=True, tag=9):
    """Add a member. Answer: `Done`."""

    address: _Text
    voter: bool


class RemovePeer(_Request, frozen=True, tag=10):
    """Remove a member. Answer: `Done`."""

    address: _Text
    force: bool


class Transfer(_Request, frozen=True, tag=11):
    """Transfer leadership to another voter. Answer: `Done`."""

    to: _Text | None


class Join(_Request, frozen=True, tag=12):
    """A node with an empty disk asks to be added, and names its release. Answer: `Joined`."""

    address: _Text
    node_id: _Text
    voter: bool
    level: Number = FIRST.level
    version: _Text = FIRST.version


class Backup(_Request, frozen=True, tag=13):
    """A backup of the node's state. Answers: `Piece`, `Done`."""


class Supersede(_Request, frozen=True, tag=14):
    """The founder of a recovered cluster tells a member of the old one about it (see `superseded`): the new
    cluster, the founder's address there, and the time of the recovery (ISO 8601). In the old cluster the founder
    had the given address and node id, and knew its members as of the entry at `index`. Answer: `Done`, if the
    receiver believes it."""

    cluster_id: _Text
    node_id: _Text
    address: _Text
    index: Number
    successor: _Text
    founder: _Text
    at: _Text


class Watch(_Request, frozen=True, tag=15):
    """Watch changes as they are applied: of a key, of the str keys with a prefix, or of all; after a revision, or from
    now on.

    Answers: `Events`, the first of them without any, which says where it begins; there is no end but a `Failed`.
    """

    key: bytes | None
    prefix: str | None
    after: Number | None


class Increment(_Request, frozen=True, tag=16):
    """Add to the number under a key, or to `default`. Answer: `Sum`."""

    key: bytes
    by: bytes
    default: bytes


class GetLocks(_Request, frozen=True, tag=20):
    """The holders of all locks, in this node's copy. Answer: `LocksAre`."""


class BreakLock(_Request, frozen=True, tag=21):
    """Take a lock from the holder with this token. Answer: `Held`, whether there was one."""

    name: Annotated[str, msgspec.Meta(max_length=1000)]
    token: Number


class SetForAWhile(_Request, frozen=True, tag=22):
    """Store a value that expires after `ttl` seconds; optionally only if the key is absent, or only if this revision
    wrote the present value. This is not a field of `Set`, because an older release would ignore it and store the value
    for ever. Answer: `Stored` or `Held`."""

    key: bytes
    value: bytes
    ttl: Annotated[float, msgspec.Meta(gt=0)]
    if_absent: bool = False
    if_revision: Number | None = None


Request = (
    Get
    | Set
    | Add
    | Replace
    | Delete
    | ListKeys
    | GetStatus
    | GetMembers
    | AddPeer
    | RemovePeer
    | Transfer
    | Join
    | Backup
    | Supersede
    | Watch
    | Increment
    | GetLocks
    | BreakLock
    | SetForAWhile
)


WRITES = (
    Set, Add, Replace, Delete, Increment, AddPeer, RemovePeer, Transfer, Join, Supersede, BreakLock, SetForAWhile,
)  # fmt: skip
"""What leaves a trace: a request of these that was not answered may or may not be done."""


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    """Common shape of all answers; `id` is that of the request."""

    id: Number


class Done(_Answer, frozen=True, tag=1):
    """The request is done, and there is nothing to return."""


class Failed(_Answer, frozen=True, tag=2):
    """The request failed: the name of a class of `replidict.errors`, or `ValueError`, and its text."""

    error: _Text
    text: str
    numbers: list[int] = []
    """What the error has beside its text."""


class Value(_Answer, frozen=True, tag=3):
    """The value and the revision that wrote it; None if the key is absent."""

    value: bytes | None
    revision: int


class Stored(_Answer, frozen=True, tag=4):
    """The revision of a write."""

    revision: int


class Held(_Answer, frozen=True, tag=5):
    """Whether the condition of a write held, and the write was applied."""

    held: bool


class Keys(_Answer, frozen=True, tag=6):
    """Some keys; more follow."""

    keys: list[bytes]


@dataclass(frozen=True)
class _StatusForAll(Status):
    """A `Status` with the fields that clients of release 0.1.0 expect."""

    entries_deleted: int = 0
    entries_resent: int = 0


class StatusIs(_Answer, frozen=True, tag=7):
    """The node's status."""

    status: Status

    @classmethod
    def of(cls, id: Number, status: Status) -> StatusIs:
        """As clients of every release can read it."""
        return cls(id, _StatusForAll(**vars(status)))


class MembersAre(_Answer, frozen=True, tag=8):
    """The members of the cluster."""

    members: list[Member]


class Joined(_Answer, frozen=True, tag=9):
    """The requester is a member now: the cluster, and the configuration as of the entry at `index`."""

    cluster_id: str
    index: Number
    voters: list[str]
    learners: list[str]
    node_ids: dict[str, str]
    readers: list[str]


class Piece(_Answer, frozen=True, tag=10):
    """A piece of a file of this many bytes; more follow."""

    total_bytes: Number
    data: bytes


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One change of one key; `value` and `previous` are None where there was none."""

    kind: str
    key: bytes
    value: bytes | None
    previous: bytes | None


class Events(_Answer, frozen=True, tag=11):
    """Some changes of one revision; `last` if no more of it follow. Without changes: this revision was reached."""

    revision: Number
    last: bool
    events: list[Event]


class Sum(_Answer, frozen=True, tag=12):
    """The new value of a number."""

    value: bytes


class LocksAre(_Answer, frozen=True, tag=20):
    """The holders of all locks."""

    locks: list[LockInfo]


Answer = Done | Failed | Value | Stored | Held | Keys | StatusIs | MembersAre | Joined | Piece | Events | Sum | LocksAre

decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode

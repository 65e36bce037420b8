"""The messages between an attached process and its host.

Rules kept here:

1. Both run as the same user, and trust each other; still each message is typed, and what is none ends the connection.
2. The first message of each side is `Attach` and `Attached` (or `Refused`), whose shape no release changes: they tell
   whether the two understand each other. All else may change with `VERSION`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from replidict.protocol.peer_messages import AddMember, RemoveMember, TransferTo
from replidict.status import Member, Status

VERSION = 1


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Common shape of all messages."""


class Attach(_Message, frozen=True, tag=1):
    """A process wants to attach. If it was attached before: to which node, how far it has applied that one's log, and
    which leases it holds."""

    version: int
    release: str
    pid: int
    cluster_id: str = ""
    node_id: str = ""
    applied: int = 0
    leases: list[int] = []


class Forward(_Message, frozen=True, tag=2):
    """A command for the log."""

    command: bytes


class AskIndex(_Message, frozen=True, tag=3):
    """Which index does a linearizable read wait for? Answer: `IndexIs`."""

    number: int


class ChangeMembers(_Message, frozen=True, tag=4):
    """Have the members changed, or leadership handed over. Answer: `Said`."""

    number: int
    change: AddMember | RemoveMember | TransferTo
    seconds: float


class GetMembers(_Message, frozen=True, tag=5):
    """Who is in the cluster? Answer: `Said`."""

    number: int


class MakeBackup(_Message, frozen=True, tag=6):
    """Have a backup made. Answer: `Said`."""

    number: int
    path: str


Request = ChangeMembers | GetMembers | MakeBackup
FromAttached = Attach | Forward | AskIndex | ChangeMembers | GetMembers | MakeBackup


class Attached(_Message, frozen=True, tag=1):
    """It is attached to this node."""

    cluster_id: str
    node_id: str
    address: str


class Refused(_Message, frozen=True, tag=2):
    """It is not, for this reason."""

    why: str


class State(_Message, frozen=True, tag=3):
    """What the state as of the entry at `index` has beside its rows, which come next: see `StateMachine.load`."""

    index: int
    revision: int
    next_position: int
    sessions: list[tuple[int, int, int, list[tuple[int, list[Any]]]]]
    kept: dict[str, bytes]


class Rows(_Message, frozen=True, tag=4):
    """Rows of the state in order: position, key, value, revision."""

    rows: list[tuple[int, bytes, bytes, int]]
    last: bool


class Entries(_Message, frozen=True, tag=5):
    """The commands of entries that are committed and applied, from this index on."""

    first: int
    commands: list[bytes]


class Standing(_Message, frozen=True, tag=6):
    """How the node stands. `route` counts the ways of commands to the leader that there were, and is None while there
    is none. Its clock of the cluster showed `clock` at `at`, on the clock of this machine, on which all that was
    acknowledged up to `fresh_as_of` is in the state as of `status.applied_index`. A write above the cluster's feature
    level gets `too_high`, at once if that is `final`."""

    route: int | None
    status: Status
    clock: int
    at: float
    fresh_as_of: float
    too_high: str
    final: bool


class IndexIs(_Message, frozen=True, tag=7):
    """The index that was asked for; None: nobody can tell now."""

    number: int
    index: int | None


class BackupMade(_Message, frozen=True, tag=8):
    """See `node.backup.Backup`."""

    path: str
    revision: int
    index: int
    keys: int
    size: int


class Said(_Message, frozen=True, tag=9):
    """The answer to a request: what it gives, or the name of an error and its text."""

    number: int
    members: list[Member] = []
    backup: BackupMade | None = None
    error: str = ""
    text: str = ""


FromHost = Attached | Refused | State | Rows | Entries | Standing | IndexIs | Said

encode = msgspec.msgpack.Encoder().encode
decode_from_attached = msgspec.msgpack.Decoder(FromAttached).decode
decode_from_host = msgspec.msgpack.Decoder(FromHost).decode

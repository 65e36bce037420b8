"""The messages between an attached process and its host.

Rules kept here:

1. Both sides run as the same user and trust each other; still every message is typed, and anything else ends the
   connection.
2. The first message of each side is `Attach` and `Attached` (or `Refused`), whose shape never changes: it shows whether
   the two releases understand each other. Everything else may change with `VERSION`.
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
    """A process wants to attach. If it was attached before: to which node, how far it has applied that node's log, and
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
    """Change the members, or transfer leadership. Answer: `Said`."""

    number: int
    change: AddMember | RemoveMember | TransferTo
    seconds: float


class GetMembers(_Message, frozen=True, tag=5):
    """The members of the cluster. Answer: `Said`."""

    number: int


class MakeBackup(_Message, frozen=True, tag=6):
    """Make a backup. Answer: `Said`."""

    number: int
    path: str


Request = ChangeMembers | GetMembers | MakeBackup
FromAttached = Attach | Forward | AskIndex | ChangeMembers | GetMembers | MakeBackup


class Attached(_Message, frozen=True, tag=1):
    """The process is attached to this node."""

    cluster_id: str
    node_id: str
    address: str


class Refused(_Message, frozen=True, tag=2):
    """The process is not attached, for this reason."""

    why: str


class State(_Message, frozen=True, tag=3):
    """The state as of the entry at `index`, without its rows, which follow: see `StateMachine.load`."""

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
    """The node's situation. `route` counts the routes to the leader so far, and is None while there is none. The
    cluster's clock showed `clock` at time `at` of this machine's clock. A write above the cluster's feature level gets
    the error `too_high`, at once if that is `final`."""

    route: int | None
    status: Status
    clock: int
    at: float
    fresh_as_of: float
    too_high: str
    final: bool


class IndexIs(_Message, frozen=True, tag=7):
    """The index that was asked for; None if it can't be found at present."""

    number: int
    index: int | None


class BackupMade(_Message, frozen=True, tag=8):
    """See `node.online_backup.Backup`."""

    path: str
    revision: int
    index: int
    keys: int
    size: int


class Said(_Message, frozen=True, tag=9):
    """The answer to a request: its result, or the name of an error and its text."""

    number: int
    members: list[Member] = []
    backup: BackupMade | None = None
    error: str = ""
    text: str = ""


FromHost = Attached | Refused | State | Rows | Entries | Standing | IndexIs | Said

encode = msgspec.msgpack.Encoder().encode
decode_from_attached = msgspec.msgpack.Decoder(FromAttached).decode
decode_from_host = msgspec.msgpack.Decoder(FromHost).decode

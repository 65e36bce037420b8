"""The messages between nodes: typed, frozen structs, encoded by msgspec.

Arrays instead of maps keep frames short; the tag is the first element. Fields are only ever added at the end, with a
default, and a tag is never reused, so that different releases can run together.

Figures and sections are those of the Raft paper ("In Search of an Understandable Consensus Algorithm",
extended version) and of Ongaro's thesis ("Consensus: Bridging Theory and Practice").
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from replidict.protocol.log_entry import Entry, Number

Seconds = Annotated[float, msgspec.Meta(ge=0)]
"""A time or a duration; may be infinite."""
Name = Annotated[str, msgspec.Meta(max_length=300)]
"""An address, or an id."""
WHY_MAX = 1000  # characters
MEMBERS_MAX = 1000
Why = Annotated[str, msgspec.Meta(max_length=WHY_MAX)]
Names = Annotated[list[Name], msgspec.Meta(max_length=MEMBERS_MAX)]
NodeIds = Annotated[dict[Name, Name], msgspec.Meta(max_length=MEMBERS_MAX)]


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Common shape of all messages; `term` is the sender's term, as in figure 2."""

    term: Number


class DigestAt(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The digest of the state at an index (see `machine.digest`)."""

    index: Number
    digest: Annotated[bytes, msgspec.Meta(max_length=16)]


class RequestVote(_Message, frozen=True, tag=1):
    """Figure 2, RequestVote. `pre` asks without raising the term (thesis 9.6); `transfer` marks an election
    that the leader itself asked for, which need not wait until the leader falls silent (thesis 4.2.3)."""

    last_index: Number
    last_term: Number
    pre: bool = False
    transfer: bool = False


class VoteReply(_Message, frozen=True, tag=2):
    """Answer to `RequestVote`. For a pre-vote `asked` is the term that the candidate would take."""

    granted: bool
    pre: bool
    asked: Number


class AppendEntries(_Message, frozen=True, tag=3, gc=True):
    """Figure 2, AppendEntries; without entries, a heartbeat.

    `echo` returns the receiver's own `stamp` from its last reply, and `age` says how long ago (seconds, on the
    leader's clock) the leader knew itself to be the leader: together they bound the receiver's staleness. `clock` is
    what the cluster's clock shows, in milliseconds; 0 if the sender's release has none. `digest` is the leader's, which
    the receiver is to answer with its own, and `agreed` that of a majority, for one that has answered with another one
    (see `raft.divergence`).
    """

    prev_index: Number
    prev_term: Number
    commit_index: Number
    entries: list[Entry]
    round: Number = 0
    echo: Seconds = 0.0
    age: Seconds = float("inf")
    clock: Number = 0
    digest: DigestAt | None = None
    agreed: DigestAt | None = None

    def __post_init__(self) -> None:
        """Refuse, where it is read, what no leader's log can hold: gaps, and terms that fall or are yet to come."""
        index, term = self.prev_index, self.prev_term
        for entry in self.entries:
            index += 1
            if entry.index != index or not term <= entry.term <= self.term:
                raise ValueError(f"entry {entry.index} of term {entry.term} can't follow {index - 1} of term {term}")
            term = entry.term


class AppendReply(_Message, frozen=True, tag=4):
    """Answer to `AppendEntries`, sent only after what it acknowledges is on disk.

    On success `match_index` is the last index that this very message verified. Otherwise it is a hint: the
    logs surely differ above it. `digest` is the sender's at the last index that the leader has asked about.
    """

    success: bool
    match_index: Number
    round: Number = 0
    stamp: Seconds = 0.0
    digest: DigestAt | None = None


class TimeoutNow(_Message, frozen=True, tag=5):
    """Leadership transfer (thesis 3.10): start an election at once."""


class SnapshotPiece(_Message, frozen=True, tag=6):
    """Figure 13, InstallSnapshot: a piece of the SQLite file that holds the state at `last_index`."""

    last_index: Number
    last_term: Number
    snapshot_id: Name
    total_bytes: Number
    sha256: Annotated[bytes, msgspec.Meta(max_length=32)]
    offset: Number
    data: bytes

    def __post_init__(self) -> None:
        """Refuse, where it is read, what is no piece of that file."""
        if self.offset + len(self.data) > self.total_bytes:
            raise ValueError(f"a piece up to {self.offset + len(self.data)} of a file of {self.total_bytes} bytes")


class SnapshotReply(_Message, frozen=True, tag=7):
    """Answer to `SnapshotPiece`: the offset wanted next; `installed` once the whole is on disk and in force."""

    snapshot_id: Name
    offset: Number
    installed: bool
    last_index: Number


class Propose(_Message, frozen=True, tag=8):
    """A follower hands a command to the leader. The answer is the command itself, when it is applied here."""

    command: bytes


class ProposeRefused(_Message, frozen=True, tag=9):
    """The receiver of `Propose` is not the leader: try again at once, elsewhere."""

    leader: Name | None


class ConfirmLeader(_Message, frozen=True, tag=10):
    """Read index, thesis 6.4: am I still the leader of `term`? Answered at once, without a disk write."""

    round: Number


class LeaderConfirmed(_Message, frozen=True, tag=11):
    """Answer to `ConfirmLeader`, with the term that the sender knows."""

    round: Number


class ReadIndexRequest(_Message, frozen=True, tag=12):
    """A follower asks the leader for an index that a linearizable read must wait for."""

    request_id: Number


class ReadIndexReply(_Message, frozen=True, tag=13):
    """The index to wait for, or None when the receiver could not confirm that it is the leader."""

    request_id: Number
    index: Number | None


class CommitTo(_Message, frozen=True, tag=14):
    """The leader's commit index moved on. Unanswered; what the receiver's log is not known to share is left out."""

    commit_index: Number


class MembersAre(_Message, frozen=True, tag=15):
    """The last configuration that the sender knows to be committed, as of the entry at `index`.

    Sent to a peer when it connects, and to a caller who is no member (any more): who was away while the members
    changed would otherwise look for the leader where it no longer is (thesis 4.2.3).
    """

    index: Number
    voters: Names
    learners: Names
    node_ids: NodeIds
    readers: Names

    def __post_init__(self) -> None:
        """Refuse, where it is read, what no cluster can be."""
        if not self.voters or set(self.voters) & set(self.learners):
            raise ValueError(f"{self.voters} and {self.learners} can't be voters and learners")


class AddMember(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Add a node, as a learner first; `voter` says whether it is promoted once it has caught up (thesis 4.2.1)."""

    address: Name
    voter: bool
    node_id: Name | None = None


class RemoveMember(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Remove a member; with `force` also if that leaves no connected majority, so that nothing can be committed for a
    while."""

    address: Name
    force: bool = False


class TransferTo(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Transfer leadership to this voter, or (None) to the one whose log is furthest (thesis 3.10)."""

    address: Name | None = None


Change = AddMember | RemoveMember | TransferTo
Verdict = Literal["done", "later", "lost", "absent", "never"]


class ChangeRequest(_Message, frozen=True, tag=16):
    """A member asks the leader to change the members, or to transfer leadership."""

    request_id: Number
    change: Change


class ChangeReply(_Message, frozen=True, tag=17):
    """The outcome of a `ChangeRequest` (see `reconfiguration`, rule 5), and the reason."""

    request_id: Number
    verdict: Verdict
    why: Why


class MembersRequest(_Message, frozen=True, tag=18):
    """A member asks the leader for the progress of all members."""

    request_id: Number


class MembersReply(_Message, frozen=True, tag=19):
    """By address: the last index known to be on the member's disk, and the seconds since its last answer; None if the
    receiver does not lead. `digests` are the latest ones that the members reported."""

    request_id: Number
    progress: Annotated[dict[Name, tuple[Number, Seconds]], msgspec.Meta(max_length=MEMBERS_MAX)] | None
    digests: Annotated[dict[Name, DigestAt], msgspec.Meta(max_length=MEMBERS_MAX)] = {}


Message = (
    RequestVote
    | VoteReply
    | AppendEntries
    | AppendReply
    | TimeoutNow
    | SnapshotPiece
    | SnapshotReply
    | Propose
    | ProposeRefused
    | ConfirmLeader
    | LeaderConfirmed
    | ReadIndexRequest
    | ReadIndexReply
    | CommitTo
    | MembersAre
    | ChangeRequest
    | ChangeReply
    | MembersRequest
    | MembersReply
)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode

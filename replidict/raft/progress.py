"""What the leader knows of each peer: how far its log matches, and what is on the way to it (as etcd's progress)."""

from __future__ import annotations

from collections import deque

from pysyncobj.node import Node

from replidict.protocol.peer_messages import DigestAt
from replidict.release import Release


class Peer:
    """One other member. The indices are meaningful only on a leader, in its term.

    Invariants: `match_index` is on that peer's disk and agrees with the leader's log; it never falls within a term.
    `match_index < next_index <= log.last_index + 1`.
    """

    __slots__ = (
        "address",
        "commit_due",
        "commit_sent",
        "connected",
        "connections",
        "digest",
        "heard_at",
        "highest_sent",
        "in_flight",
        "in_flight_bytes",
        "match_index",
        "next_index",
        "node",
        "node_id",
        "probing",
        "release",
        "sent_at",
        "snapshot_acked",
        "snapshot_offset",
        "snapshot_sending",
        "stamp",
        "wants_commit",
    )

    def __init__(self, address: str) -> None:
        self.address = address
        self.node = Node(address)
        self.node_id: str | None = None  # who was last let in here
        self.release: Release | None = None  # what its node runs, or ran when it was last connected; None: never was
        self.connected = False
        self.connections = 0  # so far: another number means that what was under way may be lost
        self.heard_at = float("-inf")  # last answer, on this node's clock
        self.stamp = 0.0  # the peer's own clock in its last answer
        self.reset(1, 0.0)

    def reset(self, next_index: int, now: float) -> None:
        """Begin a leadership: nothing is known of the peer, and it gets the benefit of the doubt for one timeout."""
        self.match_index = self.highest_sent = 0
        self.next_index = next_index
        self.heard_at = now
        self.sent_at = float("-inf")
        self.commit_due = float("inf")  # when the peer is to hear of what is committed, on this node's clock
        self.wants_commit = 0  # up to this index somebody there waits to hear of it
        self.commit_sent = 0  # the commit index that the peer knows of once it has what was sent
        self.digest: DigestAt | None = None  # the last one that it has told
        self.snapshot_sending: str | None = None
        self.snapshot_offset = self.snapshot_acked = 0
        self.reconnected()

    def reconnected(self) -> None:
        """Whatever was under way may be lost: go back to what is surely there, and feel the way forward."""
        self.probing = True
        self.stamp = 0.0  # of a process that may be gone, and its clock with it
        if self.match_index:
            self.next_index = self.match_index + 1
        self.in_flight: deque[tuple[int, int]] = deque()  # (last index, bytes) of messages not yet answered
        self.in_flight_bytes = 0

    def acknowledged(self, match_index: int) -> None:
        """The peer has everything up to `match_index` on disk."""
        if match_index > self.match_index:
            self.match_index = match_index
            self.next_index = max(self.next_index, match_index + 1)
        while self.in_flight and self.in_flight[0][0] <= match_index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]

"""What a node says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Status:
    """One node's view of itself and its cluster, at one moment; another node's may differ."""

    address: str | None
    """Where this node listens; None for a single node without a network."""

    node_id: str
    """Made with the node's directory, and never again."""

    cluster_id: str
    """The same on all members."""

    role: Literal["leader", "follower", "candidate", "learner", "removed", "stopped"]
    """A learner gets every write and has no vote; a removed node is no member any more, and has stopped."""

    is_leader: bool
    """Whether this node believes itself to be the leader; a linearizable read makes sure, this does not."""

    leader: str | None
    """Address of the leader, as far as this node knows."""

    term: int
    commit_index: int
    """The last log entry known to be on a majority's disks."""

    applied_index: int
    """The last log entry that this node's copy includes."""

    revision: int
    """How many changes this node's copy includes."""

    keys: int
    peers: tuple[str, ...]
    """The other members."""

    connected: tuple[str, ...]
    """Those of them this node has a connection to."""

    log_entries: int
    """Log entries kept on disk."""

    log_bytes: int
    feature_level: int = 1
    """Which operations the cluster can do: those that every member's release knows. 2 once all have 0.2.0."""

    watchers: int = 0
    """Open watches of this node."""

    leases: int = 0
    """Leases in the cluster that have not ended."""

    locks: int = 0
    """Who holds a lock or a permit of a semaphore, in the cluster."""

    digest: str = ""
    """The digest of the whole replicated state when the log entry `digest_index` was applied, in hexadecimal digits. It
    is the same on every member that has applied exactly that entry, or this node stops. It is renewed within a second
    or two of a change, as long as there is a leader."""

    digest_index: int = 0
    differing: int = 0
    """Members whose digest is not this node's, at the same log entry, while no majority says who is right. 0: none."""

    sharing: Literal["host", "attached"] | None = None
    """Whether this process runs the node for others of its machine, or uses the node of another one; None: neither."""

    attached: tuple[int, ...] = ()
    """The other processes that use this node, by process id."""


@dataclass(frozen=True)
class LockInfo:
    """Who holds a lock, or a permit of a semaphore, as one node's copy says."""

    name: str
    holder: str
    """The node and the process, in words."""

    info: str
    """What the holder said when it asked for the lock."""

    token: int
    """The fencing token: larger than that of every grant before, in the whole cluster."""

    since: float
    """When it was granted: seconds since the epoch, on this machine's clock."""

    waiters: int
    """How many requests are in line for this lock."""


@dataclass(frozen=True)
class Member:
    """One member of the cluster, as its leader sees it."""

    address: str
    """Where it listens; `"local"` for a single node without a network."""

    voter: bool
    """Whether it counts towards a majority; if not, it is a learner."""

    is_leader: bool
    match_index: int | None
    """The last log entry known to be on its disk; None if no leader could be asked."""

    last_contact: float | None
    """Seconds since the leader last heard from it; None if no leader could be asked."""

    release: str | None = None
    """The version of replidict that it runs, or ran when this node was last connected to it; None if it never was."""

    digest: str | None = None
    """The digest of its state that it last told the leader, in hexadecimal digits; None if it has told none."""

    digest_index: int | None = None
    """The log entry up to which that is: two members with the same one have the same digest."""

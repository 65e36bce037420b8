"""`Status`, `Member` and `LockInfo`: what a node reports of itself, its cluster and the locks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Status:
    """What one node knows of itself and its cluster at one moment, as `ReplicatedDict.status` returns it.

    Another node may know something else.

    Example:
        >>> d["a"] = 1
        >>> status = d.status()
        >>> status.role, status.revision, status.keys
        ('leader', 1, 1)
    """

    address: str | None
    """The address at which this node listens, "host:port"; None for a single node without a network."""

    node_id: str
    """The random identity of this node, made with its directory."""

    cluster_id: str
    """The random identity of the cluster, the same on all members."""

    role: Literal["leader", "follower", "candidate", "learner", "removed", "stopped"]
    """What this node is. A learner gets every write and has no vote; a removed node is no member and has stopped."""

    is_leader: bool
    """Whether this node believes that it is the leader; unlike a linearizable read, this does not ask a majority."""

    leader: str | None
    """The address of the leader, as far as this node knows."""

    term: int
    """The current term (Raft 5.1)."""

    commit_index: int
    """The index of the last log entry that is known to be committed."""

    applied_index: int
    """The index of the last log entry that this node has applied to its copy."""

    revision: int
    """The revision of the last change in this node's copy."""

    keys: int
    """The number of keys in this node's copy."""

    peers: tuple[str, ...]
    """The addresses of the other members."""

    connected: tuple[str, ...]
    """The addresses of the other members to which this node is connected."""

    log_entries: int
    """The number of log entries on disk."""

    log_bytes: int
    """Bytes that the log entries take on disk."""

    feature_level: int = 1
    """The operations that the cluster can do, those that every member's release knows: 2 once all run 0.2.0."""

    watchers: int = 0
    """The number of open watches of this node."""

    leases: int = 0
    """The number of leases in the cluster that have not ended."""

    locks: int = 0
    """The number of holders of locks and permits in the cluster."""

    waiting: int = 0
    """The number of requests in the cluster that wait for a lock or a permit."""

    expired: int = 0
    """The number of keys and leases that this node has seen expire since it was opened."""

    digest: str = ""
    """The digest of the whole replicated state when the log entry `digest_index` was applied, in hexadecimal digits. It
    is the same on every member that has applied exactly that entry, or this node stops. It is renewed within a second
    or two of a change, as long as there is a leader."""

    digest_index: int = 0
    """The index of the log entry to which `digest` belongs."""

    differing: int = 0
    """The number of members whose digest differs from this node's at the same index, while no majority decides who is
    right."""

    sharing: Literal["host", "attached"] | None = None
    """Whether this process runs the node for others of its machine, or uses the node of another one; None: neither."""

    attached: tuple[int, ...] = ()
    """The other processes that use this node, by process id."""

    scrub_passes: int = 0
    """How often this node has read its whole file through in the background; see `Options.scrub_bytes_per_second`."""

    scrub_bytes: int = 0
    """How much it has read for that, in all, since it was opened."""

    scrub_age: float | None = None
    """Seconds since it last came to the end; None if it has not yet."""


@dataclass(frozen=True)
class LockInfo:
    """One holder of a lock, or of a permit of a semaphore; `ReplicatedDict.locks` returns them.

    Example:
        >>> with d.lock("report", info="nightly"):
        ...     d.leader("report").info
        'nightly'
    """

    name: str
    """The name of the lock or semaphore."""

    holder: str
    """The node and the process that hold it, in words."""

    info: str
    """The text that the holder gave as `info`."""

    token: int
    """The fencing token: larger than that of every grant before, in the whole cluster."""

    since: float
    """When it was granted, in seconds since the epoch, by this machine's clock."""

    waiters: int
    """The number of requests that wait for this lock."""


@dataclass(frozen=True)
class Member:
    """One member of the cluster, as its leader sees it; `ReplicatedDict.members` returns them.

    Example:
        >>> [(member.address, member.voter) for member in d.members()]
        [('local', True)]
    """

    address: str
    """The address at which it listens, "host:port"; `"local"` for a single node without a network."""

    voter: bool
    """Whether it has a vote and counts towards a majority; if not, it is a learner."""

    is_leader: bool
    """Whether it is the leader."""

    match_index: int | None
    """The index of the last log entry that is known to be on its disk; None if no leader could be asked."""

    last_contact: float | None
    """Seconds since the leader last heard from it; None if no leader could be asked."""

    release: str | None = None
    """The version of replidict that it ran when this node was last connected to it; None if it never was."""

    digest: str | None = None
    """The last digest of its state that the leader received, in hexadecimal digits; None if there is none."""

    digest_index: int | None = None
    """The index of the log entry to which `digest` belongs: members with the same index must have the same digest."""

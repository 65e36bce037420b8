"""`Options`: the timings and limits of a node."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from replidict.brief import brief

MiB = 1024 * 1024

NO_NETWORK = "local"
"""What a node without an address calls itself."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Timings (in seconds) and limits (in bytes, or entries) of one node; use the same ones on every node of a cluster.

    Raises:
        ValueError: A value makes no sense; the text names the option.

    Example:
        >>> from replidict import Options
        >>> options = Options(durability="process", lease_reads=True)
        >>> with ReplicatedDict("fast", options=options) as fast:
        ...     fast["a"] = 1
    """

    heartbeat: float = 0.1
    """Seconds between two messages by which an idle leader shows that it is alive."""

    election_timeout: float = 0.5
    """Seconds, at least 3 heartbeats. A follower that hears no leader for this long, up to twice this long (drawn anew
    each time), starts an election (Raft 5.2); one that sees the leader's process end does so at once, without
    `lease_reads`. A leader that hears no majority for this long steps down (thesis 6.2)."""

    durability: Literal["fsync", "process"] = "fsync"
    """When a write is acknowledged. `"fsync"`: a majority has it on disk. `"process"`: a majority has handed it to its
    operating system, so it survives the end of processes, but not of machines: after a power cut, a node opens with an
    older state, and does not notice that the end of its log is missing."""

    lease_reads: bool = False
    """Whether the leader answers linearizable reads without asking a majority while its lease lasts (thesis 6.4.1).
    This is safe as long as no node's monotonic clock runs more than a tenth faster or slower than another's; the clocks
    need not show the same time."""

    max_key_bytes: int = 64 * 1024
    """The largest key, in bytes, encoded; at most 1 MiB."""

    max_value_bytes: int = 4 * MiB
    """The largest value, in bytes, encoded; at most 512 MiB. A node that sends or writes a large value sends no
    heartbeats meanwhile: the larger this is, the larger `election_timeout` must be."""

    max_command_bytes: int = MiB
    """Bytes, encoded, up to which `update()` is one atomic command; a larger one is split into several, in order."""

    log_retain: int = 20_000
    """Number of applied log entries that are kept for followers that lag; one that lags further gets a snapshot."""

    snapshot_retain: int = 3
    """Number of automatic snapshots kept in the node's directory, for `ReplicatedDict.restore`; 0: none is made."""

    history_entries: int = 100_000
    """Number of changes of keys that the node remembers for watches; see `ReplicatedDict.watch`."""

    history_bytes: int = 64 * MiB
    """Bytes of memory that the remembered changes may take, besides the dict itself."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            expected = {"float": (int, float), "int": (int,), "bool": (bool,)}.get(str(field.type), (str,))
            if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
                raise ValueError(f"Options({field.name}={brief(value)}): expected {field.type}")
            wanted = "a positive" if field.name != "snapshot_retain" else "0 or a positive"
            may_be_zero = field.name == "snapshot_retain" and value == 0
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not (0 < value < 2**40 or may_be_zero)
            ):
                raise ValueError(f"Options({field.name}={brief(value)}): must be {wanted} number below 2**40")
        if self.durability not in ("fsync", "process"):
            raise ValueError(f"Options(durability={brief(self.durability)}): must be 'fsync' or 'process'")
        if self.election_timeout < 3 * self.heartbeat:
            raise ValueError(
                f"Options(election_timeout={self.election_timeout}): must be at least 3 heartbeats "
                f"(heartbeat={self.heartbeat}), or a single late one would end a leadership"
            )
        if self.max_value_bytes > 512 * MiB:
            raise ValueError(f"Options(max_value_bytes={self.max_value_bytes}): must be at most 512 MiB")
        if self.max_key_bytes > MiB:
            raise ValueError(f"Options(max_key_bytes={self.max_key_bytes}): must be at most 1 MiB")

    @property
    def max_frame_bytes(self) -> int:
        """The largest message on the wire, in bytes: a compare-and-set of two values, and what encloses it."""
        return 2 * self.max_value_bytes + self.max_key_bytes + self.max_command_bytes + MiB

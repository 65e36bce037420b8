"""Timings and limits, checked when they are made: a wrong value raises `ValueError` that names it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from replidict.brief import brief

MiB = 1024 * 1024

NO_NETWORK = "local"
"""What a node without an address calls itself."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Timings (seconds) and limits (bytes, entries) of one node. Every node of a cluster should use the same.

    Raises `ValueError`, naming the option, when a value makes no sense.
    """

    heartbeat: float = 0.1
    """How often an idle leader shows that it is alive, in seconds."""

    election_timeout: float = 0.5
    """A follower that hears no leader for this long, up to twice this long (drawn anew each time), asks for
    an election (Raft 5.2); a leader that hears no majority for this long steps down (thesis 6.2). Seconds; at
    least 3 heartbeats."""

    durability: Literal["fsync", "process"] = "fsync"
    """`"fsync"`: an acknowledged write is on disk on a majority. `"process"`: it is with the operating system of
    a majority, which survives the death of processes but not of machines: what a power cut took, or later damage to
    the end of its files, can't be told from what was never written, and such a node opens with an older state."""

    lease_reads: bool = False
    """The leader answers linearizable reads without asking a majority while its lease holds (thesis 6.4.1).
    Safe as long as no node's monotonic clock runs more than a tenth faster or slower than another's; clocks
    need not show the same time."""

    max_key_bytes: int = 64 * 1024
    """The longest key, encoded."""

    max_value_bytes: int = 4 * MiB
    """The largest value, encoded. While it is sent and written nothing else is: raise `election_timeout` with it."""

    max_command_bytes: int = MiB
    """`update()` is one atomic command up to this size, encoded; what is larger goes as several, in order."""

    log_retain: int = 20_000
    """How many applied log entries stay for followers that lag; one further behind gets a snapshot."""

    snapshot_retain: int = 3
    """How many automatic snapshots stay under the data directory, for `ReplicatedDict.restore`; 0 takes none."""

    history_entries: int = 100_000
    """How many changes of keys a node remembers for those who watch; see `ReplicatedDict.watch`."""

    history_bytes: int = 64 * MiB
    """How much memory these may take beside the dict itself: old values and keys, and what it costs to keep them."""

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
        """The largest frame on the wire: a compare-and-set of two values, with the overhead of batch and message."""
        return 2 * self.max_value_bytes + self.max_key_bytes + self.max_command_bytes + MiB

"""What a node is in its term (Raft 5.1)."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """Follower, candidate or leader; the values are PySyncObj's."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2

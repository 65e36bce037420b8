"""The roles of a node (Raft 5.1)."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """Follower, candidate or leader."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


LEADER = Role.LEADER
"""By a name of its own, because to look up a member of an `Enum` takes longer than to compare it."""

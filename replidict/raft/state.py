"""What a node knows of itself and of its cluster (Raft, figure 2, "State"): data only."""

from __future__ import annotations

import random
from collections.abc import Callable

from replidict.options import Options
from replidict.raft.configuration import Configurations, MemberSet
from replidict.raft.progress import Peer
from replidict.raft.role import LEADER, Role
from replidict.storage.store import Store


class RaftState:
    """The state of one node. Every part of the engine reads it; the comments say who may write what.

    Invariants: `commit_index` and `term` never fall; `last_applied <= commit_index <= log.last_index`.
    """

    __slots__ = (
        "_committed_in",
        "address",
        "before_timed",
        "clock",
        "commit_index",
        "configurations",
        "hear_time",
        "last_applied",
        "leader",
        "log",
        "options",
        "peers",
        "rng",
        "role",
        "store",
        "tell_time",
        "term",
        "voted_for",
    )

    def __init__(self, store: Store, options: Options, clock: Callable[[], float], rng: random.Random) -> None:
        """The state of a node that starts with what is on its disk."""
        self.store, self.log = store, store.log
        self.address = store.identity.address
        self.options, self.clock, self.rng = options, clock, rng
        # Written by `elections` alone. The leader is an address, None while nobody is known to lead the term.
        self.term, self.voted_for = store.term, store.voted_for
        self.role = Role.FOLLOWER
        self._committed_in = -1  # the last term found to be that of a committed entry
        self.leader: str | None = None
        # Written by `replication` and `install_snapshot`.
        self.commit_index = max(store.committed, store.applied.index)
        # Written by the engine.
        self.last_applied = store.applied.index
        # Written by `replicated_log`, which keeps both in step, and by the engine.
        self.configurations = Configurations.of_log(
            MemberSet.of(store.members.index, store.members),
            store.log.entries_from(store.applied.index + 1, 1 << 62),
        )
        self.peers: dict[str, Peer] = {}
        # The cluster's clock (see `node.expiry`): called before an entry that needs the time is appended; what a leader
        # says with its entries; what it has said.
        self.before_timed: Callable[[], None] = lambda: None
        self.tell_time: Callable[[], int] = lambda: 0
        self.hear_time: Callable[[int], None] = lambda milliseconds: None

    @property
    def is_leader(self) -> bool:
        """Whether this node is the leader of its term, as far as it knows."""
        return self.role is LEADER

    @property
    def leading_peer(self) -> Peer | None:
        """The leader of the current term, if it is known and is another member."""
        return None if self.leader is None else self.peers.get(self.leader)

    @property
    def members(self) -> MemberSet:
        """The configuration in force."""
        return self.configurations.current

    @property
    def committed_members(self) -> MemberSet:
        """The last configuration known to be committed."""
        return self.configurations.committed(self.commit_index)

    @property
    def committed_in_term(self) -> bool:
        """Whether an entry of the current term is committed: before that a leader may not know of all that is (5.4.2,
        thesis 6.4)."""
        if self._committed_in != self.term and self.log.term_at(self.commit_index) == self.term:
            self._committed_in = self.term  # for the rest of it: neither of the two ever falls
        return self._committed_in == self.term

"""Invariants of elections (Raft, figure 3; thesis 4 and 6.4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replidict.protocol.peer_messages import Message
from replidict.storage import records
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine
    from tests.simulator.check_logs import LogChecks
    from tests.simulator.check_members import MemberChecks
    from tests.simulator.cluster import Cluster


class ElectionChecks:
    """Who voted for whom, and who led."""

    def __init__(self, cluster: Cluster, members: MemberChecks, logs: LogChecks) -> None:
        self._cluster = cluster
        self._members = members
        self._logs = logs
        self._leaders: dict[int, tuple[str, str]] = {}  # term -> (address, identity)
        self._sent: dict[tuple[int, str], str] = {}  # (term, identity of the voter) -> for whom, as it was sent
        self._stored: dict[tuple[int, str], str] = {}  # the same, as it is on its disk
        self.leaders_seen = 0

    def leader(self, machine: Machine, term: int) -> None:
        """A node says that it leads a term."""
        it = machine.address, machine.disk.node_id
        known = self._leaders.setdefault(term, it)
        if known != it:
            raise Violation("election safety", f"{known} and {it} both lead term {term}")

    def leads(self, machine: Machine, term: int) -> None:
        """A node was elected."""
        self.leader(machine, term)
        self.leaders_seen += 1
        self._cluster.trace.note(machine.address, "leads", term)
        assert machine.node is not None
        members = machine.node.engine.members
        voters = []
        for address in sorted(members.voters):
            vote = term, self._members.identity(members, address)
            # Its own is on disk before it asks; others' may be superseded by a later one in the very commit.
            if machine.address in (self._stored.get(vote), self._sent.get(vote)):
                voters.append(address)
        if not members.is_majority(voters):
            raise Violation(
                "votes",
                f"{machine.address} leads term {term} by the votes of {voters}, out of {sorted(members.voters)}",
            )
        self._logs.complete(machine, term)
        for other in self._cluster.machines.values():
            if other is machine or other.node is None or not other.node.engine.is_leader:
                continue
            left = other.node.engine.read_index.lease_until - other.clock()
            if other.node.engine.term < term and left > 0:
                raise Violation(
                    "lease",
                    f"{machine.address} leads term {term} while {other.address} holds a lease of term "
                    f"{other.node.engine.term} for {left:.3f} s",
                )

    def vote_stored(self, machine: Machine, vote: records.Vote) -> None:
        """A vote is about to be on disk."""
        known, address = machine.disk.shadow.vote, machine.address
        if vote.term < known.term:
            raise Violation("terms", f"{address}: the term on disk goes back from {known} to {vote}")
        if vote.term == known.term and known.voted_for is not None and vote.voted_for != known.voted_for:
            raise Violation("one vote", f"{address}: the vote on disk changes from {known} to {vote}")
        if vote.voted_for is not None:
            self._stored[vote.term, machine.disk.node_id] = vote.voted_for

    def vote_sent(self, machine: Machine, term: int, candidate: str) -> None:
        """A node votes."""
        stored = machine.disk.shadow.vote
        # A later term on disk does as well: this node will never again vote in the earlier one.
        if stored.term < term or (stored.term == term and stored.voted_for != candidate):
            raise Violation(
                "durability", f"{machine.address} votes for {candidate} in term {term}; on its disk: {stored}"
            )
        known = self._sent.setdefault((term, machine.disk.node_id), candidate)
        if known != candidate:
            raise Violation("one vote", f"{machine.address} votes for {known} and {candidate} in term {term}")

    def term_stored(self, machine: Machine, message: Message) -> None:
        """A node tells of a term."""
        stored = machine.disk.shadow.vote
        if stored.term < message.term:
            raise Violation("durability", f"{machine.address} tells of term {message.term}; on its disk: {stored}")

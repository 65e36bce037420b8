"""Invariants of the log: what matches, what is stored, what is committed (Raft, figure 3)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from replidict.protocol.peer_messages import AppendReply, SnapshotReply
from replidict.storage import records
from replidict.testing.simulator.disk import Row, Write
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine
    from tests.simulator.check_members import MemberChecks
    from tests.simulator.cluster import Cluster


class LogChecks:
    """Every entry that was ever on a disk, and those that were committed."""

    def __init__(self, cluster: Cluster, members: MemberChecks) -> None:
        self._cluster = cluster
        self._members = members
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}  # (index, term) -> (checksum, term before)
        self.commits: dict[int, int] = {}  # index -> term
        self._committed_in: dict[int, int] = {}  # index -> the term that it was committed in, which may be later
        self.highest_commit = 0
        self.commit_times: list[float] = []
        self.commit_indices: list[int] = []

    # -- on disk ------------------------------------------------------------------------------------------------------

    def written(self, machine: Machine, writes: list[Write]) -> None:
        """A transaction is about to be durable on a node's disk."""
        shadow, address = machine.disk.shadow, machine.address
        start = next((write for write in reversed(writes) if isinstance(write, records.LogStart)), shadow.start)
        if start.index < shadow.start.index:
            raise Violation(
                "log", f"{address}: the log begins at {start.index}, and began at {shadow.start.index} before"
            )
        written: dict[int, int] = {}
        for write in writes:
            if isinstance(write, int):
                if write > start.index and write in shadow.log and self.commits.get(write) == shadow.log[write][0]:
                    raise Violation("log", f"{address} deletes entry {write}, which is committed")
            elif isinstance(write, Row):
                index = write.number
                written[index] = write.term
                before = written.get(index - 1)
                if before is None:
                    before = shadow.log[index - 1][0] if index - 1 in shadow.log else start.term
                self._matches(address, index, write.term, zlib.crc32(write.command), before)

    def _matches(self, address: str, index: int, term: int, crc: int, before: int) -> None:
        known = self._entries.setdefault((index, term), (crc, before))
        if known != (crc, before):
            raise Violation(
                "log matching",
                f"entry {index} of term {term} on {address} has checksum {crc} and follows term {before}; elsewhere "
                f"it is {known[0]} and follows {known[1]}",
            )

    # -- acknowledged -------------------------------------------------------------------------------------------------

    def acknowledges(self, machine: Machine, leader: str, reply: AppendReply) -> None:
        """What is acknowledged is on disk, and is the leader's own, which the leader of that term has in memory."""
        shadow, index = machine.disk.shadow, reply.match_index
        if index > shadow.last_index():
            raise Violation(
                "durability", f"{machine.address} acknowledges {index}; on disk up to {shadow.last_index()}"
            )
        node = self._cluster.machines[leader].node
        if node is None or node.engine.term != reply.term or not node.engine.is_leader:
            return
        expected = node.engine.log.term_at(index)
        if expected is not None and not shadow.holds(index, expected):
            raise Violation(
                "log matching",
                f"{machine.address} acknowledges entry {index} to {leader}, whose entry has term {expected}; on its "
                f"disk: {shadow.log.get(index)}",
            )

    def acknowledges_snapshot(self, machine: Machine, reply: SnapshotReply) -> None:
        """A snapshot that is acknowledged is on disk."""
        last = machine.disk.shadow.last_index()
        if reply.last_index > last:
            raise Violation(
                "durability",
                f"{machine.address} acknowledges a snapshot of {reply.last_index}; on disk up to {last}",
            )

    def knows_its_followers(self, machine: Machine, matches: dict[str, int]) -> None:
        """What a leader counts as stored elsewhere is there, and is what it has itself. `matches` was so before."""
        assert machine.node is not None
        engine = machine.node.engine
        for address in engine.members.all - {machine.address}:
            index = engine.peers[address].match_index
            if index != matches.get(address, 0):
                matches[address] = index
                term = engine.log.term_at(index)
                shadow = self._members.shadow(engine.members, address)
                if index and term is not None and (shadow is None or not shadow.holds(index, term)):
                    raise Violation(
                        "match index",
                        f"{machine.address} leads term {engine.term} and counts entry {index} of term {term} as stored "
                        f"on {address} ({self._members.identity(engine.members, address)}), which has "
                        f"{None if shadow is None else shadow.log.get(index)}",
                    )

    # -- committed ----------------------------------------------------------------------------------------------------

    def complete(self, machine: Machine, term: int) -> None:
        """Who leads a term holds everything committed before: by log matching the last of these stands for all."""
        assert machine.node is not None
        log = machine.node.engine.log
        # An entry of an earlier term may be committed in a later one, of which a leader that was paused need not know.
        index = self.highest_commit
        while index and self._committed_in[index] >= term:
            index -= 1
        if index and index > log.start.index and log.term_at(index) != self.commits[index]:
            raise Violation(
                "leader completeness",
                f"{machine.address} leads term {term} without the committed entry {index} of term "
                f"{self.commits[index]}: its log ends at {log.last_index}, term {log.last_term}",
            )

    def committed_on(self, machine: Machine, old: int, new: int) -> None:
        """A node takes more as committed."""
        assert machine.node is not None
        log = machine.node.engine.log
        for index in range(max(old, log.start.index - 1) + 1, new + 1):
            term = log.term_at(index)
            if term is None:
                raise Violation("commit", f"{machine.address} takes {index} as committed, and has no such entry")
            if index > log.start.index or term:
                self._commits(machine, index, term)
        self.highest_commit = max(self.highest_commit, new)
        if not self.commit_indices or new > self.commit_indices[-1]:
            self.commit_times.append(machine.time)
            self.commit_indices.append(new)

    def _commits(self, machine: Machine, index: int, term: int) -> None:
        assert machine.node is not None
        known = self.commits.get(index)
        if known == term:
            return
        if known is not None:
            raise Violation(
                "state machine safety",
                f"{machine.address} takes entry {index} of term {term} as committed, which was committed with {known}",
            )
        # The first to know is the leader, and it counts by the configuration that is in force there.
        engine = machine.node.engine
        self.commits[index] = term
        self._committed_in[index] = engine.term
        holders = self._members.holders(engine.members, index, term)
        if not engine.members.is_majority(holders):
            raise Violation(
                "commit",
                f"{machine.address} takes entry {index} of term {term} as committed, which only {holders} have on "
                f"disk, out of {sorted(engine.members.voters)}",
            )
        self._members.committed(index, term)

"""Invariants of membership (thesis, chapter 4), and the one true record of all configurations.

Identities count here, not addresses: a disk that was replaced is another member, and what was on the old one stays to
its credit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from replidict.machine import commands as cmd
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import AddMember, Change, RemoveMember
from replidict.raft.configuration import MemberSet
from replidict.storage.log import Log
from replidict.testing.simulator.disk import Disk, Shadow
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine


class MemberChecks:
    """All configurations that were ever in a log, and those that were committed."""

    def __init__(self) -> None:
        self._founders: dict[str, str] = {}  # address -> identity
        self._in_logs: dict[int, dict[int, MemberSet]] = {}  # index -> term -> what the entry says
        self._committed: list[MemberSet] = []  # oldest first
        self._terms: set[int] = set()  # those of which an entry is committed
        self._shadows: dict[str, Shadow] = {}  # by identity; also of disks that are lost

    def new_disk(self, disk: Disk) -> None:
        """A disk came into a machine."""
        self._shadows[disk.node_id] = disk.shadow

    def founded(self, founders: dict[str, str]) -> None:
        """The cluster begins, with these addresses and identities."""
        self._founders = founders
        self._committed = [MemberSet(0, frozenset(founders))]

    @property
    def latest(self) -> MemberSet:
        """The last committed configuration."""
        return self._committed[-1]

    @property
    def changes(self) -> int:
        """How many were committed."""
        return len(self._committed) - 1

    def identity(self, members: MemberSet, address: str) -> str:
        """Who stands for an address in a configuration. One that names nobody means the founder."""
        return members.node_ids.get(address) or self._founders.get(address, "")

    def is_member(self, machine: Machine) -> bool:
        """Whether this machine, with this disk, is in the last committed configuration."""
        latest = self.latest
        return machine.address in latest.all and self.identity(latest, machine.address) == machine.disk.node_id

    def holders(self, members: MemberSet, index: int, term: int) -> list[str]:
        """The voters on whose disks an entry is, or was when the disk was lost."""
        return [
            address
            for address in sorted(members.voters)
            if (shadow := self._shadows.get(self.identity(members, address))) is not None and shadow.holds(index, term)
        ]

    def shadow(self, members: MemberSet, address: str) -> Shadow | None:
        """What is on the disk that a configuration means by an address."""
        return self._shadows.get(self.identity(members, address))

    # -- what happens -------------------------------------------------------------------------------------------------

    def appended(self, machine: Machine, log: Log, entries: Sequence[Entry]) -> None:
        """Entries are about to join a log in memory: a leader's own, or those of another one."""
        before: MemberSet | None = None
        for entry in entries:
            if not cmd.is_configuration(entry.command):
                continue
            command = cmd.decode(entry.command)
            if not isinstance(command, cmd.Configuration):
                continue
            members = MemberSet.of(entry.index, command)
            by_term = self._in_logs.setdefault(entry.index, {})
            if entry.term not in by_term:
                by_term[entry.term] = members
                self._is_sound(machine, before or self.by_log(log, entry.index), members, entry.term)
            before = members

    def _is_sound(self, machine: Machine, before: MemberSet, members: MemberSet, term: int) -> None:
        """A leader makes a change (4.1, 4.2)."""
        who = f"{machine.address} changes the members from {before} to {members} in term {term}"
        if before not in self._committed:
            raise Violation("one change at a time", f"{who}, and the former are not committed")
        if term not in self._terms:
            raise Violation("own term first", f"{who}, before an entry of that term is committed")
        if len(before.voters ^ members.voters) > 1 or not members.voters:
            raise Violation("one voter at a time", who)
        if not members.voters - before.voters <= before.learners:
            raise Violation("learners first", who)
        if machine.address not in members.voters:
            raise Violation("hand over first", f"{who}: it would not be a voter itself")
        for address in before.all & members.all:
            if before.node_ids.get(address) not in (None, members.node_ids.get(address)):
                raise Violation("identity", f"{who}: {address} would be another node")

    def committed(self, index: int, term: int) -> None:
        """An entry is committed."""
        self._terms.add(term)
        members = self._in_logs.get(index, {}).get(term)
        if members is not None:
            self._committed.append(members)

    def by_log(self, log: Log, below: int = 1 << 62) -> MemberSet:
        """The configuration that a log says is in force: its last one, or what was committed where it begins."""
        start = log.start.index
        for index in sorted(self._in_logs, reverse=True):
            if index <= start:
                break
            if index < below and index <= log.last_index:
                members = self._in_logs[index].get(log.term_at(index) or 0)
                if members is not None:
                    return members
        return self._committed[bisect_right(self._committed, start, key=lambda members: members.index) - 1]

    def in_force(self, machine: Machine) -> None:
        """A node goes by its log's last configuration, or by one that is committed and later, or at the same place: the
        entry there is not committed then, and will be cut off."""
        assert machine.node is not None
        engine = machine.node.engine
        members, expected = engine.members, self.by_log(engine.log)
        if members != expected and (members.index < expected.index or members not in self._committed):
            raise Violation(
                "configuration", f"{machine.address} goes by {members}; its log, or what is committed, says {expected}"
            )

    def left(self, machine: Machine) -> None:
        """A node stopped because it believes to be no member any more."""
        if self.is_member(machine):
            raise Violation("removed", f"{machine.address} stopped, and is a member: {self.latest}")

    def done(self, change: Change) -> None:
        """Somebody was told that a change is made."""
        if isinstance(change, AddMember):
            made = any(
                change.address in members.all and members.node_ids.get(change.address) == change.node_id
                for members in self._committed
            )
        else:
            made = not isinstance(change, RemoveMember) or any(
                change.address not in members.all for members in self._committed
            )
        if not made:
            raise Violation("changes", f"{change} is called done, and no committed configuration says so")

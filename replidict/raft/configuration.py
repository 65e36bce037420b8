"""The configurations in the log: who the members are, and which of them vote (thesis, chapter 4).

Rules kept here:

1. A configuration is in force from the moment its entry is in the log, committed or not (4.1), until that entry is
   truncated.
2. Until a change is committed, a removed member is still listened to: it may be the leader that reverts it (4.1).
3. The configurations above the applied index are kept, so that one can be reverted; of those below, only the last.
4. A configuration that another member knows to be committed is adopted before its entry arrives here: a node that was
   away, or has just joined, must not look for the leader among former members. It is never reverted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from replidict.machine import commands as cmd
from replidict.machine.commands import Configuration
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import MembersAre
from replidict.storage import records


@dataclass(frozen=True)
class MemberSet:
    """The configuration of the entry at `index`: addresses, and the identities known (see `commands`)."""

    index: int
    voters: frozenset[str]
    learners: frozenset[str] = frozenset()
    readers: frozenset[str] = frozenset()
    node_ids: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, index: int, said: Configuration | MembersAre | records.Members) -> Self:
        """As a log entry, a message or the disk says it."""
        voters, learners, readers = frozenset(said.voters), frozenset(said.learners), frozenset(said.readers)
        return cls(index, voters, learners, readers, dict(said.node_ids))

    @cached_property
    def promotable(self) -> frozenset[str]:
        """The learners that become voters once they are level."""
        return self.learners - self.readers

    @property
    def all(self) -> frozenset[str]:
        """All members: everybody who gets the log."""
        return self.voters | self.learners

    def is_majority(self, addresses: Iterable[str]) -> bool:
        """Whether these are more than half of the voters."""
        return len(self.voters.intersection(addresses)) * 2 > len(self.voters)

    def configuration(self) -> Configuration:
        """As a log entry."""
        return Configuration(sorted(self.voters), sorted(self.learners), dict(self.node_ids), sorted(self.readers))

    def stored(self) -> records.Members:
        """As the disk keeps it."""
        said = self.configuration()
        return records.Members(self.index, said.voters, said.learners, said.node_ids, said.readers)


class Configurations:
    """The configurations in the log, oldest first; the last one is in force."""

    def __init__(self, members: MemberSet) -> None:
        self._known = [members]

    @classmethod
    def of_log(cls, applied: MemberSet, entries: Iterable[Entry]) -> Self:
        """Of a node that starts: what was applied, and the log's entries behind that."""
        configurations = cls(applied)
        configurations.note(entries)
        return configurations

    @property
    def current(self) -> MemberSet:
        """The configuration in force."""
        return self._known[-1]

    @property
    def heard(self) -> frozenset[str]:
        """Rule 2: everybody in the last committed configuration and in those after it."""
        return frozenset().union(*(members.all for members in self._known))

    def identity(self, address: str) -> str | None:
        """The node id that a configuration gives for this address, if one does."""
        latest = next((members for members in reversed(self._known) if address in members.all), self.current)
        return latest.node_ids.get(address)

    def committed(self, commit_index: int) -> MemberSet:
        """The last configuration known to be committed."""
        return next((members for members in reversed(self._known) if members.index <= commit_index), self._known[0])

    def note(self, entries: Iterable[Entry]) -> bool:
        """Entries joined the log. Returns whether that changed the configuration."""
        found = False
        for entry in entries:
            if cmd.is_configuration(entry.command) and entry.index > self.current.index:
                configuration = cmd.decode_at(entry.index, entry.command)
                if isinstance(configuration, Configuration):
                    self._known.append(MemberSet.of(entry.index, configuration))
                    found = True
        return found

    def cut(self, index: int) -> bool:
        """The entry at `index` and all after it left the log. Returns whether that changed the configuration."""
        before = len(self._known)
        self._known = [self._known[0], *(m for m in self._known[1:] if m.index < index)]
        return len(self._known) != before

    def adopt(self, committed: MemberSet, commit_index: int) -> bool:
        """Rule 4. Returns whether it was news."""
        if committed.index <= self.committed(commit_index).index:
            return False
        self._known = [committed, *(members for members in self._known if members.index > committed.index)]
        return True

    def holds(self, members: MemberSet) -> bool:
        """Whether this is one of those known."""
        return members in self._known

    def applied(self, index: int) -> MemberSet | None:
        """Everything up to `index` is applied: what is superseded is forgotten. Gives the one now oldest, if new."""
        superseded = 0
        while superseded + 1 < len(self._known) and self._known[superseded + 1].index <= index:
            superseded += 1
        del self._known[:superseded]
        return self._known[0] if superseded else None

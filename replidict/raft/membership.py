"""Who belongs to the cluster, as the log says (thesis chapter 4).

Rules kept here:

1. A configuration is in force from the moment its entry is in the log, committed or not (4.1), and no longer
   once that entry is cut off.
2. The configurations above the applied index are kept, so that one can be taken back; below it the last one counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from replidict.commands import Configuration


@dataclass(frozen=True)
class Members:
    """The configuration that the entry at `index` brought; addresses."""

    index: int
    voters: frozenset[str]
    learners: frozenset[str]

    def is_majority(self, addresses: set[str]) -> bool:
        """Whether these are more than half of the voters."""
        return len(self.voters & addresses) * 2 > len(self.voters)


class Membership:
    """The configurations in the log, oldest first; the last one is in force."""

    def __init__(self, index: int, voters: list[str], learners: list[str]) -> None:
        self._known = [Members(index, frozenset(voters), frozenset(learners))]

    @property
    def current(self) -> Members:
        """The configuration in force."""
        return self._known[-1]

    def appended(self, index: int, configuration: Configuration) -> None:
        """An entry with a configuration joined the log."""
        self._known.append(Members(index, frozenset(configuration.voters), frozenset(configuration.learners)))

    def cut(self, index: int) -> bool:
        """The entry at `index` and all after it left the log. Returns whether that changed the configuration."""
        before = len(self._known)
        self._known = [self._known[0], *(m for m in self._known[1:] if m.index < index)]
        return len(self._known) != before

    def applied(self, index: int) -> Members | None:
        """Everything up to `index` is applied: what is superseded is forgotten. Gives the one now oldest, if new."""
        superseded = 0
        while superseded + 1 < len(self._known) and self._known[superseded + 1].index <= index:
            superseded += 1
        del self._known[:superseded]
        return self._known[0] if superseded else None

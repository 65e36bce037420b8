"""Invariants of the feature level: nobody is given what its release can't read, and nothing comes before its level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replidict.machine import commands as cmd
from replidict.storage import file_format
from replidict.testing.simulator.disk import Row, Write
from replidict.testing.simulator.violation import Violation

if TYPE_CHECKING:
    from replidict.testing.simulator.machine import Machine
    from tests.simulator.cluster import Cluster


def needed(command: bytes) -> int:
    """The feature level that a release must know to read an entry."""
    match cmd.decode(command):
        case cmd.RaiseLevel(level=level):
            return level
        case cmd.Batch(operations=operations):
            return max((cmd.LEVEL_OF.get(type(operation), 1) for operation in operations), default=1)
        case other:
            return cmd.LEVEL_OF.get(type(other), 1)


class LevelChecks:
    """Which releases the machines have, and what they are given."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._best: dict[str, int] = {}  # by identity: the highest level that a node with this disk ever knew
        self.raised = 0  # by how many entries

    def started(self, machine: Machine) -> None:
        """A machine runs a release."""
        known = machine.release.level
        self._best[machine.disk.node_id] = max(known, self._best.get(machine.disk.node_id, 1))
        self.readable(machine)

    def readable(self, machine: Machine) -> None:
        """What is on a machine's disk is for its release."""
        if min(machine.disk.format, file_format.SHARED) > machine.release.level:
            raise Violation(
                "levels",
                f"{machine.address} knows level {machine.release.level}, and its file has format {machine.disk.format}",
            )

    def written(self, machine: Machine, writes: list[Write]) -> None:
        """A transaction is about to be durable on a node's disk."""
        for write in writes:
            if isinstance(write, Row) and (level := needed(write.command)) > machine.release.level:
                raise Violation(
                    "levels",
                    f"{machine.address} knows level {machine.release.level}, and got entry {write.number} of {level}",
                )

    def applied(self, machine: Machine, index: int, command: bytes) -> None:
        """A node is about to apply an entry."""
        assert machine.node is not None
        level = machine.node.machine.level
        if cmd.raises_level(command):
            if machine.disk.format < needed(command):
                raise Violation("levels", f"{machine.address} raises the level, and its file does not say so")
        elif needed(command) > level:
            raise Violation("levels", f"entry {index} needs level {needed(command)}, and the cluster has {level}")

    def proposed(self, machine: Machine, command: bytes) -> None:
        """A leader adds an entry of its own."""
        if not cmd.raises_level(command):
            return
        self.raised += 1
        assert machine.node is not None
        checks, members = self._cluster.checker.members, machine.node.engine.members
        for address in sorted(members.all):
            if self._best.get(checks.identity(members, address), 1) < needed(command):
                raise Violation("levels", f"{machine.address} raises the level, and {address} never knew it")

    def settled(self, machines: list[Machine]) -> str | None:
        """What has yet to become of the level, now that all these members run; None: nothing."""
        known = min(machine.release.level for machine in machines)
        behind = [m.address for m in machines if m.node is not None and m.node.machine.level < known]
        return f"the level is below {known} on {behind}" if behind else None

"""Lets an attached process ask its host for changes of the members and for backups.

Rules kept here:

1. What was asked for before a node was there waits for one, within its time. What can be asked again is.
2. A change whose answer was lost with the connection is `OutcomeUnknown`, as when a node stops.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from replidict import errors
from replidict.errors import NotCommitted, OutcomeUnknown, ReplidictError, raise_anew, waits_for_itself
from replidict.latch import Latch
from replidict.monotonic_clock import clock
from replidict.node.attached_node import AttachedNode
from replidict.node.blocking_calls import rounded
from replidict.node.online_backup import Backup
from replidict.own_threads import in_node_thread
from replidict.protocol import attach_messages as msg
from replidict.protocol.peer_messages import AddMember, RemoveMember, TransferTo
from replidict.status import Member

PAUSE = 0.02
GRACE = 2.0
"""Seconds that an answer may take beyond the time that the work has."""


class AttachedAdmin:
    """The administration calls of one attached process. For any thread but the node's own."""

    def __init__(self, node: AttachedNode, patience: float) -> None:
        """`patience` is how many seconds a question takes that has no time of its own."""
        self._node, self._patience = node, patience

    def change(self, change: AddMember | RemoveMember, seconds: float) -> None:
        """Have a change of the members made, and return when it is committed. Raises what its absence means."""
        self._change(change, seconds)

    def hand_over(self, to: str | None, seconds: float) -> None:
        """Have another voter lead. Raises what its absence means."""
        self._change(TransferTo(to), seconds)

    def _change(self, change: AddMember | RemoveMember | TransferTo, seconds: float) -> None:
        said = self._ask(lambda number: msg.ChangeMembers(number, change, seconds), seconds)
        if said is None:
            raise OutcomeUnknown(
                "the process that runs the node has ended before it said what became of this change of the members, so "
                "it may or may not be made: members() tells"
            )

    def members(self) -> tuple[Member, ...]:
        """Everybody in the cluster."""
        deadline = clock() + self._patience
        while True:
            said = self._ask(msg.GetMembers, max(deadline - clock(), 0.0))
            if said is not None:
                return tuple(said.members)

    def make(self, path: str | os.PathLike[str]) -> Backup:
        """Have a backup written, by the process that runs the node."""
        target = os.fspath(Path(path).absolute())
        said = self._ask(lambda number: msg.MakeBackup(number, target), self._patience, work=None)
        if said is None or said.backup is None:
            raise ReplidictError(f"{target}: the process that runs the node has ended: no backup was made. Try again")
        made = said.backup
        return Backup(Path(made.path), made.revision, made.index, made.keys, made.size)

    def _ask(self, make: Callable[[int], msg.Request], seconds: float, work: float | None = GRACE) -> msg.Said | None:
        """Return the host's answer; None if the host has ended meanwhile. Besides the time to find the host, the work
        may take `work` seconds; None: as long as it takes."""
        node, deadline = self._node, clock() + seconds
        if node.failure is not None:
            raise_anew(node.failure)
        if in_node_thread():
            raise waits_for_itself(NotCommitted, "nothing was asked and nothing is changed")
        answers: list[msg.Said | None] = []
        heard = Latch()

        def hear(answer: msg.Said | None) -> None:
            answers.append(answer)
            heard.set()

        while not node.call_and_wait(lambda: node.engine.request(make, hear)):
            if clock() >= deadline:
                raise NotCommitted(
                    f"no process of this machine runs the node, and none began to within {rounded(seconds)} s: nothing "
                    "was asked and nothing is changed"
                )
            time.sleep(PAUSE)
        if not heard.wait(None if work is None else max(deadline - clock(), 0.0) + work):
            return None
        said = answers[0]
        if said is not None and said.error:
            kinds: dict[str, type[Exception]] = {"ValueError": ValueError, "FileExistsError": FileExistsError}
            raise kinds.get(said.error, getattr(errors, said.error, ReplidictError))(said.text)
        return said

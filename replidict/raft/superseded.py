"""How a node behaves when it is told that its cluster was recovered elsewhere (`storage.recovery`,
`server.supersede_notifier`).

Rules kept here:

1. A node with a leader belongs to a cluster that lives, so the recovery was the mistake. The node goes on, and both
   sides log it.
2. A node that had no leader for `PATIENCE` election timeouts, and was told of the recovery all the while, stops for
   good, like a removed one. First it leaves a note in its directory, which keeps it from being started again.
3. Meanwhile, a node that has had no leader since it started neither stands for election nor votes: otherwise a majority
   that comes back together would elect a leader before it stops. A node that has had a leader takes part, because its
   cluster may be about to elect the next one.
4. A notice that is older than `WORD_COUNTS` seconds does not count any more.
5. A founder is believed if it was a member known here, with the identity known here; and also if it knew later members
   than this node does, since this node may have been away when the founder was added.
"""

from __future__ import annotations

import logging
from pathlib import Path

from replidict.errors import RemovedError, ReplidictError
from replidict.log_throttle import LogThrottle
from replidict.protocol.client_messages import Supersede
from replidict.raft.elections import Elections
from replidict.raft.state import RaftState
from replidict.storage.directory import supersede

PATIENCE = 10
"""Election timeouts: ample for the leader of a cluster that lives to find a node that has just started."""

WORD_COUNTS = 5.0  # seconds


class Superseded:
    """The part of the engine that is told about a recovery."""

    def __init__(self, state: RaftState, elections: Elections, log_throttle: LogThrottle, directory: Path) -> None:
        """`directory` is the node's own."""
        self._state, self._elections, self._log_throttle, self._directory = state, elections, log_throttle, directory
        self._told_at = self._since = float("-inf")

    def hear(self, said: Supersede) -> None:
        """An authenticated founder of a recovered cluster says so. Raises `ReplidictError` if it is not believed, and
        `RemovedError` (or `StorageError` if no note could be written) if this node must stop."""
        state = self._state
        now, led_at, timeout = state.clock(), self._elections.led_at, state.options.election_timeout
        self._see_to_the_founder(said)
        if now - self._told_at >= WORD_COUNTS or (led_at is not None and led_at >= self._since):
            self._since = now
        self._told_at = now
        self._elections.abstain(until=now + WORD_COUNTS)  # rule 3
        if led_at is not None and now - led_at < timeout:
            text = (
                f"the node at {said.founder} was recovered on {said.at} from the cluster {said.cluster_id}, and "
                f"founded {said.successor}; but the old cluster lives: {state.address} has a leader there. There are "
                f"two clusters now, and neither gets what is written to the other. To go on with the old one, stop "
                f"{said.founder}, remove {said.address} from it, and let that join it with an empty directory; what "
                "was written to the new one is in the old directory alone. To go on with the new one, stop all nodes "
                "of the old one"
            )
            self._log_throttle.log("recoveries", now, text, logging.ERROR)
            raise ReplidictError(text)
        if now - self._since >= PATIENCE * timeout:
            note = supersede(self._directory, said.cluster_id, said.successor, said.founder, said.at)
            raise RemovedError(
                f"{state.address} was left behind: it has stopped, and must not be opened any more. {note}"
            )
        if led_at is None:
            self._elections.step_down(state.term)  # answers that are on their way count no more

    def _see_to_the_founder(self, said: Supersede) -> None:
        """Rule 5."""
        state = self._state
        known = state.members.node_ids.get(said.address) or state.store.pins.get(said.address)
        is_member = said.address in state.members.all and known in (None, said.node_id)
        of_this = said.cluster_id == state.store.identity.cluster_id
        if not of_this or not (is_member or said.index > state.members.index):
            raise ReplidictError(
                f"{said.founder} says that it was the node {said.node_id} at {said.address} of the cluster "
                f"{said.cluster_id}, when that lost its quorum: {state.address} knows no such member, and goes on"
            )

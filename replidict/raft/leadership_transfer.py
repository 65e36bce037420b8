"""Transfers leadership to another voter (thesis 3.10).

Rules kept here:

1. During a transfer the leader takes no new commands; those that arrive wait, and are taken if it fails.
2. The follower is told to start an election (`TimeoutNow`) once its log matches the leader's.
3. From then on, and for the rest of its term, the leader reads without its lease: the election that it asked for need
   not wait for the lease to end (thesis 6.4.1).
4. A transfer that has not succeeded after an election timeout is given up, and the leader goes on.
"""

from __future__ import annotations

from replidict.protocol.peer_messages import TimeoutNow
from replidict.raft.outbox import Outbox
from replidict.raft.read_index import ReadIndex
from replidict.raft.replicated_log import ReplicatedLog
from replidict.raft.state import RaftState


class LeadershipTransfer:
    """The part of the engine that transfers leadership."""

    def __init__(self, state: RaftState, outbox: Outbox, log: ReplicatedLog, read_index: ReadIndex) -> None:
        self._state, self._outbox, self._log, self._read_index = state, outbox, log, read_index
        self._target: str | None = None
        self._deadline = 0.0
        self._asked = False
        self._held: list[bytes] = []

    def begin(self, target: str | None = None) -> bool:
        """Start a transfer to a voter, by default to the one whose log is furthest. False: no voter can take over."""
        state = self._state
        able = [p for p in state.peers.values() if p.connected and p.address in state.members.voters]
        if target is not None:
            able = [p for p in able if p.address == target]
        if not state.is_leader or not able:
            return False
        self._target = max(able, key=lambda peer: (peer.match_index, peer.address)).address
        self._deadline = state.clock() + state.options.election_timeout
        self._asked = False
        return True

    @property
    def active(self) -> bool:
        """Whether a transfer is under way."""
        return self._target is not None

    def hold(self, command: bytes) -> None:
        """Rule 1."""
        self._held.append(command)

    def tick(self) -> None:
        """Go on with what is under way."""
        state = self._state
        if self._target is None:
            return
        peer = state.peers.get(self._target)
        if not state.is_leader or peer is None or state.clock() >= self._deadline:
            self._target = None
            held, self._held = self._held, []
            if state.is_leader:
                for command in held:
                    self._log.append(command)
        elif not self._asked and peer.match_index == state.log.last_index:
            self._read_index.end_lease()  # before anybody can act on it
            self._asked = self._outbox.send(peer, TimeoutNow(state.term))

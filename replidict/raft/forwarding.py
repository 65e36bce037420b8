"""How commands of this node, and of the processes attached to it, reach the leader.

Rules kept here:

1. Only a leader appends commands. Any other node refuses them, and says who leads.
2. A command may be lost with the leader, with the connection to it, or by a refusal. Each of these makes a new route,
   on which `proposals` sends again what is not answered.
"""

from __future__ import annotations

from collections.abc import Callable

from replidict.log_throttle import LogThrottle
from replidict.machine import commands as cmd
from replidict.protocol.peer_messages import Propose, ProposeRefused
from replidict.raft.elections import Elections
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.role import LEADER
from replidict.raft.state import RaftState


class Forwarding:
    """The part of the engine that forwards commands."""

    def __init__(
        self,
        state: RaftState,
        outbox: Outbox,
        elections: Elections,
        log_throttle: LogThrottle,
        propose: Callable[[bytes], None],
    ) -> None:
        """`propose` takes a command on the leader."""
        self._state, self._outbox, self._elections = state, outbox, elections
        self._log_throttle, self._propose = log_throttle, propose
        self._refused = 0

    def route(self) -> object:
        """How commands go to the leader now, None if they can't; another one means that those under way may be lost."""
        state = self._state
        if state.role is LEADER:
            return state.term
        peer = state.leading_peer
        if peer is None or not peer.connected:
            return None
        return state.term, peer.address, peer.connections, self._refused

    def send(self, command: bytes) -> bool:
        """Send the leader a command. Returns False if it was surely not sent to a leader."""
        state = self._state
        if state.role is LEADER:
            self._propose(command)
            return True
        leader = state.leading_peer
        return leader is not None and self._outbox.send(leader, Propose(state.term, command))

    def on_propose(self, peer: Peer, message: Propose) -> None:
        """A follower passes on a command."""
        state = self._state
        if not cmd.may_be_proposed(message.command):
            why = f"ignored a proposal of {peer.address} that is neither a write nor a session of this release"
            self._log_throttle.log(f"proposals of {peer.address}", state.clock(), why)
        elif state.is_leader:
            self._propose(message.command)
            peer.wants_commit = max(peer.wants_commit, state.log.last_index)
        else:
            self._outbox.send(peer, ProposeRefused(state.term, state.leader))

    def on_refused(self, peer: Peer, message: ProposeRefused) -> None:
        """The node that was asked does not lead."""
        state = self._state
        self._elections.see_term(message.term)
        if message.term == state.term and peer.address == state.leader:
            # It has stepped down: whoever leads next will say so. Until then there is nobody to send to.
            self._elections.step_down(state.term)
        self._refused += 1

"""The evidence that the process which led has ended, on which a follower need not wait for the election timeout.

Rules kept here:

1. Evidence is twofold: the leader closed its connection with this node, and a call made after that was refused, because
   nobody listens at its address any more. Silence is none, whatever causes it: a pause, a slow disk, a slow network, a
   machine without power.
2. Each node believes its own eyes alone. No message tells of evidence, so who has not seen the same grants no vote
   before the time (`elections`, rule 5).
3. There is none about a leader that may read under a lease (thesis 6.4.1), as it says of itself when it connects; an
   older release, which says nothing, may. Its voters have promised their silence for a time, and not for its life.
4. It is about the leader of the present term. Whoever leads later, or is connected again in between, is alive.
"""

from __future__ import annotations

from replidict.raft.elections import Elections
from replidict.raft.outbox import Network
from replidict.raft.progress import Peer
from replidict.raft.state import RaftState


class LeaderDeath:
    """The part of the engine that is told how connections end, and tells `elections`."""

    def __init__(self, state: RaftState, elections: Elections, network: Network) -> None:
        self._state, self._elections, self._network = state, elections, network
        self._closed: tuple[str, int] | None = None  # the leader that has closed its connection, and its term

    def on_closed(self, peer: Peer, may_hold_lease: bool) -> None:
        """A peer closed its connection with this node. It said of itself whether it may read under a lease."""
        state = self._state
        if peer.address == state.leader and not may_hold_lease:  # rule 3
            self._closed = (peer.address, state.term)
            self._network.probe(peer.node)

    def on_refused(self, peer: Peer) -> None:
        """A call at a peer's address was refused, which was made after it had closed its connection."""
        state = self._state
        if self._closed == (state.leader, state.term) and peer.address == state.leader and not peer.connected:
            self._elections.leader_died()

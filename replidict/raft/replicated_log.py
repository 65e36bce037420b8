"""Appends entries to this node's log and truncates it, and applies the configurations among them.

Rules kept here:

1. A configuration is in force as soon as it is in the log, until it is truncated (thesis 4.1). The peers, and the
   connections to them, follow at once.
2. Committed entries are never truncated: two logs that differ there show that a node has lost data.
"""

from __future__ import annotations

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.protocol.log_entry import Entry
from replidict.raft.outbox import Network
from replidict.raft.progress import Peer
from replidict.raft.state import RaftState


class ReplicatedLog:
    """Changes the log, and the configurations with it."""

    def __init__(self, state: RaftState, network: Network) -> None:
        self._state, self._network = state, network

    def append(self, command: bytes) -> None:
        """Leader: add an entry of the current term."""
        state = self._state
        assert state.is_leader
        if cmd.is_timed(command):
            state.before_timed()
        self.extend([Entry(state.log.last_index + 1, state.term, command)])

    def extend(self, entries: list[Entry]) -> None:
        """Add entries at the end."""
        self._state.log.append(entries)
        if self._state.configurations.note(entries):
            self.follow_configuration()

    def cut(self, index: int) -> None:
        """Take entries off the log's end that conflict with the leader's (figure 2, AppendEntries rule 3). Raises
        `StorageError`: rule 2."""
        state = self._state
        if index <= state.commit_index:
            raise StorageError(
                f"{state.store.name}: the leader's log differs from entry {index} on, which is committed here up to "
                f"{state.commit_index}. One of the two has lost or altered its data; this node stops. Compare the "
                "nodes' files, and rebuild the wrong one from an empty directory."
            )
        state.log.cut(index)
        if state.configurations.cut(index):
            self.follow_configuration()

    def follow_configuration(self) -> None:
        """Make the members of the configurations the peers, and connect to them."""
        state = self._state
        wanted = state.configurations.heard - {state.address}
        for address, peer in sorted(state.peers.items()):
            another = peer.node_id is not None and state.configurations.identity(address) not in (None, peer.node_id)
            if another or address not in wanted:
                del state.peers[address]
                peer.connected = False
                self._network.dropNode(peer.node)
        for address in sorted(wanted - state.peers.keys()):
            peer = state.peers[address] = Peer(address)
            peer.reset(state.log.last_index + 1, state.clock())
            self._network.addNode(peer.node)

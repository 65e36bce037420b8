"""How a follower takes entries from the leader (Raft 5.3, figure 2, AppendEntries).

Rules kept here:

1. A follower deletes entries only from the first one that conflicts with the leader's; what matches stays (figure 2).
2. It acknowledges only what the very message at hand verified, and takes as committed only what messages of the
   present leader verified.
"""

from __future__ import annotations

from replidict.protocol.peer_messages import AppendEntries, AppendReply, CommitTo
from replidict.raft.bounded_staleness import Freshness
from replidict.raft.divergence import Divergence
from replidict.raft.elections import Elections
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.replicated_log import ReplicatedLog
from replidict.raft.state import RaftState


class Follower:
    """The part of the engine that takes entries, and hears what is committed."""

    def __init__(
        self,
        state: RaftState,
        outbox: Outbox,
        log: ReplicatedLog,
        elections: Elections,
        freshness: Freshness,
        divergence: Divergence,
    ) -> None:
        self._state, self._outbox, self._log = state, outbox, log
        self._elections, self._freshness, self._divergence = elections, freshness, divergence
        self._verified = (0, 0)  # (term, index): up to there this log agrees with the log of that term's leader

    def on_append_entries(self, peer: Peer, message: AppendEntries) -> None:
        """Figure 2, AppendEntries."""
        state = self._state
        if message.term < state.term:
            self._outbox.hold(peer, AppendReply(state.term, False, 0, message.round))
            return
        self._elections.follow(peer, message.term)
        self._freshness.heard_leader(message)
        state.hear_time(message.clock)
        self._divergence.hear_leader(message.digest, message.agreed)
        digest = self._divergence.take_answer()
        match_index = self._match(message)
        if match_index is None:
            reply = AppendReply(state.term, False, self._hint(message), message.round, state.clock(), digest)
        else:
            self._verified = max(self._verified, (state.term, match_index))
            self._commit_to(message.commit_index)
            reply = AppendReply(state.term, True, match_index, message.round, state.clock(), digest)
        self._outbox.hold(peer, reply)

    def on_commit_to(self, peer: Peer, message: CommitTo) -> None:
        """Follower: more is committed (rule 2)."""
        state = self._state
        if message.term == state.term and peer.address == state.leader and not state.is_leader:
            self._commit_to(message.commit_index)

    def _commit_to(self, commit_index: int) -> None:
        state = self._state
        term, verified = self._verified
        if term == state.term:
            state.commit_index = max(state.commit_index, min(commit_index, verified))

    def _match(self, message: AppendEntries) -> int | None:
        """Figure 2, AppendEntries, rules 2 to 4. Returns the last index verified, None where the logs differ."""
        state = self._state
        log = state.log
        if message.prev_index >= log.start.index and log.term_at(message.prev_index) != message.prev_term:
            return None  # (what is below the log's start is committed, and so the same everywhere)
        for position, entry in enumerate(message.entries):
            if entry.index <= log.start.index:
                continue
            term = log.term_at(entry.index)
            if term == entry.term:
                continue
            if term is not None:
                self._log.cut(entry.index)
            self._log.extend(message.entries[position:])
            break
        return message.prev_index + len(message.entries)

    def _hint(self, message: AppendEntries) -> int:
        """The index from which on the leader may try next: before the whole conflicting term (5.3, last paragraphs)."""
        state = self._state
        log = state.log
        index: int = min(message.prev_index - 1, log.last_index)
        if message.prev_index <= log.last_index:
            conflicting = log.term_at(message.prev_index)
            while index > state.commit_index and log.term_at(index) == conflicting:
                index -= 1
        return max(index, min(state.commit_index, message.prev_index - 1))

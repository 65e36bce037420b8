"""How the leader sends its log to the followers and commits it (Raft 5.3, 5.4.2, figure 2).

Rules kept here (those of the followers are in `append_entries`):

1. An acknowledgement counts for the term it carries only; the leader never moves `next_index` back on success.
2. Only entries of the leader's own term are committed by counting (5.4.2), and the leader counts itself only up to
   what is on its own disk.
3. The leader sends before it commits its own log: followers write while it does. It sends each entry once, and again
   only after a connection was lost or a follower said that it lacks it.
4. What is under way to one follower is bounded: a slow one costs no memory and delays nobody else.
"""

from __future__ import annotations

from replidict.errors import StorageError
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import AppendEntries, AppendReply, CommitTo
from replidict.raft.divergence import Divergence
from replidict.raft.elections import Elections
from replidict.raft.install_snapshot import InstallSnapshot
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.quorum_rounds import QuorumRounds
from replidict.raft.role import LEADER
from replidict.raft.state import RaftState

MESSAGE_BYTES = 1024 * 1024
"""Entries go out in messages of about this size; one larger entry goes alone."""

COMMIT_DELAY = 0.005
"""Seconds after which a follower hears that its entries are committed, if nothing follows them and nobody waits."""

WINDOW_BYTES = 8 * 1024 * 1024
"""How much may be under way, unanswered, to one follower (one message more, at most)."""


class Replication:
    """The part of the engine that sends entries, and commits them."""

    def __init__(
        self,
        state: RaftState,
        outbox: Outbox,
        elections: Elections,
        snapshots: InstallSnapshot,
        divergence: Divergence,
    ) -> None:
        self._state, self._outbox, self._elections = state, outbox, elections
        self._snapshots, self._divergence = snapshots, divergence
        self.rounds = QuorumRounds(state)
        """Entries and heartbeats as questions whether this node still leads."""
        self.entries_resent = 0
        self._told = (float("-inf"), 0)  # when the cluster's clock was looked at last, and what it showed
        self.commit_due = float("inf")
        """When some follower is to hear of what is committed, on this node's clock."""

    def start_leading(self) -> None:
        """Figure 2, leaders: nothing is known yet of how far the followers are."""
        state = self._state
        now = state.clock()
        for peer in state.peers.values():
            peer.reset(state.log.last_index + 1, now)
        self.rounds.reset()
        self._divergence.reset()
        self._told = (float("-inf"), 0)

    def stop_leading(self) -> None:
        """Forget what only a leader knows."""
        self.rounds.reset()
        self._divergence.reset()

    def next_heartbeat(self) -> float:
        """When `send` has to show signs of life, if it sends nothing before."""
        state = self._state
        if not state.is_leader or not state.peers:
            return float("inf")
        return min([peer.sent_at for peer in state.peers.values()]) + state.options.heartbeat

    def send(self) -> None:
        """Leader: send each follower what it lacks, and show signs of life."""
        state = self._state
        if state.role is not LEADER:
            return
        now, last_index = state.clock(), state.log.last_index
        due = now - state.options.heartbeat
        for peer in state.peers.values():
            if peer.next_index <= last_index and peer.connected and self._send_entries(peer, now):
                continue
            if peer.sent_at <= due:
                self._send_heartbeat(peer, now)

    def send_commit_index(self) -> None:
        """Leader: tell followers what became committed; at once if something waits for it there.

        The others hear of it with the next entries, if they follow soon, or after `COMMIT_DELAY`: two messages for each
        write would cost the followers, and whoever shares their processors, as much again.
        """
        state = self._state
        self.commit_due = float("inf")
        if state.role is not LEADER:
            return
        now, committed = state.clock(), state.commit_index
        for peer in state.peers.values():
            index = committed if committed < peer.next_index else peer.next_index - 1
            if index <= peer.commit_sent or not peer.connected or peer.probing:
                peer.commit_due = float("inf")
                continue
            peer.commit_due = min(peer.commit_due, now + COMMIT_DELAY)
            if peer.wants_commit > peer.commit_sent or now >= peer.commit_due:
                peer.commit_due = now + COMMIT_DELAY
                if self._outbox.send(peer, CommitTo(state.term, index)):
                    peer.commit_sent = index
                    continue
            self.commit_due = min(self.commit_due, peer.commit_due)

    def _send_entries(self, peer: Peer, now: float) -> bool:
        state = self._state
        log = state.log
        sent = False
        while peer.next_index <= log.last_index and peer.in_flight_bytes < WINDOW_BYTES:
            if peer.snapshot_sending is not None or (peer.probing and peer.in_flight):
                break
            prev_term = log.term_at(peer.next_index - 1)
            if prev_term is None:
                self._snapshots.offer(peer)
                break
            entries = log.entries_from(peer.next_index, MESSAGE_BYTES)
            if not self._send(peer, peer.next_index - 1, prev_term, entries, now):
                break
            first, last = entries[0].index, entries[-1].index
            size = sum([len(entry.command) for entry in entries])
            peer.in_flight.append((last, size))
            peer.in_flight_bytes += size
            if first <= peer.highest_sent:
                self.entries_resent += min(peer.highest_sent, last) - first + 1
            peer.highest_sent = max(peer.highest_sent, last)
            peer.next_index = last + 1
            sent = True
        return sent

    def _send_heartbeat(self, peer: Peer, now: float) -> None:
        state = self._state
        prev_index = peer.next_index - 1
        prev_term = state.log.term_at(prev_index)
        if prev_term is None or peer.snapshot_sending is not None:
            prev_index = prev_term = 0  # verifies nothing, but keeps the follower from an election
        self._send(peer, prev_index, prev_term, [], now)
        peer.sent_at = now  # also if it could not be sent: no busy loop while a peer is away

    def _send(self, peer: Peer, prev_index: int, prev_term: int, entries: list[Entry], now: float) -> bool:
        state, rounds, divergence = self._state, self.rounds, self._divergence
        if now - rounds.began_at >= state.options.heartbeat / 4:
            rounds.begin(now)
        age = now - rounds.confirmed_at if state.committed_in_term else float("inf")
        if now != self._told[0]:
            self._told = now, state.tell_time()
        message = AppendEntries(
            state.term,
            prev_index,
            prev_term,
            state.commit_index,
            entries,
            rounds.number,
            peer.stamp,
            age,
            self._told[1],
            divergence.question(peer) if peer.digest is not divergence.latest else None,
            divergence.verdict(peer) if divergence.differing else None,
        )
        if not self._outbox.send(peer, message):
            return False
        peer.sent_at = now
        peer.commit_sent = min(state.commit_index, prev_index + len(entries))
        return True

    def on_append_reply(self, peer: Peer, message: AppendReply) -> None:
        """Leader: a follower acknowledges, or lacks what came before (rule 1)."""
        state = self._state
        if message.term != state.term:
            self._elections.see_term(message.term)
        if state.role is not LEADER or message.term != state.term:
            return  # rule 1
        peer.heard_at = state.clock()
        peer.stamp = message.stamp
        self.rounds.answer(peer, message.round)
        if message.digest is not None:
            self._divergence.hear_answer(peer, message.digest)
        if message.success:
            if message.match_index > state.log.last_index:
                raise StorageError(
                    f"{state.store.name}: {peer.address} acknowledges entry {message.match_index}, but this leader's "
                    f"log ends at {state.log.last_index}: one of the two has lost data; this node stops"
                )
            peer.acknowledged(message.match_index)
            peer.probing = False
            self._snapshots.heard(peer)
        else:
            # The peer lacks what came before: feel the way back, one message at a time.
            peer.probing = True
            peer.in_flight.clear()
            peer.in_flight_bytes = 0
            peer.next_index = max(peer.match_index + 1, min(peer.next_index, message.match_index + 1))

    def advance_commit_index(self) -> None:
        """Leader: commit what a majority has on disk (figure 2, leaders, last rule)."""
        state = self._state
        if state.role is not LEADER:
            return
        log = state.log
        if state.commit_index == log.last_index:
            return
        stored = [
            log.durable_index if address == state.address else state.peers[address].match_index
            for address in state.members.voters
        ]
        stored.sort(reverse=True)
        index = stored[len(stored) // 2]
        if index > state.commit_index and log.term_at(index) == state.term:
            state.commit_index = index

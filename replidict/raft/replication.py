"""How the log reaches the followers and becomes committed (Raft 5.3, 5.4.2, figure 2).

Rules kept here:

1. A follower deletes entries only from the first one that conflicts with the leader's; what matches stays (figure 2).
2. A follower acknowledges only what the very message at hand verified, and takes as committed only what messages of
   the present leader verified.
3. An acknowledgement counts for the term it carries only; the leader never moves `next_index` back on success.
4. Only entries of the leader's own term are committed by counting (5.4.2), and the leader counts itself only up to
   what is on its own disk.
5. The leader sends before it commits its own log: followers write while it does. It sends each entry once, and again
   only after a connection was lost or a follower said that it lacks it.
6. What is under way to one follower is bounded: a slow one costs no memory and delays nobody else.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from replidict.errors import StorageError
from replidict.log_writer import Logger
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import AppendEntries, AppendReply, CommitTo

if TYPE_CHECKING:
    from replidict.raft.engine import Engine
    from replidict.raft.progress import Peer

logger = Logger(__name__)

MESSAGE_BYTES = 1024 * 1024
"""Entries go out in messages of about this size; one larger entry goes alone."""

COMMIT_DELAY = 0.005
"""Seconds after which a follower hears that its entries are committed, if nothing follows them and nobody waits."""

WINDOW_BYTES = 8 * 1024 * 1024
"""How much may be under way, unanswered, to one follower (one message more, at most)."""


class Replication:
    """The part of the engine that moves entries."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._round = 0
        self._rounds: deque[tuple[int, float]] = deque()  # (round, when it began), not yet answered by a majority
        self.leader_since = float("-inf")  # when the leader last knew itself to be one, on its own clock
        self.entries_resent = 0
        self._highest_sent: dict[str, int] = {}
        self._commit_due = float("inf")  # when some follower is to hear of what is committed, on this node's clock
        self._verified = (0, 0)  # (term, index): up to there this log agrees with the log of that term's leader
        engine.on(AppendEntries, self._on_entries)
        engine.on(AppendReply, self._on_reply)
        engine.on(CommitTo, self._on_commit)

    # -- leader -----------------------------------------------------------------------------------------------------

    def start_leading(self) -> None:
        """Figure 2, leaders: nothing is known yet of how far the followers are."""
        engine = self._engine
        now = engine.clock()
        for peer in engine.peers.values():
            peer.reset(engine.log.last_index + 1, now)
        self._rounds.clear()
        self._highest_sent.clear()
        self.leader_since = float("-inf")

    def stop_leading(self) -> None:
        """Forget what only a leader knows."""
        self._rounds.clear()
        self.leader_since = float("-inf")
        self._engine.snapshots.stop_sending()

    def next_deadline(self) -> float:
        """When `send` wants to run next."""
        engine = self._engine
        if not engine.is_leader or not engine.peers:
            return float("inf")
        heartbeat_due = min(peer.sent_at for peer in engine.peers.values()) + engine.options.heartbeat
        return min(heartbeat_due, self._commit_due)

    def send(self) -> None:
        """Leader: send each follower what it lacks, and show signs of life."""
        engine = self._engine
        if not engine.is_leader:
            return
        now = engine.clock()
        due = now - engine.options.heartbeat
        for peer in engine.peers.values():
            if peer.connected and (self._send_entries(peer, now) or peer.sent_at > due):
                continue
            if peer.sent_at <= due:
                self._send_heartbeat(peer, now)

    def send_commit_index(self) -> None:
        """Leader: tell followers what became committed; at once those where somebody waits for it.

        The others hear of it with the next entries, if they follow soon, or after `COMMIT_DELAY`: two messages for each
        write would cost the followers, and whoever shares their processors, as much again.
        """
        engine = self._engine
        if not engine.is_leader:
            return
        self._commit_due = float("inf")
        for peer in engine.peers.values():
            index = min(engine.commit_index, peer.next_index - 1)
            if index <= peer.commit_sent or not peer.connected or peer.probing:
                peer.commit_due = float("inf")
                continue
            now = engine.clock()
            peer.commit_due = min(peer.commit_due, now + COMMIT_DELAY)
            if peer.wants_commit > peer.commit_sent or now >= peer.commit_due:
                peer.commit_due = now + COMMIT_DELAY
                if engine.send(peer, CommitTo(engine.term, index)):
                    peer.commit_sent = index
                    continue
            self._commit_due = min(self._commit_due, peer.commit_due)

    def _send_entries(self, peer: Peer, now: float) -> bool:
        engine = self._engine
        log = engine.log
        sent = False
        while peer.next_index <= log.last_index and peer.in_flight_bytes < WINDOW_BYTES:
            if peer.snapshot_sending is not None or (peer.probing and peer.in_flight):
                break
            prev_term = log.term_at(peer.next_index - 1)
            if prev_term is None:
                engine.snapshots.offer(peer)
                break
            entries = log.entries_from(peer.next_index, MESSAGE_BYTES)
            if not self._send(peer, peer.next_index - 1, prev_term, entries, now):
                break
            last = entries[-1].index
            size = sum(len(entry.command) for entry in entries)
            peer.in_flight.append((last, size))
            peer.in_flight_bytes += size
            self._count_sent(peer, entries)
            peer.next_index = last + 1
            sent = True
        return sent

    def _count_sent(self, peer: Peer, entries: list[Entry]) -> None:
        highest = self._highest_sent.get(peer.address, 0)
        self.entries_resent += sum(entry.index <= highest for entry in entries)
        self._highest_sent[peer.address] = max(highest, entries[-1].index)

    def _send_heartbeat(self, peer: Peer, now: float) -> None:
        engine = self._engine
        prev_index = peer.next_index - 1
        prev_term = engine.log.term_at(prev_index)
        if prev_term is None or peer.snapshot_sending is not None:
            prev_index = prev_term = 0  # verifies nothing, but keeps the follower from an election
        self._send(peer, prev_index, prev_term, [], now)
        peer.sent_at = now  # also if it could not be sent: no busy loop while a peer is away

    def _send(self, peer: Peer, prev_index: int, prev_term: int, entries: list[Entry], now: float) -> bool:
        engine = self._engine
        if not self._rounds or now - self._rounds[-1][1] >= engine.options.heartbeat / 4:
            self._round += 1
            self._rounds.append((self._round, now))
        # Before an entry of its own term is committed, a leader may not know of all that is (as in thesis 6.4).
        complete = engine.log.term_at(engine.commit_index) == engine.term
        age = now - self.leader_since if complete else float("inf")
        message = AppendEntries(
            engine.term, prev_index, prev_term, engine.commit_index, entries, self._round, peer.stamp, age
        )
        if not engine.send(peer, message):
            return False
        peer.sent_at = now
        peer.commit_sent = min(engine.commit_index, prev_index + len(entries))
        return True

    def _on_reply(self, peer: Peer, message: AppendReply) -> None:
        engine = self._engine
        engine.elections.see_term(message.term)
        if not engine.is_leader or message.term != engine.term:
            return  # rule 3
        peer.heard_at = engine.clock()
        peer.stamp = message.stamp
        if peer.round_acked < message.round <= self._round:
            peer.round_acked = message.round
            self._close_rounds()
        if message.success:
            if message.match_index > engine.log.last_index:
                raise StorageError(
                    f"{engine.store.name}: {peer.address} acknowledges entry {message.match_index}, but this leader's "
                    f"log ends at {engine.log.last_index}: one of the two has lost data; this node stops"
                )
            peer.acknowledged(message.match_index)
            peer.probing = False
            engine.snapshots.heard(peer)
        else:
            # The peer lacks what came before: feel the way back, one message at a time.
            peer.probing = True
            peer.in_flight.clear()
            peer.in_flight_bytes = 0
            peer.next_index = max(peer.match_index + 1, min(peer.next_index, message.match_index + 1))

    def _close_rounds(self) -> None:
        """Note since when a majority is known to have followed this leader."""
        engine = self._engine
        while self._rounds:
            number, began = self._rounds[0]
            answered = {peer.address for peer in engine.peers.values() if peer.round_acked >= number}
            if not engine.members.is_majority({engine.address} | answered):
                break
            self._rounds.popleft()
            self.leader_since = began

    def advance_commit_index(self) -> None:
        """Leader: commit what a majority has on disk (figure 2, leaders, last rule)."""
        engine = self._engine
        if not engine.is_leader:
            return
        log = engine.log
        stored = [
            log.durable_index if address == engine.address else engine.peers[address].match_index
            for address in engine.members.voters
        ]
        stored.sort(reverse=True)
        index = stored[len(stored) // 2]
        if index > engine.commit_index and log.term_at(index) == engine.term:
            engine.commit_index = index

    # -- follower ---------------------------------------------------------------------------------------------------

    def _on_entries(self, peer: Peer, message: AppendEntries) -> None:
        engine = self._engine
        if message.term < engine.term:
            engine.hold(peer, AppendReply(engine.term, False, 0, message.round))
            return
        engine.elections.follow(peer, message.term)
        engine.read_index.heard_leader(message)
        match_index = self._match(message)
        if match_index is None:
            reply = AppendReply(engine.term, False, self._hint(message), message.round, engine.clock())
        else:
            self._verified = max(self._verified, (engine.term, match_index))
            self._commit_to(message.commit_index)
            reply = AppendReply(engine.term, True, match_index, message.round, engine.clock())
        engine.hold(peer, reply)

    def _on_commit(self, peer: Peer, message: CommitTo) -> None:
        engine = self._engine
        if message.term == engine.term and peer.address == engine.leader and not engine.is_leader:
            self._commit_to(message.commit_index)

    def _commit_to(self, commit_index: int) -> None:
        engine = self._engine
        term, verified = self._verified
        if term == engine.term:
            engine.commit_index = max(engine.commit_index, min(commit_index, verified))

    def _match(self, message: AppendEntries) -> int | None:
        """Figure 2, AppendEntries, rules 2 to 4. Returns the last index verified, None where the logs differ."""
        engine = self._engine
        log = engine.log
        if message.prev_index >= log.start.index and log.term_at(message.prev_index) != message.prev_term:
            return None  # (what is below the log's start is committed, and so the same everywhere)
        for position, entry in enumerate(message.entries):
            if entry.index <= log.start.index:
                continue
            term = log.term_at(entry.index)
            if term == entry.term:
                continue
            if term is not None:
                engine.cut(entry.index)
            engine.extend(message.entries[position:])
            break
        return message.prev_index + len(message.entries)

    def _hint(self, message: AppendEntries) -> int:
        """The index from which on the leader may try next: before the whole conflicting term (5.3, last paragraphs)."""
        engine = self._engine
        log = engine.log
        index: int = min(message.prev_index - 1, log.last_index)
        if message.prev_index <= log.last_index:
            conflicting = log.term_at(message.prev_index)
            while index > engine.commit_index and log.term_at(index) == conflicting:
                index -= 1
        return max(index, min(engine.commit_index, message.prev_index - 1))

"""How members find out that the state of one of them differs: they compare digests at the same index.

Rules kept here:

1. From time to time the leader makes the digest of what it has applied and, with its entries, asks the others for
   theirs at that index. They make it when they have applied exactly that far, and send it with an acknowledgement.
2. The digest that a majority of the voters has at an index is right. A node with another one stops, and so does the
   leader. A follower stops when the leader reports the majority's digest, so no node stops on the word of a single one.
3. A node that stops leaves a note in its directory, which keeps it from being started again: its file is evidence, and
   more of it may be wrong.
4. Where no majority agrees, as with two members that differ, it is unknown which one is right: all go on, and log it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from replidict.errors import StorageError
from replidict.log_throttle import LogThrottle
from replidict.protocol.peer_messages import DigestAt
from replidict.raft.progress import Peer
from replidict.raft.state import RaftState
from replidict.storage.directory import leave_note

INTERVAL = 1.0
"""Seconds between two comparisons, and until one that was not answered is asked for again."""

REMEMBERED = 64
"""Of so many comparisons the digests are known; an answer that comes later is of no use."""

PATIENCE = 5.0
"""Seconds for which members that differ may wait for a majority, before they say so."""

MakeDigest = Callable[[], bytes]
Kept = TypeVar("Kept")


class _Comparison:
    """The digests of the members at one index, by address, and the one that a majority has."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.digests: dict[str, bytes] = {}
        self.agreed: bytes | None = None


class Divergence:
    """The part of the engine that compares digests."""

    def __init__(self, state: RaftState, log_throttle: LogThrottle, directory: Path, digest: MakeDigest) -> None:
        """`digest` makes that of the state at `state.last_applied`; `directory` is the node's own."""
        self._state, self._log_throttle, self._directory, self._digest = state, log_throttle, directory, digest
        self.wanted: int | None = None
        """The index at which the digest is to be made, when it is applied."""
        self.differing: frozenset[str] = frozenset()
        """The members that have another digest than this node, or if this one follows, the leader if it has."""
        self._known: dict[int, bytes] = {}  # of this node, by index
        self._same_at = 0  # where this node was last known to have the right one
        # Follower:
        self._leaders: dict[int, bytes] = {}  # what the leader has told
        self._answer: DigestAt | None = None
        # Leader:
        self._comparisons: dict[int, _Comparison] = {}
        self.latest: DigestAt | None = None
        """Of this node, as the leader: in the last comparison."""
        self._next = float("-inf")  # when the next comparison is due
        self._asked: dict[Peer, tuple[int, float]] = {}  # which index, and when

    def reset(self) -> None:
        """A leadership begins or ends: forget what others have reported."""
        self._comparisons.clear()
        self._asked.clear()
        self._leaders.clear()
        self.latest = self.wanted = self._answer = None
        self._next = float("-inf")
        self.differing = frozenset()

    # -- leader -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Leader: begin a comparison if that is due. Raises `StorageError` (rule 2)."""
        state = self._state
        if not state.is_leader:
            return
        now = state.clock()
        if now >= self._next and (self.latest is None or state.last_applied > self.latest.index):
            self._next = now + INTERVAL
            self.latest = mine = DigestAt(state.last_applied, self._digest())
            _remember(self._known, mine.index, mine.digest)
            begun = _Comparison(now)
            _remember(self._comparisons, mine.index, begun)
            begun.digests[state.address] = mine.digest
            self._judge(mine.index, begun)
        if self.differing:
            self.differing &= state.peers.keys()
            self._say_so(now)

    def _say_so(self, now: float) -> None:
        """Rule 4."""
        for index, comparison in self._comparisons.items():
            if comparison.agreed is None and len(set(comparison.digests.values())) > 1:
                if now - comparison.began > PATIENCE:
                    told = ", ".join(f"{who} has {digest.hex()}" for who, digest in sorted(comparison.digests.items()))
                    self._log_throttle.log(
                        "digests",
                        now,
                        f"the members differ at entry {index} of the log, and no majority of the voters agrees: {told}."
                        " One of them has a wrong state, and nobody knows which: all go on. Compare their data, then "
                        "remove the wrong one from the cluster and let it join anew with an empty directory",
                        logging.ERROR,
                    )
                return

    def question(self, peer: Peer) -> DigestAt | None:
        """Leader: what a message to this peer is to ask."""
        latest, now = self.latest, self._state.clock()
        if latest is None or (peer.digest is not None and peer.digest.index >= latest.index):
            return None
        asked, at = self._asked.get(peer, (0, 0.0))
        if asked == latest.index and now - at < INTERVAL:
            return None
        self._asked[peer] = (latest.index, now)
        return latest

    def verdict(self, peer: Peer) -> DigestAt | None:
        """Leader: what is right, for a peer that has told something else."""
        told = peer.digest
        if told is None or peer.address not in self.differing:
            return None
        comparison = self._comparisons.get(told.index)
        if comparison is None or comparison.agreed in (None, told.digest):
            return None
        return DigestAt(told.index, comparison.agreed or b"")

    def hear_answer(self, peer: Peer, told: DigestAt) -> None:
        """Leader: a peer tells its digest. Raises `StorageError` (rule 2)."""
        comparison = self._comparisons.get(told.index)
        if comparison is None or (peer.digest is not None and told.index < peer.digest.index):
            return
        peer.digest = told
        comparison.digests[peer.address] = told.digest
        self._judge(told.index, comparison)

    def _judge(self, index: int, comparison: _Comparison) -> None:
        state, digests = self._state, comparison.digests
        mine = digests[state.address]
        for digest in set(digests.values()):
            if state.members.is_majority(who for who, theirs in digests.items() if theirs == digest):
                comparison.agreed = digest
        if comparison.agreed is not None and comparison.agreed != mine:
            self._stop(index, mine, comparison.agreed)
        if comparison.agreed is not None:
            self._same_at = max(self._same_at, index)
        for who, digest in digests.items():
            self.differing = self.differing - {who} if digest == mine else self.differing | {who}
            if digest != comparison.agreed and comparison.agreed is not None:
                self._log_throttle.log(
                    f"the digest of {who}",
                    state.clock(),
                    f"{who} has diverged: its state at entry {index} of the log is not that of the majority. It stops "
                    "when it hears that: remove it from the cluster and let it join anew with an empty directory",
                    logging.ERROR,
                )

    # -- follower -----------------------------------------------------------------------------------------------------

    def hear_leader(self, asked: DigestAt | None, agreed: DigestAt | None) -> None:
        """Follower: the leader asks, or says what is right. Raises `StorageError` (rule 2)."""
        applied = self._state.last_applied
        if agreed is not None:
            mine = self._known.get(agreed.index)
            if mine is not None and mine != agreed.digest:
                self._stop(agreed.index, mine, agreed.digest)
        if self.wanted is not None and self.wanted < applied:
            self.wanted = None  # a snapshot was installed
        if asked is None:
            return
        _remember(self._leaders, asked.index, asked.digest)
        if asked.index in self._known:
            self._answer = DigestAt(asked.index, self._known[asked.index])
        elif asked.index >= applied and self.wanted is None:
            self.wanted = asked.index
            if asked.index == applied:
                self.reached()

    def reached(self) -> None:
        """Follower: the index at which the digest is wanted is the last one applied."""
        index, digest = self._state.last_applied, self._digest()
        self.wanted = None
        _remember(self._known, index, digest)
        self._answer = DigestAt(index, digest)
        leader = self._state.leader
        if leader is not None and index in self._leaders:
            same = self._leaders[index] == digest
            self.differing = frozenset() if same else frozenset({leader})
            if same:
                self._same_at = index

    def take_answer(self) -> DigestAt | None:
        """Follower: what the next acknowledgement is to tell."""
        answer, self._answer = self._answer, None
        return answer

    # -- the end ------------------------------------------------------------------------------------------------------

    def _stop(self, index: int, mine: bytes, right: bytes) -> None:
        state = self._state
        since = f"It was the same at entry {self._same_at} still. " if self._same_at else ""
        text = (
            f"{state.address} has diverged: its state at entry {index} of the log is not that of the majority (digest "
            f"{mine.hex()} instead of {right.hex()}). {since}It has stopped and serves nothing, and its file stays as "
            f"it is, as evidence. To bring this node back, remove {state.address} from the cluster, then start it with "
            "an empty directory and join="
        )
        try:
            leave_note(self._directory, text)
        except StorageError as error:
            text = f"{text}. It must not be started again as it is, but no note could be left that says so: {error}"
        raise StorageError(f"{state.store.name}: {text}")


def _remember(where: dict[int, Kept], index: int, what: Kept) -> None:
    where[index] = what
    while len(where) > REMEMBERED:
        del where[next(iter(where))]

"""Sends a snapshot to a follower that needs entries the leader has discarded, and installs it (Raft 7, figure 13).

Rules kept here:

1. The leader's snapshot is a checked SQLite file, made in the background. It is sent in pieces, a few under way at a
   time, while heartbeats, writes and other followers go on.
2. While it is being sent, the log after it is kept: the follower needs that next.
3. The follower takes pieces in order, checks the whole in the background, installs it in one transaction, and answers
   only then. A damaged snapshot is discarded and requested again; an outdated one is answered, and not installed.
4. A follower whose log holds the snapshot's last entry keeps its log (figure 13, rule 6): the entries after it may be
   committed by its very acknowledgement.
5. A leader that can't write or read a snapshot, while its own file is intact, goes on and tries again later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from replidict.background import Background
from replidict.call import Call
from replidict.errors import StorageError
from replidict.log_throttle import LogThrottle
from replidict.logging_thread import Logger
from replidict.protocol.peer_messages import SnapshotPiece, SnapshotReply
from replidict.raft.elections import Elections
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.state import RaftState
from replidict.storage import records, snapshot
from replidict.storage.directory import private, remove
from replidict.storage.snapshot import Snapshot

logger = Logger(__name__)

PIECE_BYTES = 256 * 1024
WINDOW_PIECES = 4
RETRY_PAUSE = 5.0
"""Seconds after which the leader tries again to make a snapshot that could not be written or read."""
OUTGOING, INCOMING = "outgoing.snapshot", "incoming.snapshot"
GIVE_UP_AFTER = 20
"""A peer that has been away for so many election timeouts no longer holds up the compaction of the log."""


def tidy(directory: Path) -> None:
    """Remove the files that a killed process left behind."""
    for name in (OUTGOING, INCOMING):
        (directory / name).unlink(missing_ok=True)


class InstallSnapshot:
    """The part of the engine that sends and receives snapshots."""

    def __init__(
        self,
        state: RaftState,
        outbox: Outbox,
        elections: Elections,
        log_throttle: LogThrottle,
        restart: Callable[[], None],
        background: Background,
        directory: Path,
    ) -> None:
        """`restart` is called when the store holds another snapshot than before, to become what that says. What takes
        long runs in `background`; files are made in `directory`."""
        self._state, self._outbox, self._elections = state, outbox, elections
        self._log_throttle, self._restart = log_throttle, restart
        self._background = background
        self._directory = directory
        self._making: Call[Snapshot] | None = None
        self._current: Snapshot | None = None
        self._file: BinaryIO | None = None
        self._not_before = float("-inf")  # when the next one may be made, after one that failed
        self._incoming: _Incoming | None = None
        self.installed = 0
        tidy(directory)

    # -- leader -----------------------------------------------------------------------------------------------------

    def offer(self, peer: Peer) -> None:
        """The peer needs entries that are gone: send it a snapshot, when there is one."""
        current = self._current
        if current is None or current.index < self._state.log.start.index:
            self._make()
            return
        peer.snapshot_sending = _name(current)
        peer.snapshot_offset = peer.snapshot_acked = 0
        self._send_pieces(peer)

    def _make(self) -> None:
        if self._making is not None or self._state.clock() < self._not_before:
            return
        self._drop_current()
        store = self._state.store
        store.keep_log_after = store.applied.index
        target = self._directory / OUTGOING
        self._making = self._background.submit(snapshot.create, store.uri, target)

    @property
    def under_way(self) -> bool:
        """Whether a snapshot is being made, sent or checked: `tick` looks how far it is."""
        return (self._making or self._current or self._incoming) is not None

    def tick(self) -> None:
        """Go on with what is under way."""
        state = self._state
        if self._making is not None and self._making.done():
            made, self._making = self._making, None
            self._take(made)
        away = state.clock() - GIVE_UP_AFTER * state.options.election_timeout
        for peer in state.peers.values():
            if peer.snapshot_sending is not None and peer.heard_at < away:
                peer.snapshot_sending = None
        if self._current is not None and not self._wanted():
            self._drop_current()
        incoming = self._incoming
        if incoming is not None and incoming.checking is not None and incoming.checking.done():
            self._incoming = None
            self._install(incoming)

    def _take(self, made: Call[Snapshot]) -> None:
        try:
            self._current = made.result()
            self._state.store.keep_log_after = self._current.index
            self._file = self._current.path.open("rb")
        except StorageError:
            raise  # this node's own file is damaged
        except Exception as error:  # noqa: BLE001 -- rule 5
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Rule 5."""
        state = self._state
        self._drop_current()
        self.stop_sending()
        self._not_before = state.clock() + RETRY_PAUSE
        needed = ", ".join(sorted(peer.address for peer in state.peers.values() if self._lacks_entries(peer)))
        self._log_throttle.log(
            "snapshots",
            state.clock(),
            f"{needed or 'a follower'} needs a snapshot, which could not be made or read: {error}. This node goes on, "
            f"and tries again every {RETRY_PAUSE:g} s: see to its directory {self._directory}",
            logging.ERROR,
        )

    def _lacks_entries(self, peer: Peer) -> bool:
        return peer.next_index <= self._state.log.start.index

    def _wanted(self) -> bool:
        state = self._state
        return state.is_leader and any(
            peer.snapshot_sending is not None or (self._lacks_entries(peer) and peer.connected)
            for peer in state.peers.values()
        )

    def _drop_current(self) -> None:
        self._state.store.keep_log_after = None
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._current is not None:
            remove(self._current.path)
            self._current = None

    def stop_sending(self) -> None:
        """This node leads no longer."""
        for peer in self._state.peers.values():
            peer.snapshot_sending = None

    def reconnected(self, peer: Peer) -> None:
        """Pieces under way may be lost: send again what was not acknowledged."""
        if peer.snapshot_sending is not None:
            peer.snapshot_offset = peer.snapshot_acked
            self._send_pieces(peer)

    def heard(self, peer: Peer) -> None:
        """The peer is there: go on if nothing is under way, because its queue was full."""
        if peer.snapshot_sending is not None and peer.snapshot_offset == peer.snapshot_acked:
            self._send_pieces(peer)

    def _send_pieces(self, peer: Peer) -> None:
        current, file, state = self._current, self._file, self._state
        if current is None or file is None or peer.snapshot_sending != _name(current):
            peer.snapshot_sending = None
            return
        while (
            peer.snapshot_offset < current.size
            and peer.snapshot_offset - peer.snapshot_acked < WINDOW_PIECES * PIECE_BYTES
        ):
            try:
                file.seek(peer.snapshot_offset)
                data = file.read(PIECE_BYTES)
                if not data:
                    raise OSError("it has become shorter")
            except OSError as error:
                self._failed(error)
                return
            piece = SnapshotPiece(
                state.term, current.index, current.term, _name(current), current.size, current.sha256,
                peer.snapshot_offset, data,
            )  # fmt: skip
            if not self._outbox.send(peer, piece):
                break
            peer.snapshot_offset += len(data)

    def on_snapshot_reply(self, peer: Peer, message: SnapshotReply) -> None:
        """Leader: a follower has taken a piece, or the whole; or lacks what came before."""
        state = self._state
        self._elections.see_term(message.term)
        if not state.is_leader or message.term != state.term:
            return
        peer.heard_at = state.clock()
        if message.snapshot_id != peer.snapshot_sending:
            return
        if message.installed:
            if message.last_index > state.log.last_index:
                return  # it was never sent such a snapshot
            peer.snapshot_sending = None
            peer.acknowledged(message.last_index)
            peer.next_index = peer.match_index + 1
            peer.probing = True
            return
        if message.offset < peer.snapshot_acked or not message.offset:
            peer.snapshot_offset = message.offset  # it begins anew (what it has already, it answers without a gain)
        peer.snapshot_acked = message.offset
        self._send_pieces(peer)

    # -- follower ---------------------------------------------------------------------------------------------------

    def on_snapshot_piece(self, peer: Peer, message: SnapshotPiece) -> None:
        """Figure 13, InstallSnapshot."""
        state = self._state
        if message.term < state.term:
            self._outbox.hold(peer, SnapshotReply(state.term, message.snapshot_id, 0, False, 0))
            return
        self._elections.follow(peer, message.term)
        if self._is_no_news(message.last_index, message.last_term):
            self._answer(peer, message, installed=True)
            return
        incoming = self._incoming
        if incoming is None or incoming.message.snapshot_id != message.snapshot_id:
            if message.offset != 0:
                self._answer(peer, message, offset=0)
                return
            self.forget_incoming()
            with _disk_errors(self._directory / INCOMING):
                incoming = self._incoming = _Incoming(peer, message, self._directory / INCOMING)
        incoming.peer = peer
        if incoming.checking is not None:
            return  # whole already; the answer comes when it is installed
        if message.offset == incoming.offset:
            with _disk_errors(incoming.path):
                incoming.take(message.data)
                if incoming.offset >= message.total_bytes:
                    incoming.file.close()
            if incoming.file.closed:
                incoming.checking = self._background.submit(snapshot.check, incoming.path)
                return
        self._answer(peer, message, offset=incoming.offset)

    def _is_no_news(self, index: int, term: int) -> bool:
        """Whether the log already holds everything up to the snapshot's last entry (figure 13, rule 6)."""
        state = self._state
        if index > state.last_applied and state.log.term_at(index) != term:
            return False
        if index > state.commit_index:
            self._outbox.persist()  # before it is counted as committed here
            state.commit_index = index
        return True

    def _install(self, incoming: _Incoming) -> None:
        state, message, peer = self._state, incoming.message, incoming.peer
        assert incoming.checking is not None
        try:
            checked = incoming.checking.result()
            intact = checked.sha256 == message.sha256
            intact = intact and (checked.index, checked.term) == (message.last_index, message.last_term)
            why = "it is not the one that was sent"
        except StorageError as error:
            intact, why = False, str(error)
        if not intact:
            text = f"a snapshot from {peer.address} arrived damaged: {why}"
            self._log_throttle.log(f"snapshots from {peer.address}", state.clock(), text)
        if intact and not self._is_no_news(message.last_index, message.last_term):
            self._outbox.persist()
            state.store.install(f"{incoming.path.absolute().as_uri()}?mode=ro")
            self._restart()
            self.installed += 1
            logger.info("%s: installed the snapshot of entry %d", state.address, message.last_index)
        incoming.path.unlink(missing_ok=True)
        self._answer(peer, message, installed=intact)

    def _answer(self, peer: Peer, message: SnapshotPiece, *, offset: int = 0, installed: bool = False) -> None:
        state = self._state
        self._outbox.hold(peer, SnapshotReply(state.term, message.snapshot_id, offset, installed, message.last_index))

    def forget_incoming(self) -> None:
        """Throw away a snapshot that is not whole yet."""
        if self._incoming is not None:
            self._incoming.file.close()
            self._incoming = None

    def close(self) -> None:
        """Let go of all files. Never raises: what is left of them is removed at the next start."""
        for let_go in (self.forget_incoming, self._drop_current, partial(tidy, self._directory)):
            try:
                let_go()
            except OSError as error:
                logger.warning("%s: could not remove a snapshot: %s", self._state.address, error)


class _Incoming:
    """A snapshot that is arriving."""

    def __init__(self, peer: Peer, message: SnapshotPiece, path: Path) -> None:
        self.peer = peer
        self.message = message
        self.path = path
        # Without a buffer, so that what the disk refuses shows when it is written.
        self.file = open(path, "wb", buffering=0, opener=private)  # noqa: SIM115 -- closed by what takes the pieces
        self.offset = 0
        self.checking: Call[Snapshot] | None = None

    def take(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.offset += len(data)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: could not read or write a snapshot: {error}. This node has stopped. {records.DISK_CURE}"
        ) from error


def _name(made: Snapshot) -> str:
    return f"{made.index}-{made.term}-{made.sha256[:8].hex()}"

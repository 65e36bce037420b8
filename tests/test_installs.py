"""A follower by hand: what it answers and when, and the snapshots that arrive: out of order, interrupted, repeated,
stale, damaged."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict.background import BackgroundThread
from replidict.machine.codec import DEFAULT_CODEC
from replidict.machine.commands import NO_OP
from replidict.node.raft_node import RaftNode
from replidict.options import Options
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import (
    AppendEntries,
    AppendReply,
    RequestVote,
    SnapshotPiece,
    SnapshotReply,
    VoteReply,
)
from replidict.storage import snapshot
from replidict.storage.directory import Directory, connect, founded_by
from replidict.storage.high_water_mark import HighWaterMark
from replidict.storage.store import Store
from replidict.transport.null_transport import NoTransport
from tests.clusters import wait_until
from tests.storage_support import put, rig

ADDRESSES = ["a:1", "b:1", "c:1"]
PIECE = 5000


class Follower:
    """The node a:1, stepped by hand; b:1 leads. What it answers is in `sent`."""

    def __init__(self, path: Path, background: BackgroundThread) -> None:
        self.sent: list[Any] = []
        outer = self

        class Transport(NoTransport):
            def send(self, node: Any, message: Any) -> bool:
                outer.sent.append(message)
                assert not outer.engine.store.pending, f"{message} tells of what is not on disk"
                return True

        self._directory = Directory(path)
        self._directory.found("a:1", lambda: founded_by(ADDRESSES))
        uri = self._directory.file.absolute().as_uri()
        store = Store(connect(self._directory.file, "fsync"), uri, log_retain=10, mark=HighWaterMark(path / "mark"))
        self.node = RaftNode(
            store,
            codec=DEFAULT_CODEC,
            options=Options(election_timeout=1000.0),
            transport=Transport,
            clock=time.monotonic,
            rng=random.Random(1),
            background=background,
            snapshot_directory=path,
            wake=lambda: None,
        )
        self.engine = self.node.engine
        for peer in self.engine.peers.values():
            self.engine._SyncObj__onNodeConnected(peer.node)

    def hear(self, message: Any) -> list[Any]:
        """Handle a message of the leader's; the answers to it."""
        self.sent.clear()
        self.engine._SyncObj__onMessageReceived(self.engine.peers["b:1"].node, message)
        self.node.step()
        return list(self.sent)

    def settle(self) -> Any:
        """Step until there is an answer."""

        def answered() -> bool:
            self.node.step()
            return bool(self.sent)

        wait_until(answered, "the snapshot is checked and answered")
        return self.sent[-1]

    @property
    def content(self) -> dict[Any, Any]:
        return {key: DEFAULT_CODEC.decode(item.value) for key, item in self.node.machine.items.items()}

    def close(self) -> None:
        self.engine.snapshots.close()
        self.engine.store.close()
        self.engine.transport.destroy()
        self._directory.close()


@contextmanager
def follower(path: Path) -> Iterator[Follower]:
    background = BackgroundThread("replidict snapshot")
    background.start()
    one = Follower(path, background)
    try:
        yield one
    finally:
        one.close()
        background.close()


class Source:
    """A leader's snapshots, and the pieces they go out in."""

    def __init__(self, root: Path) -> None:
        self.made: list[snapshot.Snapshot] = []
        self.contents: list[dict[Any, Any]] = []
        for number in range(2):
            with rig(root / "leader", founders=ADDRESSES[1:] + ADDRESSES[:1]) as one:
                one.perform(*[put(f"k{each}", f"{number} {'x' * 200}") for each in range(100 + number)])
                content = one.content()
            with rig(root / "leader", founders=ADDRESSES[1:] + ADDRESSES[:1]) as one:
                self.made.append(snapshot.create(one.store.uri, root / f"snapshot{number}"))
                self.contents.append(content)

    def pieces(self, number: int = 0, term: int = 1) -> list[SnapshotPiece]:
        made = self.made[number]
        data = made.path.read_bytes()
        name = f"snapshot {number}"
        return [
            SnapshotPiece(term, made.index, made.term, name, made.size, made.sha256, start, data[start : start + PIECE])
            for start in range(0, made.size, PIECE)
        ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("source"))


def replies(answers: list[Any]) -> list[SnapshotReply]:
    return [each for each in answers if isinstance(each, SnapshotReply)]


def test_nothing_is_answered_before_it_is_on_disk(tmp_path: Path) -> None:
    """Acknowledgements, votes and refusals with a new term leave after the commit that holds them."""
    with follower(tmp_path / "f") as one:
        entries = [Entry(number, 1, NO_OP) for number in range(1, 6)]
        answers = one.hear(AppendEntries(1, 0, 0, 0, entries))
        assert [(each.success, each.match_index) for each in answers if isinstance(each, AppendReply)] == [(True, 5)]
        answers = one.hear(AppendEntries(2, 3, 1, 0, [Entry(4, 2, NO_OP)]))
        assert [(each.success, each.match_index) for each in answers if isinstance(each, AppendReply)] == [(True, 4)]
        answers = one.hear(AppendEntries(3, 9, 3, 0, []))
        assert [(each.success, each.term) for each in answers if isinstance(each, AppendReply)] == [(False, 3)]
        answers = one.hear(RequestVote(4, 9, 3, False, True))
        assert [(each.granted, each.term) for each in answers if isinstance(each, VoteReply)] == [(True, 4)]
        answers = one.hear(RequestVote(4, 9, 3, False, True))
        assert [(each.granted, each.term) for each in answers if isinstance(each, VoteReply)] == [(True, 4)]
        assert (one.engine.store.term, one.engine.store.voted_for) == (4, "b:1")


def test_pieces_in_order_become_the_state(source: Source, tmp_path: Path) -> None:
    """Each piece is answered with the offset wanted next; the last one when the snapshot is in force, durably."""
    with follower(tmp_path / "f") as one:
        *first, last = source.pieces()
        for piece in first:
            (answer,) = replies(one.hear(piece))
            assert (answer.offset, answer.installed) == (piece.offset + len(piece.data), False)
            assert one.content == {}
        one.hear(last)
        answer = one.settle()
        assert answer.installed and answer.last_index == source.made[0].index
        assert one.content == source.contents[0]
        assert one.engine.commit_index == one.engine.last_applied == source.made[0].index
        assert not (tmp_path / "f" / "incoming.snapshot").exists()
    with follower(tmp_path / "f") as again:
        assert again.content == source.contents[0]


def test_pieces_repeated_and_out_of_order(source: Source, tmp_path: Path) -> None:
    """A piece that was had already, or comes too early, changes nothing: the offset wanted is said again."""
    with follower(tmp_path / "f") as one:
        pieces = source.pieces()
        for number, piece in enumerate(pieces[:-2]):
            one.hear(piece)
            for wrong in (pieces[0], piece, pieces[number + 2]):
                (answer,) = replies(one.hear(wrong))
                assert answer.offset == piece.offset + len(piece.data)
        one.hear(pieces[-2])
        one.hear(pieces[-1])
        one.hear(pieces[-1])
        assert one.settle().installed
        assert one.content == source.contents[0]


def test_an_interrupted_transfer_begins_anew(source: Source, tmp_path: Path) -> None:
    """After a restart in the middle, the leader is told to begin at 0; then another snapshot replaces the first."""
    with follower(tmp_path / "f") as one:
        for piece in source.pieces()[:2]:
            one.hear(piece)
    with follower(tmp_path / "f") as one:
        (answer,) = replies(one.hear(source.pieces()[2]))
        assert (answer.offset, answer.installed) == (0, False)
        one.hear(source.pieces()[0])
        for piece in source.pieces(1):
            one.hear(piece)
        assert one.settle().installed
        assert one.content == source.contents[1]


def test_a_repeated_or_stale_snapshot_is_no_news(source: Source, tmp_path: Path) -> None:
    """A snapshot of what is there already is answered and left alone: the state never goes back (E6)."""
    with follower(tmp_path / "f") as one:
        for piece in source.pieces(1):
            one.hear(piece)
        assert one.settle().installed
        index = one.engine.last_applied
        for number in (1, 0):
            for piece in source.pieces(number):
                (answer,) = replies(one.hear(piece))
                assert answer.installed
            assert (one.content, one.engine.last_applied) == (source.contents[1], index)
        assert one.engine.snapshots.installed == 1


@pytest.mark.parametrize("kind", ["flipped", "short", "foreign", "wrong index"])
def test_a_damaged_snapshot_is_thrown_away(source: Source, tmp_path: Path, kind: str) -> None:
    """What arrives damaged is never installed nor acknowledged; the next, whole one is (E5)."""
    rng = random.Random(3)
    with follower(tmp_path / "f") as one:
        one.hear(AppendEntries(1, 0, 0, 1, [Entry(1, 1, NO_OP)]))
        for _ in range(10 if kind == "flipped" else 1):
            pieces = source.pieces()
            damaged = rng.randrange(len(pieces))
            for number, piece in enumerate(pieces):
                data, index = bytearray(piece.data), piece.last_index
                if kind == "flipped" and number == damaged:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                elif kind == "short" and number == len(pieces) - 1:
                    data = bytearray(len(data))
                elif kind == "foreign":
                    data = bytearray(rng.randbytes(len(data)))
                elif kind == "wrong index":
                    index += 1
                one.hear(
                    SnapshotPiece(
                        1, index, 1, piece.snapshot_id, piece.total_bytes, piece.sha256, piece.offset, bytes(data)
                    )
                )
            answer = one.settle()
            assert (answer.installed, answer.offset) == (False, 0)
            assert one.content == {} and one.engine.log.last_index == 1
        for piece in source.pieces():
            one.hear(piece)
        assert one.settle().installed
        assert one.content == source.contents[0]


def test_a_snapshot_of_an_old_leader_is_refused(source: Source, tmp_path: Path) -> None:
    """A piece with an old term is not taken; the answer carries the newer term (figure 13, rule 1)."""
    with follower(tmp_path / "f") as one:
        one.hear(AppendEntries(5, 0, 0, 0, []))
        for piece in source.pieces(term=4):
            (answer,) = replies(one.hear(piece))
            assert (answer.term, answer.installed) == (5, False)
        assert one.content == {}


def test_the_log_goes_on_after_a_snapshot(source: Source, tmp_path: Path) -> None:
    """Entries after the snapshot are taken; a log that holds its last entry is kept (figure 13, rules 6 and 7)."""
    made = source.made[0]
    with follower(tmp_path / "f") as one:
        for piece in source.pieces():
            one.hear(piece)
        one.settle()
        following = [Entry(made.index + number, 1, NO_OP) for number in (1, 2, 3)]
        answers = one.hear(AppendEntries(1, made.index, made.term, made.index, following))
        (reply,) = [each for each in answers if isinstance(each, AppendReply)]
        assert (reply.success, reply.match_index) == (True, made.index + 3)
        for piece in source.pieces():
            one.hear(piece)
        assert one.engine.log.last_index == made.index + 3, "the entries after it may be committed by now"
    with follower(tmp_path / "f") as again:
        assert again.engine.log.last_index == made.index + 3

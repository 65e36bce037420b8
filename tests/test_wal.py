"""A write-ahead log whose end is torn, and one that is damaged: told apart; and the mark."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from replidict.machine.commands import NO_OP
from replidict.protocol.log_entry import Entry
from replidict.storage import snapshot
from replidict.storage.directory import FILE_NAME
from replidict.storage.high_water_mark import HighWaterMark
from replidict.storage.wal import check_wal
from tests.storage_support import FRAME, WAL, Rig, flip, image, put, rig, small_disk, verdict, written

FLIPS = 100
MADE_BYTES = 5 * 1024 * 1024
"""The log of a small dict: `FEWEST_FRAMES` of 4,120 bytes, with room to spare."""


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, tuple[Any, ...]]]:
    """Images of one node, each taken when a write had just been acknowledged; the log begins anew in none of them."""
    path = tmp_path_factory.mktemp("growing")
    one = Rig(path / "n")
    one.put("first", 0)
    images = []
    for number in range(6):
        one.perform(*[put(f"k{number}-{each}", b"x" * 700) for each in range(number * 4 + 1)])
        images.append((image(path / "n", path / f"image{number}"), one.everything()))
    one.close()
    return images


def torn_ends(before: bytes, after: bytes, rng: random.Random) -> Iterator[bytes]:
    """What a crash or power cut may leave of a log that was `before` and would have become `after`."""
    new = after[len(before) :]
    yield after
    for length in sorted({*range(0, len(new), 512), *range(0, len(new), FRAME), *range(24, len(new), FRAME)}):
        yield before + new[:length]
    for _ in range(20):  # sectors reach the disk in any order; those that did not are zeros, or what was there
        sectors = [new[start : start + 512] for start in range(0, len(new), 512)]
        yield before + b"".join(
            rng.choice([each, each, bytes(len(each)), rng.randbytes(len(each))]) for each in sectors
        )


def test_a_torn_end_loses_nothing_acknowledged(growing: list[tuple[Path, tuple[Any, ...]]], tmp_path: Path) -> None:
    """A disk image that lost what came after the last sync, or holds the next transaction in part, in any order of its
    sectors, opens and has every acknowledged write; the unacknowledged one wholly or not at all (promises 1, 4)."""
    rng, seen = random.Random(7), set()
    for (one, everything), (following, with_next) in pairwise(growing):
        before, after = written((one / WAL).read_bytes()), written((following / WAL).read_bytes())
        assert after.startswith(before) and (one / FILE_NAME).read_bytes() == (following / FILE_NAME).read_bytes()
        ends = list(torn_ends(before, after, rng))
        for torn in [ends[0], *rng.sample(ends, min(len(ends), 12))]:
            copy = image(one, tmp_path / "n")
            (copy / WAL).write_bytes(torn + rng.choice([b"", bytes(MADE_BYTES - len(torn))]))
            assert check_wal(copy / FILE_NAME) is None, "a torn end is no damage"
            with rig(copy) as opened:
                found = opened.everything()
            assert found in (everything, with_next)
            seen.add(found == everything)
    assert seen == {True, False}


def test_every_torn_end_passes_the_check(growing: list[tuple[Path, tuple[Any, ...]]], tmp_path: Path) -> None:
    """No torn last transaction, of however many frames, is taken for damage (storage/wal, rule 1)."""
    rng = random.Random(8)
    for (one, _), (following, _) in pairwise(growing[:4]):
        for torn in torn_ends(written((one / WAL).read_bytes()), written((following / WAL).read_bytes()), rng):
            (tmp_path / WAL).write_bytes(torn)
            assert check_wal(tmp_path / FILE_NAME) is None


def test_two_crashes_in_a_row(tmp_path: Path) -> None:
    """What a first crash left torn is no damage after a second one: each run has a log of its own (rule 1)."""

    def lose_first_frame(wal: bytes, following: bytes) -> bytes:
        end = 32
        while wal[end : end + FRAME] == following[end : end + FRAME]:
            end += FRAME
        return wal[:end] + bytes(FRAME) + following[end + FRAME :]

    one = Rig(tmp_path / "n")
    one.put("k", 0)
    copy = image(tmp_path / "n", tmp_path / "copy")
    before = (copy / WAL).read_bytes()
    one.put("large", b"x" * 100_000)
    (copy / WAL).write_bytes(lose_first_frame(before, one.wal()))
    one.close()
    one = Rig(copy)
    one.put("k", 1)
    again, acknowledged = image(copy, tmp_path / "again"), one.everything()
    before = one.wal()
    one.put("middling", b"x" * 20_000)
    (again / WAL).write_bytes(lose_first_frame(before, one.wal()))
    one.close()
    assert verdict(again, acknowledged) == "whole"


def frames_of(wal: bytes) -> list[bool]:
    """For each frame with the log's salts from its start: does a transaction end here?"""
    found = []
    for start in range(32, len(wal), FRAME):
        if wal[start + 8 : start + 16] != wal[16:24]:
            break
        found.append(wal[start + 4 : start + 8] != bytes(4))
    return found


def test_damage_before_the_last_transaction_is_seen(
    growing: list[tuple[Path, tuple[Any, ...]]], tmp_path: Path
) -> None:
    """Any flipped bit in a frame's page or checksum that two transactions follow is damage (storage/wal, rule 2)."""
    wal, rng = written((growing[-1][0] / WAL).read_bytes()), random.Random(9)
    ends = [number for number, end in enumerate(frames_of(wal)) if end]
    file = tmp_path / FILE_NAME
    for _ in range(FLIPS):
        frame = rng.randrange(ends[-2])
        (tmp_path / WAL).write_bytes(wal)
        flip(tmp_path / WAL, 32 + frame * FRAME + rng.choice([*range(4), *range(16, 24), *range(24, FRAME)]), 3)
        reason = check_wal(file)
        if frame <= ends[-3]:
            assert (
                reason
                == f"{WAL} is damaged in frame {frame + 1}, and transactions that were committed after it can't be read"
            )
    (tmp_path / WAL).write_bytes(wal)
    assert check_wal(file) is None
    for offset in range(32):
        (tmp_path / WAL).write_bytes(wal)
        flip(tmp_path / WAL, offset, 0)
        assert check_wal(file) == f"the header of {WAL} is damaged"


def test_a_log_that_began_anew_is_whole(tmp_path: Path) -> None:
    """Frames left over from before a checkpoint belong to nobody, and are no damage (fileformat2, section 4)."""
    with rig(tmp_path / "n") as one:
        one.perform(*[put(f"k{each}", b"x" * 900) for each in range(100)])
        one.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        for number in range(5):
            one.put("k", number)
            copy = image(tmp_path / "n", tmp_path / "copy")
            left_over = (copy / WAL).read_bytes()[len(written((copy / WAL).read_bytes())) :]
            assert any(left_over)
            assert check_wal(copy / FILE_NAME) is None
            assert verdict(copy, one.everything()) == "whole"


def test_no_log_or_an_empty_one_is_no_damage(tmp_path: Path) -> None:
    """A file without a write-ahead log was closed; one with the beginning of a header, or of zeros only, never had
    anything in it."""
    assert check_wal(tmp_path / FILE_NAME) is None
    for length in (0, 1, 31, 33, 5000):
        (tmp_path / WAL).write_bytes(bytes(length))
        assert check_wal(tmp_path / FILE_NAME) is None
    for content in (b"x" + bytes(32), bytes(32) + b"x", bytes(5000) + b"x"):
        (tmp_path / WAL).write_bytes(content)
        assert check_wal(tmp_path / FILE_NAME) is not None


def test_the_log_is_as_long_from_the_start_as_it_gets(tmp_path: Path) -> None:
    """Writes find room in the log that was made with the file: to sync a file that grows costs more. It is whole before
    anything is written to it, too."""
    with rig(tmp_path / "n") as one:
        made = image(tmp_path / "n", tmp_path / "made")
        assert not any((made / WAL).read_bytes())
        assert verdict(made, one.everything()) == "whole"
        for number in range(1500):
            one.put(f"k{number}", number)
        assert (tmp_path / "n" / WAL).stat().st_size == MADE_BYTES


def test_a_full_disk_needs_no_room_for_the_log(tmp_path: Path) -> None:
    """A node that finds no room for a log made beforehand opens all the same: its reads need none."""
    with rig(tmp_path / "n") as one:
        one.put("k", 1)
    with small_disk(tmp_path / "small", "1M"):
        shutil.copytree(tmp_path / "n", tmp_path / "small" / "n")
        with rig(tmp_path / "small" / "n") as one:
            assert (tmp_path / "small" / "n" / WAL).stat().st_size == 0
            one.put("k", 2)


# -- the mark -------------------------------------------------------------------------------------------------------


def marked(path: Path, *noted: tuple[int, str | None, int, int]) -> HighWaterMark:
    with closing(HighWaterMark(path)) as mark:
        for each in noted:
            mark.note(*each)
    return HighWaterMark(path)


@pytest.mark.parametrize(
    ("found", "fine"),
    [
        ((3, "a", 1, 10), True),
        ((3, "a", 1, 11), True),
        ((4, None, 1, 10), True),
        ((4, "b", 1, 10), True),
        ((4, None, 2, 5), True),
        ((2, "a", 1, 10), False),
        ((3, None, 1, 10), False),
        ((3, "b", 1, 10), False),
        ((3, "a", 1, 9), False),
        ((4, None, 1, 9), False),
        ((4, None, 0, 12), False),
    ],
)
def test_the_mark_is_a_lower_bound(tmp_path: Path, found: tuple[int, str | None, int, int], fine: bool) -> None:
    """A file passes if it holds at least the term, the vote and the entries that were noted (storage/mark)."""
    with closing(marked(tmp_path / "mark", (3, None, 1, 9), (3, "a", 1, 10))) as mark:
        assert (mark.verify(*found) is None) is fine


def test_a_torn_mark_says_what_was_noted_before(tmp_path: Path) -> None:
    """Whatever is left of the slot written last, the other one counts; without either, nothing is known (rule 2)."""
    marked(tmp_path / "mark", (1, None, 0, 5), (1, None, 0, 6), (1, None, 0, 7)).close()
    whole = (tmp_path / "mark").read_bytes()
    last = whole.index(struct.pack("<Q", 3))
    for offset in range(last, last + 40):
        torn = bytearray(whole)
        torn[offset] ^= 0x10
        (tmp_path / "mark").write_bytes(torn)
        with closing(HighWaterMark(tmp_path / "mark")) as mark:
            assert mark.verify(1, None, 0, 6) is None and mark.verify(1, None, 0, 5) is not None
    for content in (b"", whole[:5], bytes(len(whole)), os.urandom(len(whole))):
        (tmp_path / "mark").write_bytes(content)
        with closing(HighWaterMark(tmp_path / "mark")) as mark:
            assert mark.verify(0, None, 0, 0) is None


def test_the_mark_never_says_more_than_what_is_synced(tmp_path: Path) -> None:
    """At every moment of a node's life, cuts, votes and snapshots included, the file passes its own mark, however old
    a power cut may leave that (rule 1)."""
    rng = random.Random(11)
    source = Rig(tmp_path / "source")
    source.put_many("s", 600)
    made = snapshot.create(source.store.uri, tmp_path / "snapshot")
    source.close()
    one = Rig(tmp_path / "n", log_retain=10**6)
    term, marks = 1, list[bytes]()
    for number in range(40):
        match rng.randrange(6):
            case 0:
                term += 1
                one.store.set_vote(term, rng.choice([None, "a", "b"]))
            case 1 if one.log.last_index > one.machine.applied_index:
                one.log.cut(rng.randrange(one.machine.applied_index, one.log.last_index) + 1)
            case 2 if number > 20 and one.log.start.index < made.index:
                one.store.commit()
                one.store.install(f"{made.path.as_uri()}?mode=ro")
                one.store.load_into(one.machine)
            case _:
                one.store.set_vote(max(term, one.store.term), one.store.voted_for if term == one.store.term else None)
                one.log.append([Entry(one.log.last_index + 1, term, NO_OP)])
        if rng.random() < 0.5:
            one.store.commit()
        copy = image(tmp_path / "n", tmp_path / "copy")
        marks.append((copy / "mark").read_bytes())
        (copy / "mark").write_bytes(rng.choice(marks[-5:]))
        with closing(Rig(copy, log_retain=10**6)):
            pass
    one.close()
    with rig(tmp_path / "n", log_retain=10**6):
        pass

"""What a member may not say, refused from the message alone (design section 9)."""

from __future__ import annotations

import msgspec
import pytest

from replidict import commands as cmd
from replidict.raft import messages
from replidict.raft.messages import AppendEntries, Entry


@pytest.mark.parametrize(
    "entries",
    [
        [(8, 3), (10, 3)],
        [(9, 3)],
        [(7, 3)],
        [(8, 3), (9, 2)],
        [(8, 4)],
        [(8, 1)],
    ],
    ids=["a gap", "a gap before", "one too early", "terms that fall", "a term to come", "below the one before"],
)
def test_entries_that_do_not_follow_are_no_message(entries: list[tuple[int, int]]) -> None:
    """Entries that no leader's log can hold are refused when they are read: they reach neither log nor disk."""
    held = [Entry(index, term, cmd.NO_OP) for index, term in entries]
    data = messages.encode(AppendEntries(3, 7, 2, 7, []))
    fields = msgspec.msgpack.decode(data)
    fields[5] = held
    with pytest.raises(msgspec.ValidationError, match="can't follow"):
        messages.decode(msgspec.msgpack.encode(fields))


def test_entries_that_follow_are_a_message() -> None:
    """What a leader sends is read as it was sent."""
    said = AppendEntries(3, 7, 2, 7, [Entry(8, 2, cmd.NO_OP), Entry(9, 3, cmd.NO_OP)])
    assert messages.decode(messages.encode(said)) == said


def test_only_writes_and_sessions_may_be_proposed() -> None:
    """A member can't change the configuration, or lead, by proposing it."""
    assert cmd.may_be_proposed(cmd.encode(cmd.Batch(1, 1, 0, [cmd.Put(b"k", b"v")])))
    assert cmd.may_be_proposed(cmd.encode(cmd.OpenSession(b"n")))
    for command in (cmd.Configuration([], []), cmd.Configuration(["x:1"], []), cmd.NoOp(), cmd.Unknown()):
        assert not cmd.may_be_proposed(cmd.encode(command))
    assert not cmd.may_be_proposed(b"")

"""What a member may not say, refused from the message alone."""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
import pytest
from msgspec import inspect

from replidict.machine import commands as cmd
from replidict.protocol import client_messages, peer_messages
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import AppendEntries


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
    data = peer_messages.encode(AppendEntries(3, 7, 2, 7, []))
    fields = msgspec.msgpack.decode(data)
    fields[5] = held
    with pytest.raises(msgspec.ValidationError, match="can't follow"):
        peer_messages.decode(msgspec.msgpack.encode(fields))


def test_entries_that_follow_are_a_message() -> None:
    """What a leader sends is read as it was sent."""
    said = AppendEntries(3, 7, 2, 7, [Entry(8, 2, cmd.NO_OP), Entry(9, 3, cmd.NO_OP)])
    assert peer_messages.decode(peer_messages.encode(said)) == said


def test_only_writes_and_sessions_may_be_proposed() -> None:
    """A member can't change the configuration, or lead, by proposing it."""
    assert cmd.may_be_proposed(cmd.encode(cmd.Batch(1, 1, 0, [cmd.Put(b"k", b"v")])))
    assert cmd.may_be_proposed(cmd.encode(cmd.OpenSession(b"n")))
    for command in (cmd.Configuration([], []), cmd.Configuration(["x:1"], []), cmd.NoOp()):
        assert not cmd.may_be_proposed(cmd.encode(command))
    later = [3, 1, 1, 0, [[99, b"k"]]]
    for data in (b"", b"\x93\x02\x03", msgspec.msgpack.encode(later), b"\x95\x03" + b"\x91" * 100_000):
        assert not cmd.may_be_proposed(data)


def refused(kind: inspect.Type) -> list[Any]:
    """What a field of this type must refuse, since it would end or mislead a node, or cost what it likes."""
    match kind:
        case inspect.IntType():
            return [-1, 2**62, 2**64 - 1]
        case inspect.FloatType():
            return [-1.0, -math.inf, math.nan]
        case inspect.StrType():
            return ["x" * 1001]
        case inspect.ListType() | inspect.VarTupleType():
            whole = [["x:1"] * (peer_messages.MEMBERS_MAX + 1)] if isinstance(kind.item_type, inspect.StrType) else []
            return whole + [[bad] for bad in refused(kind.item_type)]
        case inspect.DictType():
            value = [7, 0.5] if isinstance(kind.value_type, inspect.TupleType) else "x"
            names = [f"n{number}:1" for number in range(peer_messages.MEMBERS_MAX + 1)]
            return [dict.fromkeys(names, value), *({bad: value} for bad in refused(kind.key_type)),
                    *({"n1:1": bad} for bad in refused(kind.value_type))]  # fmt: skip
        case inspect.TupleType():
            good = [7, 0.5]
            return [[*good[:at], bad, *good[at + 1 :]] for at, each in enumerate(kind.item_types)
                    for bad in refused(each)]  # fmt: skip
        case inspect.UnionType():
            return [bad for each in kind.types for bad in refused(each)]
        case inspect.StructType():
            return [[kind.tag, *bad] for bad in fields_refused(kind)]
    return []


def good(kind: inspect.Type) -> Any:
    """Something that such a field takes."""
    match kind:
        case inspect.IntType():
            return 7
        case inspect.FloatType():
            return 0.5
        case inspect.BoolType():
            return True
        case inspect.BytesType():
            return b"bytes"
        case inspect.StrType():
            return "n1:1"
        case inspect.ListType():
            return []
        case inspect.DictType():
            return {}
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.UnionType():
            return good(kind.types[0])
        case inspect.StructType():
            return [kind.tag, *(good(field.type) for field in kind.fields)]
    raise AssertionError(kind)


def fields_refused(kind: inspect.StructType) -> list[list[Any]]:
    """The fields of a struct, of which one holds what it must refuse."""
    fine = [good(field.type) for field in kind.fields]
    names = [field.name for field in kind.fields]
    for name, value in {"voters": ["n1:1"], "offset": 0, "total_bytes": 10}.items():
        if name in names:
            fine[names.index(name)] = value
    return [
        [*fine[:at], bad, *fine[at + 1 :]]
        for at, field in enumerate(kind.fields)
        if field.name != "prefix"  # of a key: as long as one, and counted with what the client has under way
        for bad in refused(field.type)
    ]


KINDS = [*get_args(peer_messages.Message), *get_args(client_messages.Request)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_field_is_without_bounds(kind: type[msgspec.Struct]) -> None:
    """No message and no ask takes a number that is none, a time that never was, or a name or a list without an end."""
    decode = peer_messages.decode if kind in get_args(peer_messages.Message) else client_messages.decode_request
    struct = inspect.type_info(kind)
    assert isinstance(struct, inspect.StructType)
    for fields in fields_refused(struct):
        with pytest.raises(msgspec.ValidationError):
            decode(msgspec.msgpack.encode([struct.tag, *fields]))
            pytest.fail(f"{fields}")


def test_pieces_are_of_the_file() -> None:
    """A piece of a snapshot that would reach beyond its end is refused."""
    piece = peer_messages.SnapshotPiece(1, 2, 1, "id", 10, b"", 8, b"xy")
    assert peer_messages.decode(peer_messages.encode(piece)) == piece
    with pytest.raises(ValueError, match="a piece up to 11 of a file of 10 bytes"):
        peer_messages.SnapshotPiece(1, 2, 1, "id", 10, b"", 9, b"xy")


def test_broken_text_is_an_unknown_command() -> None:
    """A log entry whose text is no UTF-8 is one that this release can't read."""
    broken = cmd.encode(cmd.Configuration(["n1:1"], [])).replace(b"n1", b"\xff\xfe")
    with pytest.raises(cmd.UnknownCommand):
        cmd.decode(broken)

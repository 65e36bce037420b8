"""The digest of the state: a pure function of what is there, whatever led to it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict.machine import commands as cmd
from replidict.machine import digest
from replidict.machine.changes import Item, Session
from replidict.machine.codec import DEFAULT_CODEC, encode, encode_key
from replidict.machine.digest import StateDigest, digest_of
from replidict.machine.state_machine import StateMachine
from tests.test_state_machine import _histories, replay


def loaded(machine: StateMachine, order: Random | None = None) -> StateMachine:
    """Another machine that was given what this one holds; sessions and kept rows in any order."""
    again = StateMachine(DEFAULT_CODEC)
    rows = [(item.position, item.key, item.value, item.revision) for item in machine.items.values()]
    sessions, kept = list(machine.sessions.items()), list(machine.kept.items())
    if order is not None:
        order.shuffle(sessions)
        order.shuffle(kept)
    again.load(
        rows, sessions, index=machine.applied_index, revision=machine.revision,
        next_position=machine._next_position, kept=kept,
    )  # fmt: skip
    return again


@settings(max_examples=60, deadline=None)
@given(_histories(), st.lists(st.integers(0, 30), max_size=4), st.integers(0, 5), st.randoms())
def test_the_digest_depends_on_the_state_alone(
    history: list[bytes], cuts: list[int], known: int, order: Random
) -> None:
    """Applied at once or in pieces with the digest made in between, loaded, loaded midway and applied on: a state has
    one digest, however many hashes are remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "KNOWN_ROWS", known)
        whole = replay(history)
        whole.take_changes()
        machine = StateMachine(DEFAULT_CODEC)
        for cut in sorted(cuts):
            replay(history[:cut], machine)
            machine.take_changes()
            if order.random() < 0.5:
                machine.digest()
            if order.random() < 0.5:
                machine = loaded(machine)
        replay(history, machine)
        machine.take_changes()
        assert machine.digest() == whole.digest() == loaded(whole, order).digest()


def test_the_digest_is_the_same_everywhere() -> None:
    """What is hashed, and how, stays as it is: another digest of the same state would stop nodes (rule 3)."""
    state = StateDigest()
    state.load(
        [Item(encode_key("key"), encode("value"), 7, 3), Item(encode_key(("a", 1)), b"x" * 5_000, 8, 4)],
        {5: Session(2, 9, ((1, [True, 7, b"bytes", None, [b"a", b"b"]]), (2, ["LockLost: in words"])))},
        {"level": b"\x02"},
    )
    assert digest_of(state.settle(), 8, 5).hex() == "d8c400adedc07df9a2d7e5f658f11d3b"


ITEM = Item(encode_key("key"), encode("value"), 7, 3)
SESSION = Session(2, 9, ((1, [True, 7]), (2, ["LockLost: gone"])))
replace = msgspec.structs.replace


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state[0].__setitem__(0, replace(ITEM, key=encode_key("kez"))),
        lambda state: state[0].__setitem__(0, replace(ITEM, value=encode("valuf"))),
        lambda state: state[0].__setitem__(0, replace(ITEM, revision=6)),
        lambda state: state[0].__setitem__(0, replace(ITEM, position=2)),
        lambda state: state[0].clear(),
        lambda state: state[1].update({5: replace(SESSION, sequence=3)}),
        lambda state: state[1].update({5: replace(SESSION, used=8)}),
        lambda state: state[1].update({5: replace(SESSION, replies=((1, [False, 7]), *SESSION.replies[1:]))}),
        lambda state: state[1].update({5: replace(SESSION, replies=((1, [True, 7]), (2, ["LeaseLost: gone"])))}),
        lambda state: state[1].update({6: state[1].pop(5)}),
        lambda state: state[1].clear(),
        lambda state: state[2].update(token=b"\x02"),
        lambda state: state[2].update(tokem=state[2].pop("token")),
        lambda state: state[2].clear(),
        lambda state: state[3].update(revision=8),
        lambda state: state[3].update(next_position=5),
    ],
)
def test_whatever_differs_makes_another_digest(change: Callable[[Any], None]) -> None:
    """A key, a value, a revision, a place in the order, a session, a reply, anything else that is kept, a counter."""

    def made(state: Any) -> bytes:
        sums = StateDigest()
        sums.load(*state[:3])
        return digest_of(sums.settle(), **state[3])

    state: Any = ([ITEM], {5: SESSION}, {"token": b"\x01"}, {"revision": 7, "next_position": 4})
    before = made(state)
    change(state)
    assert made(state) != before


def test_words_make_no_difference() -> None:
    """In which words an operation was refused may differ between releases (rule 4)."""
    sums = [StateDigest(), StateDigest()]
    for each, words in zip(sums, ("in these words", "in others"), strict=True):
        each.load([], {5: Session(2, 9, ((2, [f"EncodingError: {words}"]),))}, {})
    assert sums[0].settle() == sums[1].settle()


def test_what_gathers_is_bounded() -> None:
    """However seldom the digest is asked for, no more than so many old rows are kept for it (rule 2)."""
    machine = StateMachine(DEFAULT_CODEC)
    machine.apply(1, cmd.encode(cmd.OpenSession(b"nonce")))
    for number in range(3 * digest.GATHER_ROWS):
        put = cmd.Put(encode_key(f"key {number}"), encode(number))
        machine.apply(number + 2, cmd.encode(cmd.Batch(1, number + 1, number, [put])))
        machine.take_changes()
        assert len(machine._digest.changed) < digest.GATHER_ROWS

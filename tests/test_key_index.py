"""Keys in order: the index is right whatever happens while it is filled, costs nothing before, and holds up nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replidict import ReplicatedDict
from replidict.machine import commands as cmd
from replidict.machine.changes import Item
from replidict.machine.codec import encode, encode_key
from replidict.machine.key_index import KeyIndex
from replidict.machine.state_machine import StateMachine
from replidict.node.consistent_reads import keys_in_order, pairs_in_order, within_a_step
from tests.clusters import Dict
from tests.test_dict import QUICK
from tests.test_transactions_machine import do, opened, put


@pytest.fixture
def d(tmp_path: Path) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path / "d", options=QUICK) as opened:
        yield opened


def held(machine: StateMachine) -> tuple[list[str], list[bytes]]:
    held = machine.moment()
    texts = sorted(key for key in held if isinstance(key, str))
    return texts, sorted(item.key for key, item in held.items() if not isinstance(key, str))


def indexed(machine: StateMachine) -> tuple[list[str], list[bytes]]:
    index = machine.key_index
    assert index is not None
    texts, others = index.texts("", None, None), index.others(None, None)
    assert texts is not None and others is not None
    return texts, others


_keys = st.sampled_from(["a", "ab", "b", 1, True, (1,), None])
_operations = st.one_of(
    st.builds(put, _keys, st.integers(0, 3)),
    st.builds(cmd.Delete, _keys.map(encode_key)),
    st.builds(cmd.PopItem),
    st.builds(lambda key: cmd.Update([(encode_key(key), encode(1)), (encode_key("z"), encode(2))]), _keys),
    st.builds(cmd.Clear),
    st.builds(lambda key: cmd.Transact([], [cmd.Delete(encode_key(key)), put("a", 1)]), _keys),
)


class _Halfway(dict[Any, Any]):
    """A copy of a map during whose reading something else happens."""

    def __init__(self, items: Mapping[Any, Item], then: Any) -> None:
        super().__init__(items)
        self._then = then

    def __iter__(self) -> Iterator[Any]:
        self._then()
        self._then = lambda: None
        return super().__iter__()


@given(st.lists(_operations, max_size=6), st.lists(_operations, max_size=6), st.lists(_operations, max_size=6))
def test_nothing_is_left_out(before: list[Any], meanwhile: list[Any], after: list[Any]) -> None:
    """Whatever changes before, while and after it is filled, an index that is still the machine's has exactly the keys
    that are there; one that was dropped meanwhile, because everything went, is not used."""
    machine = opened()
    for operation in before:
        do(machine, operation)
    index = machine.key_index = KeyIndex()
    early, late = meanwhile[:3], meanwhile[3:]
    for operation in early:
        do(machine, operation)
    index.fill(_Halfway(machine.moment(), lambda: [do(machine, operation) for operation in late]))
    if machine.key_index is index:
        assert indexed(machine) == held(machine)
    for operation in after:
        do(machine, operation)
        if machine.key_index is index:
            assert indexed(machine) == held(machine)


def test_a_snapshot_ends_the_index() -> None:
    """An installed snapshot replaces every key, and a scan afterwards begins anew."""
    machine = opened()
    machine.key_index = KeyIndex()
    machine.load([(1, encode_key("x"), encode(1), 1)], (), index=9, revision=5, next_position=2)
    assert machine.key_index is None and machine.settled == machine.revision == 5


def test_it_is_not_made_unasked(d: Dict) -> None:
    """Writes and plain reads make no index; the first scan does, and it stays."""
    d.update({"a": 1, "b": 2})
    assert list(d) == ["a", "b"] and d._machine.key_index is None
    d.scan()
    index = d._machine.key_index
    d["c"] = 3
    assert d.scan("c") == [("c", 3)] and d._machine.key_index is index


def test_keys_of_other_types_come_last(d: Dict) -> None:
    """Without a prefix the other keys follow, by their bytes, and pages may begin among them."""
    d.update({"b": 1, 2: 1, "a": 1, (1,): 1})
    node = d._machine
    others = sorted(encode_key(key) for key in (2, (1,)))
    assert keys_in_order(node, "", None, None) == (["a", "b"], others)
    assert keys_in_order(node, "", None, 3) == (["a", "b"], others[:1])
    assert keys_in_order(node, "", None, 2) == (["a", "b"], [])
    assert keys_in_order(node, "", others[0], 5) == ([], others[1:])
    assert keys_in_order(node, "a", None, None) == (["a"], [])


def test_a_step_between_two_reads_is_noticed(d: Dict) -> None:
    """Several reads are repeated when an entry begins to be applied between them; one that is being applied, and so is
    seen or not, is not counted as surely included."""
    machine = d._machine
    d.increment("y")
    before = machine.revision
    steps = iter([1, 0, 0, 0])

    def read() -> int:
        machine.revision += next(steps)  # as an entry begins
        return machine.revision

    assert within_a_step(machine, read) == (before, before + 1)
    machine.settled = machine.revision
    assert within_a_step(machine, read) == (before + 1, before + 1)
    assert d.scan("y") == [("y", 1)]
    machine.settled -= 1  # an entry is being applied: a page is taken from a copy, and nobody waits
    assert pairs_in_order(machine, "y", None, None)[0] == before


def test_a_scan_that_is_always_disturbed_ends(d: Dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that can't be read one by one between two changes are taken from a copy."""
    d.update({f"k{number}": number for number in range(50)} | {1: 1})
    texts = KeyIndex.texts

    def disturbed(self: KeyIndex, *arguments: Any) -> list[str] | None:
        found = texts(self, *arguments)
        if self is d._machine.key_index:
            d["k1"] = d["k1"] + 1
        return found

    monkeypatch.setattr(KeyIndex, "texts", disturbed)
    revision, pairs = pairs_in_order(d._machine, "k1", "k10", 3)
    assert [key for key, _ in pairs] == ["k11", "k12", "k13"] and revision == d.revision

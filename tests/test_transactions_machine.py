"""Transactions and increments as the state machine does them: whole or not at all, and the same everywhere (promise
13)."""

from __future__ import annotations

import decimal
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict.machine import commands as cmd
from replidict.machine.arithmetic import DIGITS, add
from replidict.machine.codec import DEFAULT_CODEC, decode, encode, encode_key
from replidict.machine.outcomes import BatchApplied
from replidict.machine.state_machine import StateMachine

KEYS = ["a", "b", "c", 1, True]
"""The last two are one key."""


def opened(codec: Any = DEFAULT_CODEC) -> StateMachine:
    machine = StateMachine(codec)
    machine.apply(1, cmd.encode(cmd.OpenSession(b"n")))
    return machine


def do(machine: StateMachine, operation: cmd.Operation) -> cmd.Result:
    """Apply one operation."""
    index = machine.applied_index + 1
    outcome = machine.apply(index, cmd.encode(cmd.Batch(1, index - 1, index - 2, [operation])))
    assert isinstance(outcome, BatchApplied) and isinstance(outcome.results, list)
    return outcome.results[0]


def put(key: Any, value: Any) -> cmd.Put:
    return cmd.Put(encode_key(key), encode(value))


def inc(key: Any, by: Any = 1, default: Any = 0) -> cmd.Increment:
    return cmd.Increment(encode_key(key), encode(by), encode(default))


def content(machine: StateMachine) -> list[tuple[Any, Any, int]]:
    return [(key, decode(item.value), item.revision) for key, item in machine.moment().items()]


# -- against a plain model -------------------------------------------------------------------------------------------

_numbers = st.integers(0, 5) | st.floats(-4, 4, width=16) | st.decimals(-4, 4, places=1)
_values = _numbers | st.sampled_from(["text", None, True])
_keys = st.sampled_from(KEYS)
_writes = st.one_of(
    st.tuples(st.just("put"), _keys, _values),
    st.tuples(st.just("delete"), _keys, st.none()),
    st.tuples(st.just("increment"), _keys, _numbers),
)
_steps = st.tuples(
    st.lists(st.tuples(_keys, st.sampled_from(["as it is", "absent", "older", "newer"])), max_size=3),
    st.sampled_from([None, None, "as it is", "older"]),
    st.lists(_writes, max_size=4),
)


class Model:
    """What a transaction does, said with a dict that is copied."""

    def __init__(self) -> None:
        self.content: dict[Any, tuple[Any, int]] = {}
        self.revision = 0

    def transact(self, checks: list[tuple[Any, int | None]], whole: int | None, writes: list[Any]) -> Any:
        failed = [key for key, seen in checks if self.content.get(key, (None, None))[1] != seen]
        if failed or whole not in (None, self.revision):
            return [encode_key(key) for key in failed]
        after, changed = dict(self.content), False
        for kind, key, argument in writes:
            if kind == "delete":
                changed |= after.pop(key, None) is not None
                continue
            value = argument
            if kind == "increment":
                present = after[key][0] if key in after else 0
                if type(present) not in (int, float, Decimal) or {type(present), type(value)} == {float, Decimal}:
                    return encode_key(key)
                value = present + value
            after[key] = (value, self.revision + 1)
            changed = True
        self.content = after
        self.revision += changed
        return self.revision


@settings(max_examples=300)
@given(st.lists(_steps, max_size=8))
def test_a_transaction_does_what_a_dict_that_is_copied_would(steps: list[Any]) -> None:
    """All writes or none, with one revision, in order, only if every check holds: after any transactions, contents,
    order, revisions and results are those of a plain model."""
    machine, model = opened(), Model()
    for wanted, whole_wanted, writes in steps:
        checks: list[tuple[Any, int | None]] = []
        for key, kind in wanted:
            present = model.content.get(key, (None, None))[1]
            seen = {"as it is": present, "absent": None, "older": (present or 1) - 1, "newer": model.revision + 1}[kind]
            checks.append((key, seen))
        whole = {None: None, "as it is": model.revision, "older": model.revision - 1}[whole_wanted]
        made: list[Any] = [
            put(key, argument) if kind == "put"
            else cmd.Delete(encode_key(key)) if kind == "delete" else inc(key, argument)
            for kind, key, argument in writes
        ]  # fmt: skip
        operation = cmd.Transact([(encode_key(key), seen) for key, seen in checks], made, whole)
        assert do(machine, operation) == model.transact(checks, whole, writes)
        assert [(key, repr(value), revision) for key, value, revision in content(machine)] == [
            (key, repr(value), revision) for key, (value, revision) in model.content.items()
        ]
        assert machine.revision == machine.settled == model.revision


def test_a_key_of_an_earlier_life_is_another_key() -> None:
    """A key that was deleted and stored again with the same value conflicts, and so does one that was deleted: neither
    is the one that was seen, nor absent."""
    machine = opened()
    assert do(machine, put("a", 1)) == 1
    do(machine, cmd.Delete(encode_key("a")))
    a = encode_key("a")
    assert do(machine, cmd.Transact([(a, 1)], [put("b", 1)])) == [a]
    assert do(machine, cmd.Transact([(a, 0)], [put("b", 1)])) == [a]
    do(machine, put("a", 1))
    assert do(machine, cmd.Transact([(a, 1)], [put("b", 1)])) == [a]
    assert do(machine, cmd.Transact([(a, None)], [put("b", 1)])) == [a]
    assert do(machine, cmd.Transact([(a, 3)], [put("b", 1)])) == 4


def test_a_change_anywhere_is_one_of_the_whole() -> None:
    """A transaction that depends on the whole dict conflicts, with no key to name, when any key has changed."""
    machine = opened()
    do(machine, put("a", 1))
    assert do(machine, cmd.Transact([], [put("n", 1)], 0)) == []
    assert do(machine, cmd.Transact([], [put("n", 1)], 1)) == 2


def test_what_cannot_be_read_changes_nothing() -> None:
    """A key that can't be decoded, in a check or behind other writes, refuses the whole transaction."""
    machine = opened()
    assert isinstance(do(machine, cmd.Transact([(b"\xc1", 1)], [put("a", 1)])), str)
    assert isinstance(do(machine, cmd.Transact([], [put("a", 1), cmd.Put(b"\xc1", b"")])), str)
    assert content(machine) == []


def test_a_snapshot_holds_what_transactions_did() -> None:
    """The rows that a transaction leaves for the disk make the same state again, also of a key removed and stored."""
    machine = opened()
    do(machine, put("a", 1))
    do(machine, put("b", 2))
    do(machine, cmd.Transact([], [cmd.Delete(encode_key("a")), put("a", 3), inc("b"), inc("n", 0.5)]))
    changes = machine.take_changes()
    table: dict[int, Any] = {}
    for position, key, value, revision in changes.rows:
        table[position] = None if value is None else (position, key, value, revision)
    again = StateMachine(DEFAULT_CODEC)
    rows = [table[position] for position in sorted(table) if table[position] is not None]
    again.load(rows, (), index=changes.index, revision=changes.revision, next_position=changes.next_position)
    assert list(again.items.items()) == list(machine.items.items())
    assert [key for key, _, _ in content(machine)] == ["b", "a", "n"]


# -- increments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "by", "expected"),
    [
        (1, 1, 2),
        (2**63 - 1, 1, 2**63),
        (10**4000, -1, 10**4000 - 1),
        (1, 0.5, 1.5),
        (0.5, 1, 1.5),
        (0.1, 0.2, 0.1 + 0.2),
        (-0.0, 0, 0.0),
        (math.inf, 1, math.inf),
        (1, Decimal("0.10"), Decimal("1.10")),
        (Decimal("0.10"), 1, Decimal("1.10")),
        (Decimal("12345678901234567890123456789012345678901234567890.01"), Decimal("0.01"),
         Decimal("12345678901234567890123456789012345678901234567890.02")),
        (Decimal("Infinity"), 1, Decimal("Infinity")),
        (Decimal("-0"), Decimal("0"), Decimal("0")),
    ],
)  # fmt: skip
def test_sums(present: Any, by: Any, expected: Any) -> None:
    """Sums are Python's for int and float, and exact for Decimal; the new value is the result and is stored."""
    machine = opened()
    do(machine, put("n", present))
    assert do(machine, inc("n", by)) == encode(expected)
    assert machine.items["n"].value == encode(expected)


@pytest.mark.parametrize("default", [0, 5, 0.5, Decimal("1.5")])
def test_an_absent_key_counts_as_the_default(default: Any) -> None:
    """The first increment of a key adds to the default."""
    machine = opened()
    assert do(machine, inc("n", 1, default)) == encode(default + 1)


@pytest.mark.parametrize(
    ("present", "by"),
    [
        ("1", 1), (None, 1), (True, 1), (b"1", 1), ([1], 1), ({"a": 1}, 1), ((1,), 1),
        (0.5, Decimal(1)), (Decimal(1), 0.5),
    ],
)  # fmt: skip
def test_other_kinds_are_refused(present: Any, by: Any) -> None:
    """What is no int, float or Decimal is not added to, nor a float to a Decimal; nothing changes."""
    machine = opened()
    do(machine, put("n", present))
    before = content(machine)
    assert do(machine, inc("n", by)) is None
    assert do(machine, cmd.Transact([], [put("a", 1), inc("n", by)])) == encode_key("n")
    assert content(machine) == before and machine.revision == 1


@pytest.mark.parametrize(
    ("present", "by"),
    [
        (1.7e308, 1.7e308),
        (10**400, 0.5),
        (0.5, 10**400),
        (Decimal("1E+700"), 1),
        (10**700, Decimal("0.5")),
        (2 ** (4 * DIGITS), Decimal(0)),
        (Decimal("9E+425000000"), Decimal("9E+425000000")),
        (Decimal("1E+1000000000"), Decimal("1E+1000000000")),
    ],
)
def test_what_cannot_be_kept_is_refused(present: Any, by: Any) -> None:
    """No counter becomes infinite, and no Decimal is rounded: such a sum is refused and changes nothing."""
    machine = opened()
    do(machine, put("n", present))
    assert do(machine, inc("n", by)) is False
    assert machine.items["n"].value == encode(present) and machine.revision == 1


def test_a_nan_has_one_form() -> None:
    """The NaN of a sum is the same bytes wherever it comes from."""
    one = add(math.inf, -math.inf)
    negative = -math.nan
    assert encode(one) == encode(add(negative, 1)) == encode(add(1, math.nan)) == b"\xcb\x7f\xf8" + bytes(6)


def test_a_value_that_this_machine_cannot_read_is_no_number() -> None:
    """A stored value that this machine can't read, a time in a zone that it does not have, is refused as it is on a
    machine that can; so the result is the same everywhere."""
    pack = msgspec.msgpack.encode
    zoned = pack(msgspec.msgpack.Ext(8, pack([2026, 1, 1, 0, 0, 0, 0, 0, "Nowhere/Never"])))
    with pytest.raises(Exception, match="Nowhere"):
        decode(zoned)
    machine = opened()
    do(machine, cmd.Put(encode_key("n"), zoned))
    assert do(machine, inc("n")) is None


@contextmanager
def odd_machine() -> Iterator[None]:
    """A thread whose settings are not the usual ones."""
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    with decimal.localcontext() as context:
        context.prec, context.rounding, context.capitals, context.Emax = 3, decimal.ROUND_UP, 0, 10
        context.traps[decimal.Inexact] = context.traps[decimal.FloatOperation] = True
        try:
            yield
        finally:
            sys.set_int_max_str_digits(digits)


_any_decimals = st.decimals(allow_nan=True, allow_infinity=True)
_large = st.integers(-(10**1500), 10**1500)


@settings(max_examples=300)
@given(_large | st.floats() | _any_decimals, _large | st.floats() | _any_decimals)
def test_sums_depend_on_nothing_but_the_numbers(present: Any, by: Any) -> None:
    """Decimal contexts, and the limit on the digits of ints, of the thread that applies it change no sum."""
    outcomes = []
    for setting in (odd_machine, decimal.localcontext):
        machine = opened()
        do(machine, cmd.Put(encode_key("n"), encode(present)))
        operation = inc("n", by)
        with setting():
            outcomes.append((do(machine, operation), machine.items["n"]))
    assert outcomes[0] == outcomes[1]


class _Words:
    """A codec of the user's: numbers as text."""

    def encode(self, value: Any, /) -> bytes:
        return repr(value).encode()

    def decode(self, data: bytes, /) -> Any:
        return int(data) if data.isdigit() else data.decode()


def test_a_codec_of_the_user_reads_and_writes_the_number() -> None:
    """With a codec of the user's the present value is what that makes of it, and the new one is stored as it says."""
    machine = opened(_Words())
    do(machine, cmd.Put(encode_key("n"), b"41"))
    do(machine, cmd.Put(encode_key("t"), b"text"))
    assert do(machine, inc("n")) == b"42"
    assert do(machine, inc("t")) is None
    assert do(machine, inc("m", 5)) == b"5"


class _Careless(_Words):
    def encode(self, value: Any, /) -> bytes:
        return "text"  # type: ignore[return-value]


class _Broken:
    """A codec that can't do anything."""

    def encode(self, value: Any, /) -> bytes:
        raise ZeroDivisionError

    def decode(self, data: bytes, /) -> Any:
        raise ZeroDivisionError


def test_a_codec_that_gives_no_bytes_is_refused() -> None:
    """What a careless codec gives is never stored, in an increment or in a transaction, and stops no node."""
    for codec in (_Careless(), _Broken()):
        machine = opened(codec)
        assert do(machine, inc("n")) is False
        assert do(machine, cmd.Transact([], [inc("n")])) == encode_key("n")
        do(machine, cmd.Put(encode_key("t"), b"text"))
        assert do(machine, inc("t")) is None
        assert list(machine.items) == ["t"]

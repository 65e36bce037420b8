"""Which keys are the same, and which values are equal, is the same everywhere, whatever the settings (promise 5)."""

from __future__ import annotations

import datetime as dt
import enum
import os
import subprocess
import sys
import threading
from collections import namedtuple
from decimal import Decimal, FloatOperation, localcontext
from typing import Any
from uuid import UUID, SafeUUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict.errors import EncodingError
from replidict.machine.codec import decode, encode, encode_key
from replidict.machine.decoding import MAX_DEPTH
from replidict.machine.equality import equal, key_at, place, place_of

_offsets = st.sampled_from([0, 1, 3600, -1800]).map(lambda s: dt.timezone(dt.timedelta(seconds=s)))
_leaves = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 1.0, 0.5, -0.0, "", "a", b"", b"a", "1", 2**64, 10**30, 1e30]),
    st.sampled_from(["1", "1.0", "0.5", "1E+30", "1E+2", "1E+900000", "-0", "Infinity", "0.1"]).map(Decimal),
    st.sampled_from([float("inf"), float("-inf"), 0.1, 100, 10**40, "\ud800", 2**70, 2.0**70, Decimal(2**64)]),
    st.builds(UUID, int=st.integers(0, 2), is_safe=st.sampled_from(SafeUUID)),
    st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 2)),
    st.builds(dt.datetime, st.just(2020), st.just(1), st.just(1), st.integers(0, 1), fold=st.integers(0, 1)),
    st.builds(dt.datetime, st.just(2020), st.just(1), st.just(1), st.integers(0, 1), tzinfo=_offsets),
    st.builds(dt.time, st.integers(0, 1), tzinfo=st.none() | _offsets),
    st.timedeltas(dt.timedelta(0), dt.timedelta(0, 1)),
)  # fmt: skip
_keys = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=6
)
_values = st.recursive(
    _leaves | st.sampled_from([bytearray(b"a"), bytearray()]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.sets(_keys, max_size=3),
        st.dictionaries(_keys, inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(_keys, _keys)
def test_places_are_those_of_dict(left: Any, right: Any) -> None:
    """Two keys stand in one place exactly if a dict takes them for one, and each is found there as it was stored."""
    one, other = encode_key(left), encode_key(right)
    assert (place(one) == place(other)) is (right in {left: 0})
    assert place_of(left) == place(one)
    assert key_at(place(one), one) == left


@settings(max_examples=400, deadline=None)
@given(_values, _values)
def test_values_are_equal_as_they_are_to_python(left: Any, right: Any) -> None:
    """Encoded values are equal exactly if the values are, by the quick way and by the other."""
    for quick in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not quick:
                patch.setattr("replidict.machine.equality._quick", _never)
            assert equal(encode(left), encode(right)) is (left == right)


def _never(data: bytes) -> Any:
    raise RecursionError


class Color(enum.IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


class Text(str):
    pass


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        (Point("a", 1), ("a", 1)),
        ((Color.RED, Text("b")), (1, "b")),
        (Color.RED, 1),
        (Text("b"), "b"),
        (dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)),
        ((True, 1.0), (1, 1)),
    ],
)
def test_a_key_that_equals_a_stored_one_finds_it(asked: Any, stored: Any) -> None:
    """What could not be stored itself still finds what it equals, as in a dict."""
    assert place_of(asked) == place(encode_key(stored))


@pytest.mark.parametrize("key", [(object(),), (b"a",), object(), (1, float("nan"))])
def test_a_key_that_equals_none_finds_nothing(key: Any) -> None:
    """A key that can't be stored is found nowhere, also if it looks like a place."""
    assert {place(encode_key(b"a")): 1, place(encode_key((1,))): 2}.get(place_of(key)) is None


def test_a_trap_of_this_machine_makes_no_difference() -> None:
    """A machine whose program traps the mixing of floats and Decimals finds keys where the others do (promise 5)."""
    key = encode_key(("price", Decimal("0.1")))
    expected = place(key)
    with localcontext() as context:
        context.traps[FloatOperation] = True
        assert place(key) == expected


@pytest.mark.parametrize(("time", "hours"), [(dt.datetime.max, -5), (dt.datetime.min, 5)])
def test_a_time_at_the_end_of_the_calendar_is_found(time: dt.datetime, hours: int) -> None:
    """A time that no calendar has in UTC is a key like any other: what can be stored can be looked up."""
    key = time.replace(tzinfo=dt.timezone(dt.timedelta(hours=hours)))
    assert place_of(key) == place(encode_key(key))


@pytest.mark.parametrize("key", [[1], {}, (1, [2]), bytearray()])
def test_what_is_not_hashable_is_no_key(key: Any) -> None:
    """As in a dict, that is a `TypeError`."""
    with pytest.raises(TypeError, match="unhashable"):
        place_of(key)


NANS = [float("nan"), Decimal("NaN"), Decimal("sNaN"), [Decimal("sNaN")], {"a": Decimal("sNaN")}]


@pytest.mark.parametrize("nan", NANS, ids=repr)
def test_nan_equals_itself_alone(nan: Any) -> None:
    """A value with a NaN in it, also a signalling one, equals its own bytes and nothing else, and nothing is raised."""
    assert equal(encode(nan), encode(nan))
    assert not equal(encode(nan), encode([nan, 1]))
    assert not equal(encode([nan, 1]), encode([nan, 1.0]))
    assert not equal(encode(1), encode(nan))


def nest(depth: int) -> Any:
    value: Any = 1
    for number in range(depth):
        value = frozenset([value]) if number % 3 == 2 else (value,)
    return value


def test_depth_is_bounded_by_a_number_alone() -> None:
    """A key may be as deep as a value, and no deeper, in whatever way it comes."""
    deepest = nest(MAX_DEPTH)
    assert key_at(place(encode_key(deepest)), encode_key(deepest)) == deepest
    with pytest.raises(EncodingError):
        encode_key(nest(MAX_DEPTH + 1))
    payload = b"\x91" + encode(deepest)
    with pytest.raises(EncodingError):
        place(b"\xc8" + len(payload).to_bytes(2, "big") + b"\x03" + payload)


_SETTINGS = """
import sys
from decimal import DefaultContext, InvalidOperation, setcontext, Context
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, decode, encode, encode_key
from replidict.machine.state_machine import StateMachine
def nest(wrap):
    value = 1
    for _ in range(60): value = wrap(value)
    return value
puts = [cmd.Put(encode_key(key), encode(0)) for key in
        ("a", b"a", "", b"", 0, None, ("a", 1), (b"a", 1), nest(lambda v: (v,)), nest(lambda v: frozenset([v])))]
pairs = [(nest(lambda v: [v]), nest(lambda v: [v])[:] ), ([nest(lambda v: (v,))], [nest(lambda v: (v,)), 2])]
from decimal import Decimal
old, new = encode({"x": [1, Decimal("sNaN")]}), encode({"x": [1.0, Decimal("sNaN")]})
both = encode([{"a": 1}, 1]), encode([{b"a": 1}, 1.0])
deep = encode([nest(lambda v: [v])[0], 1]), encode([nest(lambda v: [v])[0], 1.0])
operations = [
    *puts, cmd.Update([(encode_key(("u", b"u")), b"x"), (encode_key(nest(lambda v: (v, "a"))), b"y")]),
    cmd.Put(encode_key("n"), old), cmd.CompareAndSet(encode_key("n"), new, encode(1)),
    cmd.Put(encode_key("b"), both[0]), cmd.CompareAndSet(encode_key("b"), both[1], encode(1)),
    cmd.Put(encode_key("d"), deep[0]), cmd.CompareAndSet(encode_key("d"), deep[1], encode(1)),
    cmd.Delete(b"\\xc1"), cmd.Pop(encode_key((b"a", 1))),
]
# A set that not every interpreter can make, as another machine has encoded it.
odd = b"\\xc7\\x06\\x05\\x92\\xa1a\\xc4\\x01a"
operations += [cmd.Put(odd, b"z"), cmd.Add(odd, b"z")]
log = [cmd.encode(cmd.OpenSession(b"n")), cmd.encode(cmd.Batch(1, 1, 0, operations))]
PREPARE
machine = StateMachine(DEFAULT_CODEC)
results = [machine.apply(index, command) for index, command in enumerate(log, 1)]
sys.setrecursionlimit(1000)
print(results, list(machine.items.items()), machine.sessions)
"""


def applied(prepare: str, *flags: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", _SETTINGS.replace("PREPARE", prepare)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("prepare", "flags", "environment"),
    [
        pytest.param("", ["-bb"], {}, id="bytes compared with text"),
        pytest.param("", ["-W", "error"], {}, id="warnings are errors"),
        pytest.param("sys.setrecursionlimit(60)", [], {}, id="little recursion"),
        pytest.param("sys.setrecursionlimit(100_000)", [], {}, id="much recursion"),
        pytest.param("sys.set_int_max_str_digits(640)", [], {}, id="few digits"),
        pytest.param("setcontext(Context(prec=1, traps=[]))", [], {}, id="a decimal context that traps nothing"),
        pytest.param("", [], {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0"}, id="hash seed and locale"),
        pytest.param("", [], {"PYTHONTZPATH": "/nowhere"}, id="no time zones"),
    ],
)
def test_settings_do_not_matter(prepare: str, flags: list[str], environment: dict[str, str]) -> None:
    """A log is applied alike whatever the interpreter is set to: outcomes, keys, values and sessions (promise 5)."""
    expected = applied("", PYTHONHASHSEED="1")
    assert "error" not in expected
    assert applied(prepare, *flags, **environment) == expected


def test_small_stacks_are_enough() -> None:
    """A thread with the smallest stack encodes, decodes and looks up what is as deep as can be."""
    failed: list[BaseException] = []

    def use() -> None:
        try:
            for value in (nest(MAX_DEPTH), nest(MAX_DEPTH - 1)):
                assert place_of(value) == place(encode_key(value))
            lists: Any = 1
            for _ in range(MAX_DEPTH):
                lists = {"a": [lists]} if type(lists) is int else [lists] if len(repr(lists)) < 70 else (lists,)
            data = encode(nest(MAX_DEPTH))
            assert equal(data, encode(decode(data)))
        except Exception as error:  # noqa: BLE001 -- told to the thread that waits
            failed.append(error)

    before = threading.stack_size(64 * 1024)
    try:
        thread = threading.Thread(target=use)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert not failed

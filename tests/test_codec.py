"""The codec: promise 6 (faithful) and promise 7 (no pickle), and the rules of `replidict.machine.codec`."""

from __future__ import annotations

import copy
import datetime as dt
import math
import random
import struct
import subprocess
import sys
import tracemalloc
import zoneinfo
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from decimal import Decimal, localcontext
from enum import IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict.errors import EncodingError
from replidict.machine.codec import (
    DEFAULT_CODEC,
    FaithfulCodec,
    decode,
    decode_key,
    encode,
    encode_key,
    is_portable,
)
from replidict.machine.decoding import MAX_DEPTH
from replidict.machine.equality import equal

# Strategies: every type that is kept, nested.

offsets = st.builds(
    dt.timezone,
    st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59)),
)
named_offsets = st.builds(lambda zone, name: dt.timezone(zone.utcoffset(None), name), offsets, st.text(max_size=5))
fixed_zones = st.none() | st.just(dt.UTC) | offsets | named_offsets
zones = fixed_zones | st.sampled_from(["UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata"]).map(ZoneInfo)
any_text = st.text(st.characters(exclude_categories=[])) | st.text()
integers = st.integers() | st.integers(60, 70).flatmap(
    lambda bits: st.sampled_from([s * 2**bits + d for s in (1, -1) for d in (-1, 0, 1)])
)


def scalars(zones: st.SearchStrategy[Any], nan: bool) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        integers,
        st.floats(allow_nan=nan),
        any_text,
        st.binary(max_size=20),
        st.decimals(allow_nan=nan),
        st.sampled_from([Decimal("-0"), Decimal("0E+7"), Decimal("1.10"), Decimal("-Infinity"), Decimal("1E-99999")]),
        st.builds(
            lambda t, zone, fold: t.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, st.sampled_from([0, 1])
        ),
        st.builds(lambda t, zone, fold: t.replace(tzinfo=zone, fold=fold), st.times(), zones, st.sampled_from([0, 1])),
        st.dates(),
        st.timedeltas(),
        st.builds(UUID, bytes=st.binary(min_size=16, max_size=16), is_safe=st.sampled_from(SafeUUID)),
    )


hashables = st.recursive(
    scalars(zones, nan=True).filter(lambda v: not (type(v) is Decimal and v.is_snan())),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
keys = st.recursive(
    scalars(fixed_zones, nan=False),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=6,
)
values = st.recursive(
    scalars(zones, nan=True) | st.sampled_from([Decimal("sNaN"), Decimal("-NaN17")]) | st.binary().map(bytearray),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=15,
)


def same(a: Any, b: Any) -> bool:
    """Equal and of exactly the same types, down to the sign of zero, the payload of NaN and the name of a zone."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, dict):
        return len(a) == len(b) and all(map(same, list(a.items()), list(b.items())))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (dt.datetime, dt.time)):
        return repr(a) == repr(b)  # which tells the fold, and the zone with its name or key
    if isinstance(a, UUID):
        return a == b and a.is_safe is b.is_safe
    return bool(a == b)


@given(values)
def test_round_trip(value: Any) -> None:
    """Promise 6: a value read back equals what was written and has its exact types, all the way down."""
    assert same(decode(encode(value)), value)


@given(keys)
def test_key_round_trip(key: Any) -> None:
    """Promise 6 holds for keys, and a decoded key finds what the original key stored."""
    back = decode_key(encode_key(key))
    assert same(back, key)
    assert {key: "found"}[back] == "found"


@given(values)
def test_encoding_repeats(value: Any) -> None:
    """Rule 2: the same value always gives the same bytes, also after a round trip."""
    assert encode(value) == encode(copy.deepcopy(value)) == encode(decode(encode(value)))


def test_huge_int() -> None:
    """An int of more digits than Python is willing to print is kept."""
    for value in (7**20_000, -(7**20_000)):
        assert decode_key(encode_key(value)) == value


def test_equal_sets_give_equal_bytes() -> None:
    """Equal sets give the same bytes, whichever way they iterate."""
    one, other = frozenset([0, 8]), frozenset([8, 0])
    assert list(one) != list(other), "chosen to collide, so that the first one in comes first"
    assert encode_key((one, frozenset([one]))) == encode_key((other, frozenset([other])))
    assert encode(set(one)) == encode(set(other))


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    """Two processes with different hash seeds give the same bytes for the same set of strings."""
    program = (
        "from replidict.machine.codec import encode; print(encode({'a', 'b', 'c', ('d', frozenset('efg'))}).hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_decimal_context_is_ignored() -> None:
    """The thread's decimal context changes neither the bytes, nor the value, nor what is refused."""
    value = Decimal("1.2345678901E+77")
    expected = encode(value)
    with localcontext() as context:
        context.prec, context.capitals, context.Emax = 2, 0, 5
        context.clear_traps()
        assert encode(value) == expected
        assert decode(expected).as_tuple() == value.as_tuple()
        with pytest.raises(EncodingError):
            decode(b"\xc7\x07\x07garbage")


def test_decoded_values_are_fresh() -> None:
    """Reads return fresh copies: changing one changes no other."""
    data = encode({"list": [1, []], "set": {1}, "array": bytearray(b"x"), (1,): {}})
    one, other = decode(data), decode(data)
    one["list"][1].append(2)
    one["set"].add(2)
    one["array"].append(2)
    one[(1,)][1] = 1
    assert other == {"list": [1, []], "set": {1}, "array": bytearray(b"x"), (1,): {}}


def test_shared_references_are_fine() -> None:
    """A part that occurs twice is kept twice."""
    part: list[Any] = [1]
    assert decode(encode([part, (part, part)])) == [[1], ([1], [1])]


def test_insertion_order_is_kept() -> None:
    """Promise 9 inside a value: a dict comes back in its insertion order, whatever its keys."""
    for keys in ([3, 1, 2], ["b", "a"], [(2,), "x", (1,), None]):
        assert list(decode(encode(dict.fromkeys(keys, 0)))) == keys


def test_utc_stays_utc() -> None:
    """`timezone.utc` comes back as that very object, and a zone with a name keeps the name."""
    assert decode(encode(dt.datetime(2024, 1, 1, tzinfo=dt.UTC))).tzinfo is dt.UTC
    named = decode(encode(dt.time(1, tzinfo=dt.timezone(dt.timedelta(0), "UTC")))).tzinfo
    assert named is not dt.UTC and named.tzname(None) == "UTC"


# Refusals.


class Colour(IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Zone(dt.tzinfo):
    def utcoffset(self, when: dt.datetime | None, /) -> dt.timedelta | None:
        return None

    dst = utcoffset

    def tzname(self, when: dt.datetime | None, /) -> str | None:
        return None


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Colour.RED, ["test_codec.Colour", "subclass of int"]),
        (Text("a"), ["test_codec.Text", "subclass of str"]),
        (Point(1, 2), ["Point", "subclass of tuple"]),
        ({"a": [1, 2, 3, OrderedDict()]}, ["at ['a'][3]", "collections.OrderedDict", "subclass of dict", "convert"]),
        ([{1: {Point(1, 2)}}], ["at [0][1][0]", "Point"]),
        ({"a": {(1, Colour.RED): 2}}, ["at ['a']<key 0>[1]", "Colour"]),
        ({7**20_000: object()}, ["at [...]", "object"]),
        (object(), ["object is not among the types kept", "codec of your own"]),
        (1j, ["complex"]),
        (memoryview(b""), ["memoryview"]),
        (range(3), ["range"]),
        (Path(), ["Path"]),
        (int, ["type"]),
        (dt.datetime(2024, 1, 1, tzinfo=Zone()), [".tzinfo", "test_codec.Zone", "use datetime.timezone"]),
        ([dt.time(tzinfo=ZoneInfo.no_cache("Europe/Paris"))], ["at [0].tzinfo", "use ZoneInfo(key)"]),
    ],
)
def test_refused(value: Any, words: list[str]) -> None:
    """Promise 6: what can't be kept is refused, in words that say what it was, where, and what to do."""
    with pytest.raises(EncodingError) as caught:
        encode(value)
    for word in words:
        assert word in str(caught.value)


def test_zone_from_a_file_is_refused() -> None:
    """A zone that a reader could not load by its key, or could load differently, is refused."""
    for root in zoneinfo.TZPATH:
        path = Path(root, "Asia", "Tokyo")
        if path.exists():
            with path.open("rb") as file:
                for key in (None, "Europe/Paris", "No/Such"):
                    file.seek(0)
                    with pytest.raises(EncodingError, match=r"at \.tzinfo.*use ZoneInfo"):
                        encode(dt.datetime(2024, 1, 1, tzinfo=ZoneInfo.from_file(file, key=key)))
            return
    pytest.skip("this machine has no time zone files")


def nest(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


WRAPS: list[Callable[[Any], Any]] = [
    lambda v: [v],
    lambda v: (v,),
    lambda v: {1: v},
    lambda v: {v: 1} if isinstance(v, int) else {(): v},
    lambda v: frozenset([v]),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_depth_limit(wrap: Callable[[Any], Any]) -> None:
    """Nesting up to MAX_DEPTH is kept, also far down a caller's stack; deeper is refused, never a RecursionError."""

    def down(frames: int, call: Callable[[], Any]) -> Any:
        return down(frames - 1, call) if frames else call()

    value = nest(MAX_DEPTH, wrap)
    assert down(500, lambda: decode(encode(value))) == value
    with pytest.raises(EncodingError, match=r"at .*\.\.\.: it is nested more than 64 containers deep"):
        encode(nest(MAX_DEPTH + 1, wrap))
    with pytest.raises(EncodingError):
        encode(nest(5_000, wrap))


def test_recursive_structures_are_refused() -> None:
    """A value that contains itself is refused, never a hang or a RecursionError."""
    loop: list[Any] = [1]
    loop += [loop, loop]
    around: dict[str, Any] = {}
    around["self"] = (around,)
    for value in (loop, around, {"x": loop}):
        with pytest.raises(EncodingError, match="contains itself"):
            encode(value)


def test_a_stack_without_room_is_an_encoding_error() -> None:
    """Where the caller has used up its stack, nothing but the right answer or an EncodingError comes out."""
    value = nest(MAX_DEPTH, lambda v: (v,))
    data = encode(value)

    def down(call: Callable[[], Any]) -> Any:
        try:
            return down(call)
        except RecursionError:
            return call()

    for call, right in ((lambda: encode(value), data), (lambda: decode(data), value)):
        try:
            found = down(call)
        except EncodingError:
            continue
        assert found == right


@pytest.mark.parametrize(
    ("key", "word"),
    [
        (math.nan, "NaN"),
        (Decimal("NaN"), "NaN"),
        (Decimal("sNaN"), "NaN"),
        ((1, frozenset([math.nan])), "NaN"),
        ([1], "list"),
        ({}, "dict"),
        (set(), "set"),
        (bytearray(), "bytearray"),
        ((1, ([],)), "list"),
        (dt.datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "timezone.utc"),
        ((dt.time(tzinfo=ZoneInfo("Europe/Paris")),), "timezone.utc"),
    ],
)
def test_refused_keys(key: Any, word: str) -> None:
    """A key that is unhashable, never equals itself, or equals others by zone files, is refused both ways."""
    with pytest.raises(EncodingError, match=word):
        encode_key(key)
    with pytest.raises(EncodingError, match=word):
        decode_key(encode(key))


def test_refused_subclass_as_key() -> None:
    """A key of a subclass is refused as a value of it is."""
    with pytest.raises(EncodingError, match="Colour"):
        encode_key(Colour.RED)


# The format on disk.

UTC_NOON = dt.datetime(2024, 2, 29, 12, 30, 15, 999999, dt.UTC)
PARIS_FOLD = dt.datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1)
GOLDEN: list[tuple[Any, str]] = [
    (None, "c0"),
    (True, "c3"),
    (False, "c2"),
    (0, "00"),
    (-1, "ff"),
    (127, "7f"),
    (2**64 - 1, "cfffffffffffffffff"),
    (-(2**63), "d38000000000000000"),
    (2**64, "c70901010000000000000000"),
    (-(2**63) - 1, "c70901ff7fffffffffffffff"),
    (1.5, "cb3ff8000000000000"),
    (-0.0, "cb8000000000000000"),
    (math.inf, "cb7ff0000000000000"),
    (math.nan, "cb7ff8000000000000"),
    ("hé", "a368c3a9"),
    ("a\ud800", "d60261eda080"),
    (b"\x00\xff", "c40200ff"),
    (bytearray(b"ab"), "d50d6162"),
    ([1, [2]], "92019102"),
    ((1, "a", ()), "c707039301a161d40390"),
    ({"b": 1, "a": None}, "82a16201a161c0"),
    ({2: 1, b"k": 2}, "820201c4016b02"),
    ({(1,): 1, "a": 2}, "c7090694d503910101a16102"),
    ({2**70: 1}, "c70e0692c7090140000000000000000001"),
    ({3, 1, "a"}, "c70504930103a161"),
    (frozenset([(2,), 1]), "c706059201d5039102"),
    (Decimal("-1.50E+9"), "d7072d312e3530452b39"),
    (Decimal("sNaN7"), "c70507534e414e37"),
    (Decimal("-Infinity"), "c709072d494e46494e495459"),
    (dt.datetime(2024, 2, 29), "c70c0899cd07e8021d0000000000c0"),
    (UTC_NOON, "c7110899cd07e8021d0c1e0fce000f423f009100"),
    (PARIS_FOLD, "c7180899cd07e80a1b021e000001ac4575726f70652f5061726973"),
    (dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3))), "c7130899010101000000000091d3fffffffd7c451400"),
    (dt.time(1, 2, 3, 4, dt.timezone(dt.timedelta(seconds=90), "Mean")), "c7110a96010203040092ce055d4a80a44d65616e"),
    (dt.date(9999, 12, 31), "c7060993cd270f0c1f"),
    (dt.timedelta(-1, 86399, 999999), "c70c0b93ffce0001517fce000f423f"),
    (UUID(int=1), "d80c00000000000000000000000000000001"),
    (UUID(int=1, is_safe=SafeUUID.safe), "c7110c0000000000000000000000000000000173"),
    (UUID(int=1, is_safe=SafeUUID.unsafe), "c7110c0000000000000000000000000000000175"),
]


@pytest.mark.parametrize(("value", "data"), GOLDEN)
def test_golden_bytes(value: Any, data: str) -> None:
    """Rule 4: these bytes are what nodes have on disk; a change here loses their data."""
    assert encode(value).hex() == data
    assert same(decode(bytes.fromhex(data)), value)


# Hostile bytes.


def decode_hostile(data: bytes) -> None:
    """Nothing but a value that can itself be kept, or EncodingError: any other exception fails the test."""
    try:
        value = decode(data)
        assert same(decode(encode(value)), value)
        decode_key(data)
    except EncodingError:
        pass


@given(st.binary())
def test_random_bytes(data: bytes) -> None:
    """Rule 3: whatever the bytes, decoding returns a value or raises EncodingError."""
    decode_hostile(data)


@given(st.integers(-2, 15), st.one_of(st.binary(), values.map(encode), st.lists(values).map(encode)))
def test_hostile_extensions(code: int, payload: bytes) -> None:
    """An extension with any payload, another type's too, is a value or an EncodingError, bare or as a key."""
    extension = b"\xc9" + struct.pack(">Ib", len(payload), code) + payload
    decode_hostile(extension)
    decode_hostile(b"\x81" + extension + b"\x01")


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_mutated_encodings(value: Any, rng: random.Random) -> None:
    """An encoding with bytes flipped, cut, doubled or dropped is a value or an EncodingError."""
    for _ in range(5):
        data = bytearray(encode(value))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randint(0, 3)] = rng.choice([b"", rng.randbytes(1), bytes(data[at : at + 4]) * 2])
        decode_hostile(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\xd4\x63\x00",  # an unknown extension
        b"\xd4\x04\x01",  # a set without items
        b"\xc7\x03\x04\x92\x01\x01",  # a set that holds an element twice
        b"\xc7\x05\x06\x94\x01\x01\x01\x02",  # a dict that holds a key twice
        b"\xd5\x06\x91\x01",  # a dict with a key and no item
        b"\xd6\x04\x91\x91\x01\x01",  # trailing bytes
        b"\xd5\x04\x91\x90",  # an unhashable element
        b"\x91" * 100_000,
        b"\x81\x01" * 100_000,
        b"\x81\x91" * 100_000,
        encode(nest(60, lambda v: (v,))).replace(b"\x01", b"\xc7"),
    ],
)
def test_malformed(data: bytes) -> None:
    """Bytes that no encoder wrote are refused, however deep they go."""
    with pytest.raises(EncodingError):
        decode(data)
    with pytest.raises(EncodingError):
        decode_key(data)


def test_deeply_nested_extensions() -> None:
    """Thousands of extensions within one another are an EncodingError, never a RecursionError or a crash."""
    data = b"\x01"
    for _ in range(3_000):
        data = b"\x91" + data
        data = b"\xc9" + struct.pack(">Ib", len(data), 3) + data
    for read in (decode, decode_key):
        with pytest.raises(EncodingError):
            read(data)


@pytest.mark.parametrize(
    "head", ["dd7fffffff", "df7fffffff", "81dd7fffffff", "c67fffffff", "db7fffffff", "c97fffffff03"]
)
def test_a_false_length_allocates_nothing(head: str) -> None:
    """A few bytes that claim to be gigabytes are refused before memory is taken."""
    tracemalloc.start()
    try:
        with pytest.raises(EncodingError):
            decode(bytes.fromhex(head) + b"\x00" * 10)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "key",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "",
        "Europe",
        "Europe/../Europe/Paris",
        "a\0b",
        "x" * 10_000,
        "\ud800",
        "No/Such",
        "tzdata.zi",
        "zone.tab",
        "__init__.py",
    ],
)
def test_hostile_zone_keys(key: str) -> None:
    """The key of a time zone can't lead out of the time zone database, and an unknown one is an EncodingError."""
    payload = encode([1, 2, 3, 0, 0, None])[:-1] + encode(key)
    with pytest.raises(EncodingError):
        decode(b"\xc9" + struct.pack(">Ib", len(payload), 10) + payload)


def test_default_codec() -> None:
    """The default codec is these very functions, and carries no state."""
    assert isinstance(DEFAULT_CODEC, FaithfulCodec)
    assert DEFAULT_CODEC.decode(DEFAULT_CODEC.encode((1, "a"))) == (1, "a")
    assert DEFAULT_CODEC.encode is encode and DEFAULT_CODEC.decode is decode


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (1, 1.0, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ([1], (1,), False),
        (float("nan"), float("nan"), True),
        (dt.datetime(2024, 7, 1, 10, tzinfo=ZoneInfo("UTC")), dt.datetime(2024, 7, 1, 10, tzinfo=dt.UTC), False),
        ((dt.time(1, tzinfo=ZoneInfo("UTC")),), (dt.time(1, tzinfo=ZoneInfo("UTC")),), True),
        (dt.time(3, tzinfo=dt.timezone(dt.timedelta(hours=2))), dt.time(1, tzinfo=dt.UTC), True),
    ],
)
def test_equality_of_encoded_values_does_not_depend_on_the_machine(left: Any, right: Any, same: bool) -> None:
    """Encoded values are compared by ==, but for NaN and ZoneInfo, where machines could differ (promise 5)."""
    assert equal(encode(left), encode(right)) is same
    assert equal(encode(right), encode(left)) is same


def _names_a_zone(value: Any) -> bool:
    if isinstance(value, dt.datetime | dt.time):
        return isinstance(value.tzinfo, ZoneInfo)
    if isinstance(value, dict):
        return any(map(_names_a_zone, [*value, *value.values()]))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_names_a_zone, value))


@given(values)
def test_what_names_a_zone_is_not_portable(value: Any) -> None:
    """No value that holds a `ZoneInfo`, however deep, is taken for one that every machine can decode."""
    assert not (_names_a_zone(value) and is_portable(encode(value)))


@pytest.mark.parametrize("value", [None, 17, 10**30, "text", b"bytes", {"x": [1, (2, 3)]}, Decimal("1.5"), {1, 2}])
def test_usual_values_are_portable(value: Any) -> None:
    """What holds no time at all is known to be decodable everywhere."""
    assert is_portable(encode(value))

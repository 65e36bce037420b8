"""Decides which keys are the same and which values are equal: as `dict` and `==` do, but alike on every machine.

Nodes apply the same log, so they must agree on equality however their interpreters are configured: the recursion limit,
the warning filters (`python -bb` turns comparing "a" with b"a" into an error), the decimal context and the time zone
database. So only what does not depend on any of these is compared here: str, numbers, and bytes made such that equal
values have equal ones.
"""

from __future__ import annotations

import datetime as dt
import numbers
import sys
from collections.abc import Hashable
from decimal import Decimal
from typing import Any, Final

from msgspec.msgpack import Decoder, Encoder

from replidict.errors import EncodingError
from replidict.machine.codec import decode_key, encode_key, why_no_key
from replidict.machine.decoding import MALFORMED, MAX_DEPTH, build_leaf, unpacker
from replidict.machine.folding import fold

_pack: Final = Encoder().encode


# Keys. In a dict they stand under a *place*: texts and numbers as they are, all others as a tuple of their bytes.

_PLAIN: Final = frozenset({str, int, type(None)})
_ITSELF: Final = frozenset({str, int, float, bool, type(None), Decimal})


class Malformed(EncodingError):
    """These bytes are no key, or no value: every node finds that, and in the same words."""


class _Nested(Exception):
    """There are values in it."""


def _no_extension(code: int, data: memoryview) -> Any:
    raise _Nested


def _shallow(code: int, data: memoryview) -> Any:
    if code != 3:
        return build_leaf(code, data) if code in (1, 2, 7) else _no_extension(code, data)
    items = _leaves(data)
    if type(items) is not list or not _PLAIN.issuperset(map(type, items)):
        raise _Nested
    return (_pack(items),)


_leaves: Final = Decoder(ext_hook=_no_extension).decode
_flat: Final = Decoder(ext_hook=_shallow).decode


def place(key: bytes) -> Hashable:
    """Under what an encoded key stands: equal for two keys exactly if `dict` takes them for one.

    Raises `Malformed` if these bytes are no key.
    """
    try:
        found = _flat(key)
    except (_Nested, RecursionError, *MALFORMED):
        return (_comparable(key, True),)
    kind = type(found)
    if kind is str or kind is tuple:  # a tuple: the place itself
        return found  # type: ignore[no-any-return]
    if kind in _ITSELF and why_no_key(found, kind) is None:
        return found  # type: ignore[no-any-return]
    return (_comparable(key, True),)


def place_of(key: object) -> Hashable:
    """The place of a key that is looked up. A key that could not be stored has one, too, if it equals one that can.

    Raises `TypeError` if it is not hashable.
    """
    kind = type(key)
    if kind in _ITSELF:
        return key
    if isinstance(key, tuple):
        key = tuple(map(_as_kept, key))
        if _PLAIN.issuperset(map(type, key)):
            try:
                return (_pack(key),)
            except (OverflowError, UnicodeEncodeError):
                pass
    elif isinstance(key, dt.datetime) and key.utcoffset() is not None:
        key = key.replace(tzinfo=dt.timezone(key.utcoffset()))  # type: ignore[arg-type]  # it has one
    try:
        return place(encode_key(key))
    except EncodingError:
        hash(key)
        return _NOWHERE if isinstance(key, tuple) else key


_NOWHERE: Final = (None,)


def _as_kept(part: object) -> object:
    """A str or a number of a subclass, or of a foreign type, converted to a stored type."""
    if type(part) in _ITSELF:
        return part
    if isinstance(part, str):
        return str.__str__(part)
    if isinstance(part, numbers.Integral):
        return int(part)
    return float.__float__(part) if isinstance(part, float) else part


def key_at(where: Hashable, key: bytes) -> Hashable:
    """The key that stands there, and was stored as these bytes."""
    return decode_key(key) if type(where) is tuple else where


# Values.


def equal(left: bytes, right: bytes, /) -> bool:
    """Whether two encoded values are equal, by `==` of the values.

    A value is also equal to itself when it holds NaN, and else to nothing then. The same goes for one that holds a
    `ZoneInfo`: what it equals depends on a machine's time zone database. Raises `Malformed`.
    """
    if left == right:
        return True
    if not sys.flags.bytes_warning:
        try:
            return bool(_quick(left) == _quick(right))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 -- of whatever kind: this is only to be quicker where it can be
            pass
    try:
        return _comparable(left, False) == _comparable(right, False)
    except _EqualsNothing:
        return False


def _timeless(code: int, data: memoryview) -> Any:
    return build_leaf(code, data) if code not in (8, 10) else _no_extension(code, data)


_quick: Final = unpacker(_timeless, _no_extension)


class _EqualsNothing(Exception):
    """There is a NaN or a `ZoneInfo` in it."""


def _comparable(data: bytes, key: bool) -> bytes:
    try:
        return fold(data, _Comparables(key), MAX_DEPTH if key else None)  # type: ignore[no-any-return]
    except MALFORMED as error:
        if key:
            raise Malformed("these bytes are no key") from error
        raise Malformed("these bytes are no value") from error


class _Comparables:
    """What `fold` makes bytes with. Each part is a scalar of MessagePack, or begins with a byte that none begins with,
    and says how long it is: so two that differ never look alike when they are joined."""

    def __init__(self, key: bool) -> None:
        self._key = key

    def leaf(self, data: bytes, /) -> bytes:
        value = _leaves(data)
        if not isinstance(value, int | float):
            return _pack(value)
        if self._key and value != value:
            raise ValueError("NaN")
        return _number(value)

    def extension(self, code: int, data: bytes, /) -> bytes:
        if code in (8, 10) and _has_zone(code, data):
            if self._key:
                raise ValueError("a time zone")
            raise _EqualsNothing
        value = build_leaf(code, data)
        if self._key and why_no_key(value, type(value)) is not None:
            raise ValueError("a part of no key")
        return _scalar(value, self._key)

    def container(self, code: int, parts: list[Any], /) -> bytes:
        if code == 3:
            return _array(len(parts)) + b"".join(parts)
        if self._key and code != 5:
            raise ValueError("not hashable")
        if code == 6:
            made = dict(zip(parts[::2], parts[1::2], strict=True))
            if 2 * len(made) != len(parts):
                raise ValueError("a dict holds a key twice")
            return self.mapping(parts)
        if len(set(parts)) != len(parts):
            raise ValueError("a set holds an element twice")
        return b"\xc1s" + _array(len(parts)) + b"".join(sorted(parts))

    def array(self, parts: list[Any], /) -> bytes:
        if self._key:
            raise ValueError("not hashable")
        return b"\xc1l" + _array(len(parts)) + b"".join(parts)

    def mapping(self, parts: list[Any], /) -> bytes:
        if self._key:
            raise ValueError("not hashable")
        made = dict(zip(parts[::2], parts[1::2], strict=True))
        return b"\xc1d" + _array(len(made)) + b"".join(sorted(key + item for key, item in made.items()))


def _array(count: int) -> bytes:
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 1 << 16 else b"\xdd" + count.to_bytes(4, "big")


class _Zone:
    """What `fold` finds the zone of a time with: the last of its items, if that is a text."""

    leaf = staticmethod(_leaves)
    array = list

    def extension(self, code: int, data: bytes, /) -> Any:
        return build_leaf(code, data)

    def container(self, code: int, parts: list[Any], /) -> Any:
        raise ValueError("a container in a time")

    def mapping(self, parts: list[Any], /) -> Any:
        raise ValueError("a map in a time")


def _has_zone(code: int, data: bytes) -> bool:
    items = fold(data, _Zone(), 2)
    return type(items) is list and bool(items) and type(items[-1]) is str


def _scalar(value: Any, key: bool) -> bytes:
    kind = type(value)
    if kind is int or kind is Decimal:
        return _number(value)
    if kind is str:
        try:
            return _pack(value)
        except UnicodeEncodeError:
            return b"\xc1S" + _pack(value.encode("utf-8", "surrogatepass"))
    if kind is bytearray:
        return _pack(bytes(value))
    if kind is dt.datetime:
        if value.tzinfo is None:
            naive = [value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond]
            return b"\xc1n" + _pack(naive)
        since = value - _EPOCH
        return b"\xc1a" + _pack([since.days, since.seconds, since.microseconds])
    if kind is dt.date:
        return b"\xc1D" + _pack([value.year, value.month, value.day])
    if kind is dt.timedelta:
        return b"\xc1T" + _pack([value.days, value.seconds, value.microseconds])
    if kind is dt.time:
        return _time(value, key)
    return b"\xc1U" + value.bytes  # type: ignore[no-any-return]  # a UUID


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _time(value: dt.time, key: bool) -> bytes:
    offset = value.utcoffset()
    seconds = 3600 * value.hour + 60 * value.minute + value.second
    if offset is None:
        return b"\xc1t" + _pack([seconds, value.microsecond])
    seconds -= 86400 * offset.days + offset.seconds
    # `==` overlooks the microseconds of an offset, and the hash does not.
    return b"\xc1o" + _pack([seconds, value.microsecond, offset.microseconds if key else 0])


def _number(value: float | Decimal) -> bytes:
    """The same for numbers that are equal, whatever their types."""
    if isinstance(value, Decimal):
        return _decimal(value)
    if value != value:
        raise _EqualsNothing
    if isinstance(value, float):
        if not value.is_integer():
            return _pack(value)
        value = int(value)
    if -(2**63) <= value < 2**64:
        return _pack(int(value))
    digits, zeros = abs(value), 0
    step = 1 << (digits.bit_length() // 3).bit_length()
    while step:
        shorter, rest = divmod(digits, 10**step)
        if rest:
            step //= 2
        else:
            digits, zeros = shorter, zeros + step
    return _scaled(value < 0, digits, zeros)


def _decimal(value: Decimal) -> bytes:
    if value.is_nan():  # a signalling one can't even be compared
        raise _EqualsNothing
    if value.is_infinite():
        return _pack(float(value))
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    count = len(digits)
    while count and not digits[count - 1]:
        count -= 1
    if not count:
        return _pack(0)
    exponent += len(digits) - count
    if exponent >= 0 and count + exponent <= 20:
        return _number(int(value))
    if exponent < 0:
        near = float(value)
        if Decimal.from_float(near) == value:  # whatever this machine's context traps
            return _pack(near)
    return _scaled(bool(sign), int(Decimal((0, digits[:count], 0))), exponent)


def _scaled(negative: bool, digits: int, exponent: int) -> bytes:
    return b"\xc1N" + _pack([negative, digits.to_bytes((digits.bit_length() + 7) // 8, "big"), exponent])

"""Adds stored numbers, with the same bytes as the result on every machine, whatever its decimal context.

Rules kept here:

1. Only int, float and Decimal are numbers; bool is not. An int and a float give a float, an int and a Decimal give a
   Decimal, and a float and a Decimal can't be added, as in Python.
2. Finite numbers have a finite sum, and a Decimal sum is exact up to `DIGITS` digits; otherwise it is an
   `OverflowError`.
3. Every NaN of floats has the same bytes: processors differ in its sign.
4. Whether a stored value is a number is seen from its first bytes: another value may be too deep to decode, or hold
   what this machine does not know (a time zone).
"""

from __future__ import annotations

import math
import struct
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from typing import Final, TypeAlias

from replidict.machine.codec import Codec, FaithfulCodec

Number: TypeAlias = int | float | Decimal

DIGITS: Final = 600
"""Of a Decimal sum. Every Python converts so many between text and int: `sys.set_int_max_str_digits` takes no less than
640."""

_EXPONENT: Final = 425_000_000
"""The largest that a 32-bit machine can have."""

_NATIVE: Final = frozenset({*range(0x80), *range(0xE0, 0x100), 0xCA, 0xCB, *range(0xCC, 0xD4)})
"""First bytes of MessagePack's ints and floats."""
_CODE_AT: Final = {0xC7: 2, 0xC8: 3, 0xC9: 5, **dict.fromkeys(range(0xD4, 0xD9), 1)}
"""Where the code of an extension stands, by its first byte."""

_NAN: Final[float] = struct.unpack(">d", b"\x7f\xf8\0\0\0\0\0\0")[0]


def add(left: object, right: object) -> Number:
    """The sum. Raises `TypeError` (they can't be added) or `OverflowError` (the sum can't be kept, see rule 2)."""
    a, b = number(left), number(right)
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, Decimal) or isinstance(b, Decimal):
        return _exact(a, b)
    total = float(a) + float(b)
    if math.isnan(total):
        return _NAN
    if math.isinf(total) and math.isfinite(a) and math.isfinite(b):
        raise OverflowError("the sum is larger than a float can be")
    return total


def number(value: object) -> Number:
    """The value itself, if it is of exactly one of the types that can be added. Raises `TypeError`."""
    if type(value) in (int, float, Decimal):
        return value  # type: ignore[return-value]
    raise TypeError(f"only int, float and Decimal can be added, not {type(value).__qualname__}")


def stored_number(data: bytes, codec: Codec) -> Number:
    """The number that these bytes stand for. Raises `TypeError` (they stand for another value), and what a codec may
    raise."""
    if isinstance(codec, FaithfulCodec) and not _looks_like_one(data):
        raise TypeError("only int, float and Decimal can be added")
    return number(codec.decode(data))


def _looks_like_one(data: bytes) -> bool:
    at = _CODE_AT.get(data[0]) if data else None
    return data[:1] != b"" and (data[0] in _NATIVE or (at is not None and data[at : at + 1] in (b"\x01", b"\x07")))


def _exact(a: Number, b: Number) -> Decimal:
    if isinstance(a, float) or isinstance(b, float):
        raise TypeError("a float and a Decimal can't be added: convert one of them")
    if any(isinstance(part, int) and part.bit_length() > 4 * DIGITS for part in (a, b)):
        raise OverflowError(f"the sum has more than {DIGITS} digits")
    context = Context(DIGITS, ROUND_HALF_EVEN, -_EXPONENT, _EXPONENT, capitals=1, clamp=0, flags=[], traps=[])
    total = context.add(a, b)
    if context.flags[Inexact]:  # as a sum that overflows is
        raise OverflowError(f"the sum has more than {DIGITS} digits, or too large an exponent")
    return total

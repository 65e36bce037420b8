"""Writes values as JSON and as Python literals, with ints of any size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, Inexact, localcontext
from typing import Any

import msgspec

from replidict.brief import MAX_INT_BITS
from replidict.machine.codec import encode

LEAF_BITS = 4096
"""An int of so many bits is made a Decimal in one step."""


class Json(str):
    """A text that is JSON already, for `to_json` to put in as it is."""

    __slots__ = ()


def to_json(value: Any) -> str:
    """Return a value as JSON, for reading: times in ISO 8601, Decimal and UUID as text, bytes in Base64.

    Raises `TypeError`, `ValueError`, `RecursionError` or `NotImplementedError` for what JSON can't say.
    """
    kind = type(value)
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("not all keys of a dict are text")
        return "{" + ", ".join(f"{json.dumps(key)}: {to_json(item)}" for key, item in value.items()) + "}"
    if kind in (set, frozenset):
        value = sorted(value, key=encode)
    if kind in (list, tuple, set, frozenset):
        return "[" + ", ".join(map(to_json, value)) + "]"
    if kind is int:
        return digits(value)
    if kind in (str, float, bool, type(None)):
        return json.dumps(value, allow_nan=False)
    if kind is Json:
        return value  # type: ignore[no-any-return]
    simple = msgspec.to_builtins(value)
    if type(simple) is kind:
        raise TypeError(f"JSON has nothing for a {kind.__name__}")
    return to_json(simple)


def literal(value: Any) -> str:
    """Return the `repr` of a value of the types kept."""
    kind = type(value)
    if kind is int:
        return digits(value)
    if kind is dict:
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if kind is list:
        return f"[{_literals(value)}]"
    if kind is tuple:
        return f"({_literals(value)}{',' if len(value) == 1 else ''})"
    if kind is set and value:
        return f"{{{_literals(value)}}}"
    if kind is frozenset and value:
        return f"frozenset({{{_literals(value)}}})"
    return repr(value)


def _literals(values: Iterable[Any]) -> str:
    return ", ".join(map(literal, values))


def digits(number: int) -> str:
    """Return the decimal digits of an int of any size, in less than quadratic time, whatever limit Python was given."""
    if number.bit_length() <= MAX_INT_BITS:
        return str(number)
    exact = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact])
    with localcontext(exact):
        text = str(_decimal(abs(number), number.bit_length(), {}))
    return text if number > 0 else f"-{text}"


def _decimal(number: int, bits: int, powers: dict[int, Decimal]) -> Decimal:
    """The number, of so many bits at most, by halves; `powers` of two by their exponents are used again."""
    if bits <= LEAF_BITS:
        return Decimal(number)
    low = bits // 2
    high = number >> low
    rest = number - (high << low)
    return _decimal(high, bits - low, powers) * _power(low, powers) + _decimal(rest, low, powers)


def _power(bits: int, powers: dict[int, Decimal]) -> Decimal:
    if bits not in powers:
        half = bits // 2
        whole = Decimal(1 << bits) if bits <= LEAF_BITS else _power(half, powers) * _power(bits - half, powers)
        powers[bits] = whole
    return powers[bits]

"""Values of types that JSON does not have, as such that it has: for reading, not for writing back."""

from __future__ import annotations

from typing import Any

import msgspec

from replidict.machine.codec import encode


def plain(value: Any) -> Any:
    """The same, of types that JSON has: times in ISO 8601, Decimal and UUID as text, bytes in Base64.

    Raises `TypeError`, `ValueError`, `RecursionError` or `NotImplementedError` for what JSON can't say.
    """
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("not all keys of a dict are text")
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (set, frozenset):
        return [plain(item) for item in sorted(value, key=encode)]
    if type(value) in (list, tuple):
        return [plain(item) for item in value]
    if type(value) in (str, int, float):
        return value
    return msgspec.to_builtins(value)

"""Shortens values for error texts and `repr`: bounded in length and in work."""

from __future__ import annotations

import reprlib
from typing import Any, Final

from typing_extensions import override

MAX_INT_BITS: Final = 2000
"""Python may be told to print no int of more than 640 digits, which are 2126 bits."""


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60

    @override
    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > MAX_INT_BITS:
            return f"<an int of {x.bit_length():,} bits>"
        return super().repr_int(x, level)


def brief(value: Any) -> str:
    """Return the `repr` of a value, shortened: it is for people, and never raises."""
    return _Brief().repr(value)

"""Decodes MessagePack without recursion, so that the stack it needs does not depend on the data.

`fold` finds where each part begins and ends; its caller decides what becomes of a part: values for `codec`, bytes that
can be compared for `equality`. It is slower than msgspec, which is tried first where that is safe.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

EXTENSIONS_OF_ITEMS: Final = frozenset({3, 4, 5, 6})
"""Codes of the extensions whose payload is an array of encoded values: see `codec`."""


class Maker(Protocol):
    """Makes something of each part, from the inside out. What it raises ends the reading."""

    def leaf(self, data: bytes, /) -> Any:
        """A scalar of MessagePack, encoded."""

    def extension(self, code: int, data: bytes, /) -> Any:
        """An extension that holds no other values."""

    def container(self, code: int, parts: list[Any], /) -> Any:
        """An extension that holds these."""

    def array(self, parts: list[Any], /) -> Any:
        """An array of these."""

    def mapping(self, parts: list[Any], /) -> Any:
        """A map: of each key, and what belongs to it, by turns."""


class _Open:
    __slots__ = ("code", "count", "end", "parts")

    def __init__(self, code: int, count: int, end: int | None) -> None:
        self.code, self.count, self.end = code, count, end
        self.parts: list[Any] = []


_ARRAY, _MAP = -1001, -1002  # beside the codes of extensions, which are bytes
_ENDED: Final = "it ends in the middle"

_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bin and str: bytes of the length
_FIXED: Final = {
    0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
}  # fmt: skip
_COUNTED: Final = {0xDC: (_ARRAY, 2), 0xDD: (_ARRAY, 4), 0xDE: (_MAP, 2), 0xDF: (_MAP, 4)}
_EXT: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXT: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def fold(data: bytes | memoryview, make: Maker, most: int | None, code: int | None = None) -> Any:
    """Return what `make` makes of these bytes; with `code`, they are the payload of that extension.

    Raises `ValueError` if they are no MessagePack or nested more than `most` deep, and what `make` raises.
    """
    data = bytes(data)
    at, stack = 0, list[_Open]()
    if code is not None:
        at = _open_items(data, 0, len(data), code, stack)
    else:
        at, value, whole = _next(data, 0, make, stack)
        if whole:
            return _ended(data, at, value)
    while True:
        top = stack[-1]
        if most is not None and len(stack) > most:
            raise ValueError(f"nested more than {most} containers deep")
        while len(top.parts) < top.count:
            at, value, whole = _next(data, at, make, stack)
            if not whole:
                break
            top.parts.append(value)
        else:
            stack.pop()
            value = _close(top, at, make)
            if not stack:
                return _ended(data, at, value)
            stack[-1].parts.append(value)


def _ended(data: bytes, at: int, value: Any) -> Any:
    if at != len(data):
        raise ValueError("there is more behind it")
    return value


def _close(top: _Open, at: int, make: Maker) -> Any:
    if top.code == _ARRAY:
        return make.array(top.parts)
    if top.code == _MAP:
        return make.mapping(top.parts)
    if at != top.end:
        raise ValueError("an extension holds more than its items")
    return make.container(top.code, top.parts)


def _next(data: bytes, at: int, make: Maker, stack: list[_Open]) -> tuple[int, Any, bool]:
    """Go on by one part: where it ends, what it is, and whether that is all of it, or a container was opened."""
    if at >= len(data):
        raise ValueError(_ENDED)
    head = data[at]
    if head < 0x80 or head >= 0xE0:
        end = at + 1
    elif head < 0xA0:
        code, count = (_MAP, 2 * (head & 15)) if head < 0x90 else (_ARRAY, head & 15)
        stack.append(_Open(code, count, None))
        return at + 1, None, False
    elif head < 0xC0:
        end = at + 1 + (head & 31)
    elif head in _FIXED:
        end = at + _FIXED[head]
    elif head in _SIZED:
        width = _SIZED[head]
        end = at + 1 + width + _number(data, at + 1, width)
    elif head in _COUNTED:
        code, width = _COUNTED[head]
        count = _number(data, at + 1, width)
        stack.append(_Open(code, 2 * count if code == _MAP else count, None))
        return at + 1 + width, None, False
    else:
        return _extension(data, at, head, make, stack)
    if end > len(data):
        raise ValueError(_ENDED)
    return end, make.leaf(data[at:end]), True


def _extension(data: bytes, at: int, head: int, make: Maker, stack: list[_Open]) -> tuple[int, Any, bool]:
    if head in _FIXED_EXT:
        length, start = _FIXED_EXT[head], at + 2
    elif head in _EXT:
        width = _EXT[head]
        length, start = _number(data, at + 1, width), at + 2 + width
    else:
        raise ValueError(f"no part begins with {head:#x}")
    end = start + length
    if end > len(data):
        raise ValueError(_ENDED)
    code = data[start - 1]
    if code in EXTENSIONS_OF_ITEMS:
        return _open_items(data, start, end, code, stack), None, False
    return end, make.extension(code, data[start:end]), True


def _open_items(data: bytes, start: int, end: int, code: int, stack: list[_Open]) -> int:
    head = data[start] if start < end else 0
    if 0x90 <= head < 0xA0:
        at, count = start + 1, head & 15
    elif head in (0xDC, 0xDD):
        width = 2 if head == 0xDC else 4
        at, count = start + 1 + width, _number(data, start + 1, width)
    else:
        raise ValueError("an extension holds no items")
    stack.append(_Open(code, count, end))
    return at


def _number(data: bytes, at: int, width: int) -> int:
    if at + width > len(data):
        raise ValueError(_ENDED)
    return int.from_bytes(data[at : at + width], "big")

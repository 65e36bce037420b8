"""Decodes stored values into Python values.

msgspec decodes values up to a few nested extensions, since each needs stack. Deeper ones are decoded by `folding`,
which needs none. `codec` describes the format.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, TypeAlias
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from msgspec import MsgspecError
from msgspec.msgpack import Decoder

from replidict.machine.folding import EXTENSIONS_OF_ITEMS, fold

MAX_DEPTH: Final = 64
"""Containers within containers, whatever the interpreter's limit of recursion and the stack of a thread are."""

SHALLOW: Final = 4
"""So many extensions within one another are decoded by msgspec, which is fast and takes stack for each."""

SAFETY: Final = {b"": SafeUUID.unknown, b"s": SafeUUID.safe, b"u": SafeUUID.unsafe}
"""The byte behind a UUID that says where it came from."""

# All that msgspec, the constructors below, hashing and ZoneInfo raise.
MALFORMED: Final = (MsgspecError, ValueError, TypeError, ArithmeticError, LookupError, OSError)


def build_leaf(code: int, data: bytes | memoryview) -> Any:
    """The value of an extension that holds no other values."""
    build = _BUILDERS.get(code)
    if build is None:
        raise ValueError(f"unknown extension code {code}; a newer release may have written it")
    return build(data)


def build_container(code: int, parts: list[Any]) -> Any:
    """The value of an extension that holds these."""
    if code == 3:
        return tuple(parts)
    if code == 6:
        made = dict(zip(parts[::2], parts[1::2], strict=True))
        if 2 * len(made) != len(parts):
            raise ValueError("a dict holds a key twice")
        return made
    elements = set(parts) if code == 4 else frozenset(parts)
    if len(elements) != len(parts):
        raise ValueError("a set holds an element twice")
    return elements


class Values:
    """Builds Python values for `fold`; see `folding.Maker`."""

    leaf = staticmethod(Decoder().decode)
    extension = staticmethod(build_leaf)
    container = staticmethod(build_container)
    array = list

    @staticmethod
    def mapping(parts: list[Any]) -> dict[Any, Any]:
        """A dict of keys and values that come by turns."""
        return dict(zip(parts[::2], parts[1::2], strict=True))


Unpack: TypeAlias = Callable[[bytes | memoryview], Any]


def unpacker(leaf: Callable[[int, memoryview], Any], deep: Callable[[int, memoryview], Any], level: int = 0) -> Unpack:
    """A decoder for values inside a number of extensions: `leaf` decodes extensions that hold no values, `deep` those
    nested too deeply."""
    inner = None if level == SHALLOW else unpacker(leaf, deep, level + 1)

    def extension(code: int, data: memoryview) -> Any:
        if code not in EXTENSIONS_OF_ITEMS:
            return leaf(code, data)
        return deep(code, data) if inner is None else build_container(code, _checked(inner(data)))

    return Decoder(ext_hook=extension).decode


def _deep(code: int, data: memoryview) -> Any:
    return fold(data, Values(), MAX_DEPTH, code)


def _checked(items: Any) -> list[Any]:
    if type(items) is not list:
        raise ValueError("an extension holds no items")
    return items


def _flat_extension(code: int, data: memoryview) -> Any:
    if code != 2:
        raise ValueError(f"an extension of code {code} is where none belongs")
    return build_leaf(code, data)


unpack: Final = unpacker(build_leaf, _deep)
_unpack_flat: Final = Decoder(ext_hook=_flat_extension).decode


def _items(data: bytes | memoryview) -> list[Any]:
    return _checked(_unpack_flat(data))


def _as_decimal(data: bytes | memoryview) -> Decimal:
    text = str(data, "ascii")
    value = Decimal(text)
    if str(value).upper() != text:  # a decimal context can make Decimal("garbage") NaN
        raise ValueError("not a decimal number")
    return value


def _as_zone(zone: Any) -> dt.tzinfo | None:
    if zone is None:
        return None
    if type(zone) is str:
        return ZoneInfo(zone)  # refuses keys that lead out of the time zone database
    offset, *name = zone
    if not offset and not name:
        return dt.UTC
    return dt.timezone(dt.timedelta(microseconds=offset), *name)


def _as_time(data: bytes | memoryview, kind: Callable[..., Any]) -> Any:
    *fields, fold, zone = _items(data)
    return kind(*fields, _as_zone(zone), fold=fold)


def _as_uuid(data: bytes) -> UUID:
    return UUID(bytes=data[:16], is_safe=SAFETY[data[16:]])


_BUILDERS: Final[dict[int, Callable[[bytes | memoryview], Any]]] = {
    1: lambda data: int.from_bytes(data, "big", signed=True),
    2: lambda data: str(data, "utf-8", "surrogatepass"),
    7: _as_decimal,
    8: lambda data: _as_time(data, dt.datetime),
    9: lambda data: dt.date(*_items(data)),
    10: lambda data: _as_time(data, dt.time),
    11: lambda data: dt.timedelta(*_items(data)),
    12: lambda data: _as_uuid(bytes(data)),  # bytes first: slices of msgspec 0.19's memoryview run past its end
    13: bytearray,
}

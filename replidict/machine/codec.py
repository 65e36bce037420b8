"""Values and keys to bytes and back: pure, without I/O, without pickle.

The rules that this file keeps:

1. Faithful. What is read back equals what was written and has exactly its type, all the way down. What can't be
   kept, every subclass of a kept type included, is refused with `EncodingError`; nothing is changed silently.
2. Pure. The bytes depend on the value alone: not on the hash seed, the decimal context or the order in which a set
   happens to iterate. A dict's order is part of its value, so it is part of the bytes.
3. Safe. Whatever the bytes, decoding returns values of the types below or raises `EncodingError`. It calls no
   constructor but those of these types, and allocates in proportion to the input.
4. Stable. The format is what nodes have on disk: codes are added, and never changed or used again.

The format is one MessagePack object. As they are in MessagePack: None, bool, float, bytes, list, int from -2**63 up to
2**64 - 1, str that is valid Unicode, and dict with such scalars as keys, in order. All else is an extension:

    code  type        payload ("items" is a MessagePack array of encoded values)
    1     int         two's complement, big-endian, the fewest bytes; outside of the range above only
    2     str         UTF-8 in which lone surrogates are encoded like other code points; with lone surrogates only
    3     tuple       items
    4     set         items, sorted by their encoded bytes
    5     frozenset   items, sorted by their encoded bytes
    6     dict        items: key, value, key, value...; when some key is not a scalar that MessagePack has
    7     Decimal     its str() in capitals, ASCII
    8     datetime    items: year, month, day, hour, minute, second, microsecond, fold, zone
    9     date        items: year, month, day
    10    time        items: hour, minute, second, microsecond, fold, zone
    11    timedelta   items: days, seconds, microseconds
    12    UUID        its 16 bytes, then b"s" or b"u" if its `is_safe` says safe or unsafe
    13    bytearray   its bytes

A zone is nil (naive), [offset in microseconds] or [offset, name] (`timezone`), or a str, the key of a `ZoneInfo`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal
from typing import Any, Final, Protocol
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from msgspec import MsgspecError
from msgspec.msgpack import Decoder, Encoder, Ext

from replidict.errors import EncodingError

# Containers within containers. A level costs decoding up to four of the interpreter's 1000 levels of recursion, and
# the caller, whose stack is already in use, needs most of them.
MAX_DEPTH: Final = 64

_KEPT: Final = (
    "None, bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, datetime, date, time, "
    "timedelta, Decimal and UUID"
)


class Codec(Protocol):
    """What turns the values of a dict into bytes and back; every node of a cluster uses the same one."""

    def encode(self, value: Any, /) -> bytes:
        """Return the bytes for `value`; raise `EncodingError` if it can't be kept faithfully."""
        ...

    def decode(self, data: bytes, /) -> Any:
        """Return a fresh value from what `encode` returned; raise `EncodingError` if the bytes are anything else."""
        ...


def encode(value: Any, /) -> bytes:
    """Return the bytes for `value`, which is of the types listed above, nested up to `MAX_DEPTH` containers deep.

    Raises `EncodingError`, which says what was refused, where in the value it is and what to do instead.
    """
    kind = type(value)
    if kind is str or kind is int or kind in _NATIVE:
        try:
            return _pack(value)
        except (OverflowError, UnicodeEncodeError):
            pass  # a big int or a lone surrogate: these are extensions
    try:
        return _pack(_wire(value, 0))
    except _Refused as refused:
        raise EncodingError(str(refused)) from None
    except RecursionError as error:
        raise EncodingError("can't keep this value: the caller's stack leaves no room to encode it") from error
    except (ValueError, OverflowError) as error:
        raise EncodingError(f"can't keep this value: {error}; store it in smaller parts") from error


def decode(data: bytes, /) -> Any:
    """Return the value that `encode` made these bytes from: a fresh one, which shares nothing that can change.

    Raises `EncodingError` if they are not such bytes, or name a time zone that this machine does not have.
    """
    try:
        return _unpack(data)
    except _MALFORMED as error:
        raise EncodingError(f"not an encoded value: {type(error).__name__}: {error}") from error


def encode_key(key: Any, /) -> bytes:
    """Return the bytes for a key: a value whose types are all hashable, without NaN and `ZoneInfo`.

    NaN never equals itself, so it could not be found again. What a `ZoneInfo` datetime equals depends on the time zone
    database of each machine, so nodes could disagree on which keys are the same. Raises `EncodingError`.
    """
    data = encode(key)
    _check_key(key)
    return data


def decode_key(data: bytes, /) -> Hashable:
    """Return the key that `encode_key` made these bytes from; raise `EncodingError` for any others."""
    key = decode(data)
    if type(key) is not str:  # most are, and it saves a call
        _check_key(key)
    return key  # type: ignore[no-any-return]


def equal(left: bytes, right: bytes, /) -> bool:
    """Whether two encoded values are equal, by `==` of the values; the same on every machine.

    A value is also equal to itself when it holds NaN. One that holds a `ZoneInfo` is equal to nothing but itself:
    what else it equals depends on a machine's time zone database. Raises `EncodingError`.
    """
    if left == right:
        return True
    try:
        _scan(left), _scan(right)
    except _HasZone:
        return False
    except _MALFORMED as error:
        raise EncodingError(f"not an encoded value: {type(error).__name__}: {error}") from error
    return bool(decode(left) == decode(right))


class FaithfulCodec:
    """The `Codec` of this module: `encode` and `decode` as they are, without the cost of binding a method."""

    __slots__ = ()
    encode = staticmethod(encode)
    decode = staticmethod(decode)
    equal = staticmethod(equal)


DEFAULT_CODEC: Final[Codec] = FaithfulCodec()


# Encoding. `_wire` copies the value into one of MessagePack's own types and extensions, checking every part as it
# goes; so another thread that changes the value meanwhile can't slip in something unchecked.

_NATIVE: Final = frozenset({type(None), bool, float, bytes})
_pack: Final = Encoder().encode


class _Refused(Exception):
    """A part that can't be kept. Each container that the refusal passes through adds its step to the path."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.path: list[str] = []

    def under(self, step: str) -> _Refused:
        self.path.insert(0, step)
        return self

    def __str__(self) -> str:
        path = "".join(self.path[:8]) + ("..." if len(self.path) > 8 else "")
        return "can't keep " + (f"the part at {path}: " if path else "this: ") + self.reason


def _wire(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is str:
        try:
            value.isascii() or value.encode()
            return value
        except UnicodeEncodeError:
            return Ext(2, value.encode("utf-8", "surrogatepass"))
    if kind is int:
        if -(2**63) <= value < 2**64:
            return value
        return Ext(1, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if kind in _NATIVE:
        return value
    if kind is list:
        return _wire_items(value, depth)
    if kind is dict:
        return _wire_dict(value, depth)
    extension = _EXTENSIONS.get(kind)
    if extension is None:
        raise _Refused(_why_not(kind))
    code, payload = extension
    return Ext(code, payload(value, depth))


def _wire_items(items: Iterable[Any], depth: int) -> list[Any]:
    depth = _deeper(depth)
    wired: list[Any] = []
    for item in tuple(items):
        try:
            wired.append(item if type(item) in _NATIVE else _wire(item, depth))
        except _Refused as refused:
            raise refused.under(f"[{len(wired)}]") from None
    return wired


def _wire_dict(value: dict[Any, Any], depth: int) -> Any:
    depth = _deeper(depth)
    wired: list[Any] = []
    native = True
    for key, item in tuple(value.items()):
        try:
            wired_key = _wire(key, depth)
            native = native and wired_key is key
            wired.append(wired_key)
            wired.append(item if type(item) in _NATIVE else _wire(item, depth))
        except _Refused as refused:
            # An odd length: the key is in, so it was its item.
            raise refused.under(f"[{_brief(key)}]" if len(wired) % 2 else f"<key {len(wired) // 2}>") from None
    return dict(zip(wired[::2], wired[1::2], strict=True)) if native else Ext(6, _pack(wired))


def _sorted_items(value: Any, depth: int) -> bytes:
    return _pack(sorted(_wire_items(value, depth), key=_pack))


def _clock(time: dt.time | dt.datetime) -> list[Any]:
    return [time.hour, time.minute, time.second, time.microsecond, time.fold, _zone(time.tzinfo)]


def _zone(zone: dt.tzinfo | None) -> Any:
    try:
        if zone is None:
            return None
        if zone is dt.UTC:
            return [0]
        if type(zone) is dt.timezone:
            offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # the only way to its name, or to none
            return [offset // dt.timedelta(microseconds=1), *(_wire(part, 0) for part in name)]
        if type(zone) is not ZoneInfo:
            raise _Refused(f"a tzinfo of type {_name(type(zone))}; use datetime.timezone or zoneinfo.ZoneInfo")
        # The key is not enough: a zone made from a file, or not from the cache, may differ from what a reader gets.
        if zone.key is None or _load_zone(_wire(zone.key, 0)) is not zone:
            raise _Refused(f"the zone {zone!r} is not what ZoneInfo(key) returns; use ZoneInfo(key)")
        return zone.key
    except _Refused as refused:
        raise refused.under(".tzinfo") from None


_MAY_NAME_A_ZONE: Final = re.compile(
    rb"(?:[\xd4-\xd8]|\xc7.|\xc8..|\xc9....)[\x08\x0a]", re.DOTALL
)  # how extensions 8 and 10 begin


def is_portable(data: bytes) -> bool:
    """Whether the encoded value can surely be decoded on every machine: it holds no time with a `ZoneInfo`, which a
    machine without that time zone can't make. It is told by a glance at the bytes, so False may be wrong."""
    return _MAY_NAME_A_ZONE.search(data) is None


def _load_zone(key: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(key)
    except (ValueError, TypeError, LookupError, OSError):
        return None


_SAFETY: Final = {b"": SafeUUID.unknown, b"s": SafeUUID.safe, b"u": SafeUUID.unsafe}
_SAFETY_BYTE: Final = {safety: byte for byte, safety in _SAFETY.items()}

_EXTENSIONS: Final[dict[type, tuple[int, Callable[[Any, int], bytes]]]] = {
    tuple: (3, lambda value, depth: _pack(_wire_items(value, depth))),
    set: (4, _sorted_items),
    frozenset: (5, _sorted_items),
    Decimal: (7, lambda d, _: str(d).upper().encode()),  # the decimal context may want a small e: see rule 2
    dt.datetime: (8, lambda t, _: _pack([t.year, t.month, t.day, *_clock(t)])),
    dt.date: (9, lambda d, _: _pack([d.year, d.month, d.day])),
    dt.time: (10, lambda t, _: _pack(_clock(t))),
    dt.timedelta: (11, lambda d, _: _pack([d.days, d.seconds, d.microseconds])),
    UUID: (12, lambda u, _: u.bytes + _SAFETY_BYTE[u.is_safe]),
    bytearray: (13, lambda value, _: bytes(value)),
}


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise _Refused(f"it is nested more than {MAX_DEPTH} containers deep, or contains itself; store it flatter")
    return depth + 1


def _why_not(kind: type) -> str:
    for base in (bool, int, float, str, bytes, *_EXTENSIONS, list, dict):
        if issubclass(kind, base):
            return (
                f"{_name(kind)} is a subclass of {_name(base)}, and would come back as another type; "
                f"convert it to {_name(base)} before storing it and back after reading it"
            )
    return f"{_name(kind)} is not among the types kept: {_KEPT}; convert it to these, or pass a codec of your own"


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _brief(key: object) -> str:
    try:
        text = repr(key)
    except ValueError:  # an int with more digits than Python is willing to print
        return "..."
    return text if len(text) <= 60 else text[:57] + "..."


# Decoding. `_unpack` calls `_from_extension`, which calls `_unpack` for what is inside.

# All that msgspec, the constructors below, hashing and ZoneInfo raise.
_MALFORMED: Final = (MsgspecError, ValueError, TypeError, ArithmeticError, LookupError, OSError, RecursionError)


def _from_extension(code: int, data: memoryview) -> Any:
    build = _BUILDERS.get(code)
    if build is None:
        raise ValueError(f"unknown extension code {code}; a newer release may have written it")
    return build(data)


_unpack: Final = Decoder(ext_hook=_from_extension).decode


def _items(data: memoryview) -> list[Any]:
    items = _unpack(data)
    if type(items) is not list:
        raise ValueError("an extension holds no items")
    return items


def _as_set(data: memoryview, kind: Callable[[list[Any]], Any]) -> Any:
    items = _items(data)
    result = kind(items)
    if len(result) != len(items):
        raise ValueError("a set holds an element twice")
    return result


def _as_dict(data: memoryview) -> dict[Any, Any]:
    items = _items(data)
    result = dict(zip(items[::2], items[1::2], strict=True))
    if 2 * len(result) != len(items):
        raise ValueError("a dict holds a key twice")
    return result


def _as_decimal(data: memoryview) -> Decimal:
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


def _as_time(data: memoryview, kind: Callable[..., Any]) -> Any:
    *fields, fold, zone = _items(data)
    return kind(*fields, _as_zone(zone), fold=fold)


def _as_uuid(data: bytes) -> UUID:
    return UUID(bytes=data[:16], is_safe=_SAFETY[data[16:]])


_BUILDERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    1: lambda data: int.from_bytes(data, "big", signed=True),
    2: lambda data: str(data, "utf-8", "surrogatepass"),
    3: lambda data: tuple(_items(data)),
    4: lambda data: _as_set(data, set),
    5: lambda data: _as_set(data, frozenset),
    6: _as_dict,
    7: _as_decimal,
    8: lambda data: _as_time(data, dt.datetime),
    9: lambda data: dt.date(*_items(data)),
    10: lambda data: _as_time(data, dt.time),
    11: lambda data: dt.timedelta(*_items(data)),
    12: lambda data: _as_uuid(bytes(data)),  # bytes first: slices of msgspec 0.19's memoryview run past its end
    13: lambda data: bytearray(data),
}


class _HasZone(Exception):
    """A `ZoneInfo` is in it."""


def _look_inside(code: int, data: memoryview) -> None:
    if code in (3, 4, 5, 6):
        _scan(data)
    elif code in (8, 10) and type(_items(data)[-1]) is str:
        raise _HasZone


_scan: Final = Decoder(ext_hook=_look_inside).decode


# Keys.

_UNHASHABLE: Final = frozenset({list, dict, set, bytearray})


def _check_key(key: Any) -> None:
    kind = type(key)
    if kind in _UNHASHABLE:
        raise EncodingError(f"a key can't hold a {_name(kind)}, which is not hashable; use a tuple, frozenset or bytes")
    if kind is tuple or kind is frozenset:
        for item in key:
            _check_key(item)
    elif (kind is float and key != key) or (kind is Decimal and key.is_nan()):
        raise EncodingError("a key can't hold NaN, which does not equal itself and could never be found again")
    elif (kind is dt.datetime or kind is dt.time) and type(key.tzinfo) is ZoneInfo:
        raise EncodingError(
            f"a key can't hold a time in {key.tzinfo}: its equality depends on each machine's time zone database; "
            "convert it to datetime.timezone.utc"
        )

"""`Codec` and the default codec: converts keys and values to bytes (MessagePack) and back, without pickle.

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
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, Final, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

from msgspec import Raw
from msgspec.msgpack import Encoder, Ext

from replidict.errors import EncodingError
from replidict.large_encoding import LARGE, encode_large
from replidict.machine.decoding import MALFORMED, MAX_DEPTH, SAFETY, Values, unpack
from replidict.machine.folding import fold

PACK_DEPTH: Final = 8
"""So many lists and dicts within one another are encoded at a time, for the same reason."""

_KEPT: Final = (
    "None, bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, datetime, date, time, "
    "timedelta, Decimal and UUID"
)


class Codec(Protocol):
    """Converts values to bytes and back. Every node of a cluster must use the same one, and it must be pure.

    Example:
        >>> import json
        >>> class JsonCodec:
        ...     def encode(self, value):
        ...         return json.dumps(value).encode()
        ...     def decode(self, data):
        ...         return json.loads(data)
        >>> with ReplicatedDict("json", codec=JsonCodec()) as stored:
        ...     stored["pair"] = (1, 2)
        ...     stored["pair"]
        [1, 2]
    """

    def encode(self, value: Any, /) -> bytes:
        """Return the bytes for a value.

        Args:
            value: The value.

        Raises:
            EncodingError: The value can't be stored faithfully.
        """
        ...

    def decode(self, data: bytes, /) -> Any:
        """Return a new value from the bytes that `encode` returned for an equal one.

        Args:
            data: The bytes.

        Raises:
            EncodingError: The bytes are not such. Other errors become a `DecodingError`.
        """
        ...


def encode(value: Any, /) -> bytes:
    """Return the bytes for `value`, which is of the types listed above, nested up to `MAX_DEPTH` containers deep.

    Raises `EncodingError`, which says what was refused, where in the value it is and what to do instead.
    """
    kind = type(value)
    if kind is str or kind is int or kind in _NATIVE:
        try:
            return encode_large(value) if (kind is bytes or kind is str) and len(value) >= LARGE else _pack(value)
        except (OverflowError, UnicodeEncodeError):
            pass  # a big int or a lone surrogate: these are extensions
    try:
        return _pack(_wire(value))
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
        try:
            return unpack(data)
        except RecursionError:  # lists within lists, or a caller with little stack left
            return fold(data, Values(), MAX_DEPTH)
    except (RecursionError, *MALFORMED) as error:
        raise EncodingError(f"not an encoded value: {type(error).__name__}: {error}") from error


def encode_key(key: Any, /) -> bytes:
    """Return the bytes for a key: a value whose types are all hashable, without NaN and `ZoneInfo`.

    NaN never equals itself, so it could not be found again. What a `ZoneInfo` datetime equals depends on the time zone
    database of each machine, so nodes could disagree on which keys are the same. Raises `EncodingError`.
    """
    data = encode(key)
    if type(key) is not str:  # most are, and it saves a call
        _check_key(key)
    return data


def decode_key(data: bytes, /) -> Hashable:
    """Return the key that `encode_key` made these bytes from; raise `EncodingError` for any others."""
    key = decode(data)
    if type(key) is not str:
        _check_key(key)
    return key  # type: ignore[no-any-return]


class FaithfulCodec:
    """The default codec: the functions `encode` and `decode` themselves, without the cost of binding a method."""

    __slots__ = ()
    encode = staticmethod(encode)
    decode = staticmethod(decode)


DEFAULT_CODEC: Final[Codec] = FaithfulCodec()


# Encoding. `_wire` copies the value into one of MessagePack's own types and extensions, checking every part as it
# goes; so another thread that changes the value meanwhile can't slip in something unchecked.

_NATIVE: Final = frozenset({type(None), bool, float, bytes})
_pack: Final = Encoder().encode


class _Refused(Exception):
    """A part of a value that can't be stored, and the path to it."""

    def __init__(self, reason: str, path: Sequence[str] = ()) -> None:
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        path = "".join(self.path[:8]) + ("..." if len(self.path) > 8 else "")
        return "can't keep " + (f"the part at {path}: " if path else "this: ") + self.reason


class _Open:
    """A container whose parts are being encoded; for a dict, its keys and values in turn."""

    __slots__ = ("kind", "parts", "wired")

    def __init__(self, kind: type, parts: tuple[Any, ...]) -> None:
        self.kind = kind
        self.parts = parts
        self.wired: list[Any] = []

    def step(self) -> str:
        """Where the part is that comes next."""
        position = len(self.wired)
        if self.kind is not dict:
            return f"[{position}]"
        return f"[{_brief(self.parts[position - 1])}]" if position % 2 else f"<key {position // 2}>"

    def close(self, depth: int) -> Any:
        """The container, all parts of which are encoded."""
        kind, wired = self.kind, self.wired
        if kind is list:
            native: Any = wired
        elif kind is dict:
            if not all(one is other for one, other in zip(wired[::2], self.parts[::2], strict=True)):
                return Ext(6, _pack(wired))
            native = dict(zip(wired[::2], wired[1::2], strict=True))
        else:
            return Ext(_CONTAINERS[kind], _pack(wired if kind is tuple else sorted(wired, key=_pack)))
        return native if depth % PACK_DEPTH else Raw(_pack(native))


def _wire(value: Any) -> Any:
    """Without recursion: how deep a value may be must not depend on how much stack the caller has left."""
    stack = [_Open(list, (value,))]
    try:
        while True:
            top = stack[-1]
            parts, wired = top.parts, top.wired
            while len(wired) < len(parts):
                part = parts[len(wired)]
                kind = type(part)
                if kind in _NATIVE:
                    wired.append(part)
                elif kind in _CONTAINERS:
                    if len(stack) > MAX_DEPTH:
                        raise _Refused(_TOO_DEEP)
                    stack.append(_Open(kind, tuple(chain.from_iterable(part.items()) if kind is dict else part)))
                    break
                else:
                    wired.append(_wire_leaf(part, kind))
            else:
                stack.pop()
                if not stack:
                    return wired[0]
                stack[-1].wired.append(top.close(len(stack)))
    except _Refused as refused:
        steps = [opened.step() for opened in stack[1:]]
        raise _Refused(refused.reason, [*steps, *refused.path]) from None


def _wire_leaf(value: Any, kind: type) -> Any:
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
    extension = _LEAVES.get(kind)
    if extension is None:
        raise _Refused(_why_not(kind))
    code, payload = extension
    return Ext(code, payload(value))


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
            return [offset // dt.timedelta(microseconds=1), *(_wire_leaf(part, str) for part in name)]
        if type(zone) is not ZoneInfo:
            raise _Refused(f"a tzinfo of type {_name(type(zone))}; use datetime.timezone or zoneinfo.ZoneInfo")
        # The key is not enough: a zone made from a file, or not from the cache, may differ from what a reader gets.
        if zone.key is None or _load_zone(_wire_leaf(zone.key, type(zone.key))) is not zone:
            raise _Refused(f"the zone {zone!r} is not what ZoneInfo(key) returns; use ZoneInfo(key)")
        return zone.key
    except _Refused as refused:
        raise _Refused(refused.reason, [".tzinfo"]) from None


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


_SAFETY_BYTE: Final = {safety: byte for byte, safety in SAFETY.items()}

_CONTAINERS: Final[dict[type, int]] = {list: 0, tuple: 3, set: 4, frozenset: 5, dict: 6}
"""By type, the codes under which they are extensions; a list is none, and a dict need not be one."""

_LEAVES: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    Decimal: (7, lambda d: str(d).upper().encode()),  # the decimal context may want a small e: see rule 2
    dt.datetime: (8, lambda t: _pack([t.year, t.month, t.day, *_clock(t)])),
    dt.date: (9, lambda d: _pack([d.year, d.month, d.day])),
    dt.time: (10, lambda t: _pack(_clock(t))),
    dt.timedelta: (11, lambda d: _pack([d.days, d.seconds, d.microseconds])),
    UUID: (12, lambda u: u.bytes + _SAFETY_BYTE[u.is_safe]),
    bytearray: (13, bytes),
}

_TOO_DEEP: Final = f"it is nested more than {MAX_DEPTH} containers deep, or contains itself; store it flatter"


def _why_not(kind: type) -> str:
    for base in (bool, int, float, str, bytes, *_LEAVES, *_CONTAINERS):
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


# Keys.

_UNHASHABLE: Final = frozenset({list, dict, set, bytearray})


def _check_key(key: Any) -> None:
    parts = [key]
    while parts:
        part = parts.pop()
        kind = type(part)
        if kind is tuple or kind is frozenset:
            parts.extend(part)
        elif (reason := why_no_key(part, kind)) is not None:
            raise EncodingError(reason)


def why_no_key(part: Any, kind: type) -> str | None:
    """Why this, which is no tuple and no frozenset, can't be a key or a part of one; None if it can."""
    if kind in _UNHASHABLE:
        return f"a key can't hold a {_name(kind)}, which is not hashable; use a tuple, frozenset or bytes"
    if (kind is float and part != part) or (kind is Decimal and part.is_nan()):
        return "a key can't hold NaN, which does not equal itself and could never be found again"
    if (kind is dt.datetime or kind is dt.time) and type(part.tzinfo) is ZoneInfo:
        return (
            f"a key can't hold a time in {part.tzinfo}: its equality depends on each machine's time zone database; "
            "convert it to datetime.timezone.utc"
        )
    return None

"""Decodes stored values, with errors that name the key."""

from __future__ import annotations

from collections.abc import Callable
from traceback import format_exception_only
from typing import Any

from replidict.brief import brief
from replidict.errors import DecodingError, EncodingError


def value_of(decode: Callable[[bytes], Any], key: object, data: bytes) -> Any:
    """Decode the value of a key. Raises `DecodingError`, which names the key, whatever `decode` raises."""
    try:
        return decode(data)
    except MemoryError:
        raise
    except Exception as error:  # a KeyError of a codec's would say that there is no such key
        raise DecodingError(
            f"the value of key {brief(key)} can't be decoded on this machine: {_why(error)}. Nothing was changed: read "
            "it where it can be decoded, or remove it unread with del or delete",
            key,
            data,
        ) from error


def removed_value_of(decode: Callable[[bytes], Any], key: object, data: bytes) -> Any:
    """Decode a value that was removed already. Raises `DecodingError`, which has its bytes."""
    try:
        return value_of(decode, key, data)
    except DecodingError as error:
        raise DecodingError(
            f"the value of key {brief(key)} was removed, and can't be decoded on this machine: "
            f"{_why(error.__cause__)}. This error's `data` has the bytes, for a program that can decode them",
            key,
            data,
        ) from error.__cause__


def _why(error: BaseException | None) -> str:
    if isinstance(error, EncodingError):
        return str(error)
    return "".join(format_exception_only(error)).strip()  # also of one whose text can't be made

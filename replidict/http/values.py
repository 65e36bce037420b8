"""Values as bodies, and back.

Rules kept here:

1. What was PUT is what GET gives, byte for byte: UTF-8 text is kept as a str, anything else as bytes.
2. A value of another type, which a Python program wrote, is shown as JSON, for reading. What JSON can't say is refused
   rather than bent: a float that is no number, a dict whose keys are not all text.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from replidict.codec import encode
from replidict.http.problems import Problem

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
JSON = "application/json"


def value_of(body: bytes, content_type: str) -> str | bytes:
    """What is stored for this body: text unless it is none, or `content_type` says that it is not meant as such."""
    if content_type.partition(";")[0].strip().lower() == BYTES:
        return body
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


def body_of(value: Any) -> tuple[bytes, str]:
    """The body that shows this value, and its content type. Raises `Problem` if there is none."""
    if type(value) is str:
        try:
            return value.encode(), TEXT
        except UnicodeEncodeError:
            pass  # lone surrogates: JSON can escape them
    if isinstance(value, bytes | bytearray):
        return bytes(value), BYTES
    try:
        return json.dumps(_plain(value), allow_nan=False).encode(), JSON
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise Problem(
            "not-representable", f"JSON can't say this {type(value).__name__}: {error}; read it with Python"
        ) from None


def _plain(value: Any) -> Any:
    """The same, of types that JSON has: times in ISO 8601, Decimal and UUID as text, bytes in Base64."""
    if type(value) is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("not all keys of a dict are text")
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (set, frozenset):
        return [_plain(item) for item in sorted(value, key=encode)]
    if type(value) in (list, tuple):
        return [_plain(item) for item in value]
    if type(value) in (str, int, float):
        return value
    return msgspec.to_builtins(value)

"""Converts values to response bodies, and request bodies to values.

Rules kept here:

1. GET returns what was PUT, byte for byte: UTF-8 text is stored as a str, anything else as bytes.
2. A value of another type, written by a Python program, is shown as JSON. What JSON can't express is refused, not
   altered: a float that is not a number, or a dict with keys other than str.
"""

from __future__ import annotations

from typing import Any

from replidict.http.problems import Problem
from replidict.machine.jsonable import to_json

TEXT = "text/plain; charset=utf-8"
BYTES = "application/octet-stream"
JSON = "application/json"


def value_of(body: bytes, content_type: str) -> str | bytes:
    """The value to store for a body: a str if it is UTF-8, unless `content_type` says otherwise; else bytes."""
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
        return to_json(value).encode(), JSON
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise Problem(
            "not-representable", f"JSON can't represent this {type(value).__name__}: {error}; read it with Python"
        ) from None

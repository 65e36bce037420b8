"""Converts values to response bodies, and request bodies to values.

Rules kept here:

1. What was PUT is what GET gives, byte for byte: UTF-8 text is kept as a str, anything else as bytes.
2. A value of another type, which a Python program wrote, is shown as JSON, for reading. What JSON can't say is refused
   rather than bent: a float that is no number, a dict whose keys are not all text.
"""

from __future__ import annotations

from typing import Any

from replidict.http.problems import Problem
from replidict.machine.jsonable import to_json

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
        return to_json(value).encode(), JSON
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise Problem(
            "not-representable", f"JSON can't say this {type(value).__name__}: {error}; read it with Python"
        ) from None

"""Encodes large values as MessagePack.

When msgspec enlarges its own buffer and there is no memory, the process ends with a segmentation fault. A buffer of
Python's raises `MemoryError` instead, which callers can handle.
"""

from __future__ import annotations

from msgspec.msgpack import Encoder

LARGE = 64 * 1024
"""Bytes from which on it is worth the copy."""

_encode_into = Encoder().encode_into


def encode_large(value: object) -> bytes:
    """Encode as `Encoder.encode` does. Raises `MemoryError` where that would end the process."""
    buffer = bytearray()
    _encode_into(value, buffer)
    return bytes(buffer)

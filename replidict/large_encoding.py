"""Encodes large values as MessagePack.

msgspec lets its own buffer grow without asking whether there was memory for that, and ends the process with a
segmentation fault where there was none. A buffer of Python's raises `MemoryError`, which is for callers to handle.
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

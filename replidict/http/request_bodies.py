"""Reads request bodies within three limits: the size of one, its time, and the memory of all together.

Rules kept here:

1. A body that is declared too large is refused unread; one that turns out to be is refused at that point.
2. A slow body costs memory and a connection, but no thread, and only for a limited time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from replidict.http.problems import Problem

SECONDS = 30.0
"""In which a body must have come."""
MIN_ROOM = 64 * 1024 * 1024
"""Bytes that all bodies together may hold at least."""


class Bodies:
    """Counts the memory of all bodies being read. For the event loop's thread."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of one body."""
        self._max_bytes = max_bytes
        self._room = max(MIN_ROOM, 4 * max_bytes)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts as held until this ends. Raises `Problem`."""
        announced = request.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        held = 0
        try:
            chunks: list[bytes] = []
            try:
                async with asyncio.timeout(SECONDS):
                    async for chunk in request.stream():
                        held += len(chunk)
                        self._room -= len(chunk)
                        if held > self._max_bytes:
                            raise self._too_large()
                        if self._room < 0:
                            raise Problem("busy", "too many large bodies are under way")
                        chunks.append(chunk)
            except TimeoutError:
                raise Problem(
                    "request-too-slow",
                    f"the body did not come within {SECONDS:g} s",
                    {"Connection": "close"},
                ) from None
            yield b"".join(chunks)
        finally:
            self._room += held

    def _too_large(self) -> Problem:
        return Problem("body-too-large", f"a value may have {self._max_bytes} bytes")

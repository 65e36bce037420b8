"""A response of server-sent events, which lasts until either side ends it.

Rules kept here:

1. The source is asked for the next event when the client has read the last one, so nothing piles up for a slow client.
2. A stream ends when the client disconnects, when its source ends, and at once when the server shuts down.
3. No thread waits for a stream.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

HEARTBEAT_SECONDS = 10.0
"""Between two comments, while nothing happens."""

END = "replidict.end"
"""In the scope of a connection: what ends its stream. For the thread of the event loop."""

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
MEDIA_TYPE = "text/event-stream"


class Source(AbstractContextManager["Source"], Protocol):
    """The source of a stream's events: a context manager, entered when the stream begins and left when it ends."""

    ended: bool
    """Whether there will be nothing more."""

    def next(self) -> str:
        """Whole events; empty if there is nothing to be said now."""
        ...

    def heartbeat(self) -> str:
        """The event to send when there was nothing for a while."""
        ...


class EventStream(Response):
    """A response that sends the events of a source until either side ends it."""

    def __init__(self, source: Source, bell: asyncio.Event) -> None:
        """`bell` is set when the source may have something to say."""
        super().__init__(headers=HEADERS, media_type=MEDIA_TYPE)
        self._source, self._bell = source, bell
        self._gone = self._ending = False

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        scope[END] = self._end
        listening = asyncio.ensure_future(self._listen(receive))
        try:
            with self._source as source:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while not (self._gone or self._ending or source.ended):
                    self._bell.clear()
                    if text := source.next():
                        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                        await asyncio.sleep(0)  # others have their turn
                    elif not source.ended:
                        await self._wait(send)
            if not self._gone:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            listening.cancel()

    async def _wait(self, send: Send) -> None:
        try:
            await asyncio.wait_for(self._bell.wait(), HEARTBEAT_SECONDS)
        except TimeoutError:
            await send({"type": "http.response.body", "body": self._source.heartbeat().encode(), "more_body": True})

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._bell.set()

    def _end(self) -> None:
        self._ending = True
        self._bell.set()

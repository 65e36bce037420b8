"""GET /live: the data of the status page as server-sent events, every second and at each change of leader.

Rules kept here:

1. The node is queried once for all streams, and not at all while there are none.
2. A stream holds only the newest look: a slow client skips those that it did not read.
3. This node itself knows who leads; the progress of the members comes from their leader. Without a leader, only that
   query waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from replidict.api.observation import disk_bytes_of, recent_of
from replidict.api.replicated_dict import ReplicatedDict
from replidict.errors import ReplidictError
from replidict.http.bulkheads import Bulkhead
from replidict.http.event_stream import HEADERS, MEDIA_TYPE, EventStream
from replidict.http.problems import Problem
from replidict.http.request_parameters import parameters_of
from replidict.machine.jsonable import to_json
from replidict.release import __version__
from replidict.status import LockInfo, Member

MAX_LOOKING = 32
"""Streams of one node."""

EVERY = 1.0
"""Seconds between two looks."""

GLANCE = 0.2
"""Seconds between two glances at who leads."""

WITHIN = 10.0
"""Seconds that a look may take."""

MAX_LOCKS = 200
"""Locks that are shown; the status has their number."""


class Live:
    """The endpoint. All its streams share the looks at one node."""

    def __init__(self, d: ReplicatedDict[Any, Any]) -> None:
        self._dict = d
        self.bulkhead = Bulkhead("page", 2, 2)
        self._looking: set[_Looks] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._members: tuple[Member, ...] = ()

    async def live(self, request: Request) -> Response:
        """GET /live."""
        parameters_of(request, set())
        if request.method == "HEAD":
            return Response(headers=HEADERS, media_type=MEDIA_TYPE)
        if len(self._looking) >= MAX_LOOKING:
            raise Problem("busy", f"{MAX_LOOKING} pages are connected to this node, its maximum: try another node")
        bell = asyncio.Event()
        return EventStream(_Looks(self, bell), bell)

    def begin(self, looks: _Looks) -> None:
        """One looks."""
        self._looking.add(looks)
        if not self._tasks:
            self._tasks = [asyncio.ensure_future(self._ask()), asyncio.ensure_future(self._look())]

    def end(self, looks: _Looks) -> None:
        """Stop."""
        self._looking.discard(looks)
        if not self._looking:
            for task in self._tasks:
                task.cancel()
            self._tasks = []

    async def _ask(self) -> None:
        while True:
            self._members = await self._or(self._members, self._dict.members)
            await asyncio.sleep(EVERY)

    async def _look(self) -> None:
        text = ""
        while True:
            text = await self._or(text, self._said)
            for looks in self._looking:
                looks.hear(text)
            await self._until_there_is_more()

    async def _until_there_is_more(self) -> None:
        before, deadline = self._gist(), time.monotonic() + EVERY
        while time.monotonic() < deadline and self._gist() == before:
            await asyncio.sleep(GLANCE)

    def _gist(self) -> object:
        status = self._dict.status()
        return status.term, status.leader, status.role, status.connected, self._members != ()

    async def _or(self, before: Any, call: Callable[[], Any]) -> Any:
        """Return the result of a call that may wait; if it fails, its previous result."""
        with contextlib.suppress(Problem, ReplidictError):
            return await self.bulkhead.run(lambda _: call(), WITHIN)
        return before

    def _said(self) -> str:
        """All that the page shows, as one event."""
        locks: tuple[LockInfo, ...] = ()
        with contextlib.suppress(ReplidictError):  # it has stopped, and its status says so
            locks = self._dict.locks()[:MAX_LOCKS]
        shown = {
            "now": time.time(),
            "release": __version__,
            "status": dataclasses.asdict(self._dict.status()),
            "members": [dataclasses.asdict(member) for member in self._members],
            "locks": [dataclasses.asdict(lock) for lock in locks],
            "recent": dataclasses.asdict(recent_of(self._dict)),
            "disk_bytes": disk_bytes_of(self._dict),
        }
        return f"data: {to_json(shown)}\n\n"


class _Looks:
    """The source of one stream: always the newest look."""

    ended = False

    def __init__(self, live: Live, bell: asyncio.Event) -> None:
        self._live, self._bell = live, bell
        self._text = ""

    def __enter__(self) -> _Looks:
        self._live.begin(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.end(self)

    def hear(self, text: str) -> None:
        """A newer one."""
        self._text = text
        self._bell.set()

    def next(self) -> str:
        """The newest look, if it was not sent yet."""
        text, self._text = self._text, ""
        return text

    def heartbeat(self) -> str:
        """A comment."""
        return ":\n\n"

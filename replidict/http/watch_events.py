"""GET /watch: changes as server-sent events, for `EventSource` in browsers and `curl -N` in shells.

Rules kept here:

1. The id of an event is its revision, so that a client that comes back, here or at another node, continues after it.
   Heartbeats advance the id, too, so that changes of no interest need not be remembered.
2. At most one change is held for a client: the next one is read when that has been sent.
3. A stream ends when the node stops.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.watch import Watch, open_watch
from replidict.api.watched_changes import Change
from replidict.errors import EncodingError, HistoryLost, ReplidictError
from replidict.http.bulkheads import Bulkhead
from replidict.http.event_stream import HEADERS, MEDIA_TYPE, EventStream
from replidict.http.problems import Problem
from replidict.http.request_parameters import TIMEOUT, parameters_of
from replidict.machine.jsonable import Json, to_json

MAX_WATCHES = 100
"""Streams of one node."""


class Watches:
    """The endpoint, and its open streams."""

    def __init__(self, d: ReplicatedDict[Any, Any], opening: Bulkhead) -> None:
        self._dict, self._opening = d, opening
        self._open = 0

    async def watch(self, request: Request) -> Response:
        """GET /watch."""
        parameters = parameters_of(request, {"prefix", "after"})
        after = request.headers.get("Last-Event-ID", parameters.get("after"))
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise Problem("bad-argument", f"after={after[:40]!r}: must be a revision, as the ids of events are")
        if request.method == "HEAD":
            return Response(headers=HEADERS, media_type=MEDIA_TYPE)
        if self._open >= MAX_WATCHES:
            raise Problem("busy", f"{MAX_WATCHES} clients watch this node, its maximum: try another node")
        bell, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(bell.set)
            except RuntimeError:
                pass  # the loop has ended

        prefix, revision = parameters.get("prefix", ""), None if after is None else int(after)
        try:
            opened = await self._opening.run(
                lambda _: open_watch(self._dict, prefix=prefix, after=revision, wake=wake), TIMEOUT
            )
        except HistoryLost as lost:
            raise Problem("history-lost", str(lost)) from None
        return EventStream(_Changes(self, opened), bell)

    def count(self, more: int) -> None:
        """So many streams more are open."""
        self._open += more


class _Changes:
    """The source of one stream: the changes that a watch reports."""

    def __init__(self, watches: Watches, watch: Watch[str, Any]) -> None:
        self._watches, self._watch = watches, watch
        self._told = -1
        self.ended = False

    def __enter__(self) -> _Changes:
        self._watches.count(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._watches.count(-1)
        self._watch.close()

    def next(self) -> str:
        """The next event, if there is one."""
        try:
            change = self._watch.next(0)
        except HistoryLost as lost:
            self.ended = True
            return f"event: history-lost\ndata: {json.dumps({'oldest': lost.oldest, 'current': lost.current})}\n\n"
        except EncodingError as error:
            self.ended = True
            return f"event: error\ndata: {json.dumps(str(error))}\n\n"
        except ReplidictError:
            self.ended = True
            return ": this node has stopped\n\n"
        if change is None:
            return self.heartbeat() if self._told < 0 else ""
        self._told = change.revision
        return f"id: {change.revision}\ndata: {_data(change)}\n\n"

    def heartbeat(self) -> str:
        """A comment, and the id that a client comes back with."""
        if self._watch.revision == self._told:
            return ":\n\n"
        self._told = self._watch.revision
        return f":\nid: {self._told}\n\n"


def _data(change: Change[str, Any]) -> str:
    events = []
    for event in change.events:
        said: dict[str, object] = {"kind": event.kind, "key": event.key}
        if event.kind == "set":
            said["value"] = _shown(event.value, said)
        said["previous"] = _shown(event.previous, said)
        events.append(said)
    return to_json({"revision": change.revision, "events": events})


def _shown(value: Any, said: dict[str, object]) -> Json:
    """The value as JSON; if JSON can't represent it, null and a word about it."""
    try:
        return Json(to_json(value))
    except (TypeError, ValueError, RecursionError, NotImplementedError):
        said["unshown"] = f"JSON can't represent this {type(value).__name__}"
        return Json("null")

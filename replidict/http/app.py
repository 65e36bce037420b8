"""The ASGI application: what each path and method does. docs/http.md is its documentation for users.

Rules kept here:

1. The event loop's thread never waits for a majority, a disk or a client: whatever may block goes through a bulkhead.
2. A condition is checked in the same step as the write that depends on it, or the request is refused: If-Match is
   `replace`, `If-None-Match: *` is `add`, and there is no conditional delete.
3. An ETag is the revision that wrote the value, so it is given only where that revision is known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from replidict.api.observation import options_of
from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.transaction import commit_on, texts_in_order
from replidict.api.views import Versioned
from replidict.errors import EncodingError
from replidict.http.authorization import Guard
from replidict.http.bulkheads import Bulkhead
from replidict.http.metrics import Metrics
from replidict.http.problems import HANDLERS, Problem
from replidict.http.representations import body_of, value_of
from replidict.http.request_bodies import Bodies
from replidict.http.request_parameters import (
    Page,
    Reading,
    condition_of,
    key_of,
    number_of,
    page_of,
    parameters_of,
    reading_of,
    timeout_of,
    ttl_of,
)
from replidict.http.status_page import FOLDER, StatusPage
from replidict.http.status_stream import Live
from replidict.http.transaction_body import transaction_of
from replidict.http.watch_events import Watches

READY_WITHIN = 1.0
"""Seconds in which a node that is up to date can show it."""
MEMBERS_WITHIN = 5.0
MAX_PAGE_BYTES = 1024 * 1024
"""A page of keys ends when it holds so many."""

Returned = TypeVar("Returned")

_READING = {"consistency", "max_staleness", "timeout"}


class _Key(Convertor[str]):
    """A path convertor for the rest of a path, line breaks included."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("replidict_key", _Key())


class Store:
    """The endpoints over one dict."""

    def __init__(self, d: ReplicatedDict[Any, Any]) -> None:
        self._dict, options = d, options_of(d)
        self._max_key_bytes = options.max_key_bytes
        # A value is a little longer on disk: by what tells its type and length.
        self._bodies = Bodies(options.max_value_bytes - 5)
        self._waiting = Bulkhead("waiting", 64, 192)
        self._listing = Bulkhead("listing", 1, 15)
        self._probing = Bulkhead("probing", 2, 14)
        self.watches = Watches(d, self._listing)
        self.live = Live(d)
        self.metrics = Metrics(d)

    def close(self) -> None:
        """Begin nothing more."""
        for bulkhead in (self._waiting, self._listing, self._probing, self.live.bulkhead):
            bulkhead.close()

    # -- keys and values ----------------------------------------------------------------------------------------------

    async def item(self, request: Request) -> Response:
        """/kv/KEY."""
        key = key_of(request, self._max_key_bytes)
        match request.method:
            case "PUT":
                return await self._put(request, key)
            case "DELETE":
                return await self._delete(request, key)
            case "POST":
                return await self._increment(request, key)
            case _:
                return await self._get(request, key)

    async def _get(self, request: Request, key: str) -> Response:
        reading = reading_of(parameters_of(request, _READING))
        condition = condition_of(request)
        if reading.local:
            seen = self._dict.versioned(key)
        else:
            seen = await self._waiting.run(lambda left: self._seen(key, reading, left), reading.timeout)
        if condition is not None and not condition.holds(None if seen is None else seen.revision):
            if not condition.negated or seen is None:
                raise _unmet(key)
            return Response(status_code=304, headers=_headers(seen.revision))
        if seen is None:
            raise _absent(key)
        body, content_type = body_of(seen.value)
        return Response(body, headers=_headers(seen.revision) | self._lifetime(key) | {"Content-Type": content_type})

    def _lifetime(self, key: str) -> dict[str, str]:
        """The header that says for how many seconds a key is there yet, if it goes by itself."""
        try:
            left = self._dict.ttl(key)
        except KeyError:
            left = 0.0
        return {} if left is None else {"Expires-In": f"{left:.3f}"}

    def _seen(self, key: str, reading: Reading, left: float) -> Versioned[Any] | None:
        self._catch_up(reading, left)
        return self._dict.versioned(key)

    def _catch_up(self, reading: Reading, left: float) -> None:
        """Wait until this node's copy is as far as the reading wants it; it never goes back from there."""
        if reading.linearizable:
            self._dict.barrier(timeout=left)
        elif reading.max_staleness is not None:
            self._dict.get("", max_staleness=reading.max_staleness, timeout=left)

    async def _put(self, request: Request, key: str) -> Response:
        parameters = parameters_of(request, {"timeout", "ttl"})
        timeout, ttl = timeout_of(parameters), ttl_of(parameters)
        condition = condition_of(request)
        if {coding.lower() for coding in request.headers.getlist("Content-Encoding")} - {"identity"}:
            raise Problem(
                "content-encoding", "compressed bodies are not supported: the value would be stored compressed"
            )
        if "Content-Range" in request.headers:
            raise Problem("bad-argument", "Content-Range: a value is stored whole")
        d = self._dict
        async with self._bodies.read(request) as body:
            value = value_of(body, request.headers.get("Content-Type", ""))
            if condition is None:
                revision = await self._waiting.run(
                    lambda left: d.set(key, value, ttl=ttl, timeout=left), timeout, writes=True
                )
                return Response(status_code=204, headers={"ETag": f'"{revision}"'})
            if condition.negated:
                if not condition.any:
                    raise Problem("any-revision", "a PUT takes If-None-Match: * (only if absent), or If-Match")
                done = await self._waiting.run(
                    lambda left: d.add(key, value, ttl=ttl, timeout=left), timeout, writes=True
                )
            else:
                known = condition.revision
                done = known is not None and await self._waiting.run(
                    lambda left: d.replace(key, value, revision=known, ttl=ttl, timeout=left), timeout, writes=True
                )
        if not done:
            raise _unmet(key)
        return Response(status_code=201 if condition.negated else 204)

    async def _delete(self, request: Request, key: str) -> Response:
        timeout = timeout_of(parameters_of(request, {"timeout"}))
        if condition_of(request) is not None:
            raise Problem(
                "conditional-delete",
                "it can't be done in one step; PUT a value that marks it as deleted, with If-Match",
            )
        gone = await self._waiting.run(lambda left: self._dict.delete(key, timeout=left), timeout, writes=True)
        if not gone:
            raise _absent(key)
        return Response(status_code=204)

    async def _increment(self, request: Request, key: str) -> Response:
        parameters = parameters_of(request, {"timeout", "increment", "default"})
        if "increment" not in parameters:
            raise Problem("bad-argument", "POST adds to a number: give increment=1, for instance")
        by, default = (number_of(parameters.get(name, "0"), name) for name in ("increment", "default"))
        d, timeout = self._dict, timeout_of(parameters)
        value = await self._waiting.run(
            lambda left: _added(lambda: d.increment(key, by, default=default, timeout=left)), timeout, writes=True
        )
        body, content_type = body_of(value)
        return Response(body, headers={"Content-Type": content_type})

    async def transaction(self, request: Request) -> Response:
        """POST /transaction."""
        timeout = timeout_of(parameters_of(request, {"timeout"}))
        async with self._bodies.read(request) as body:
            asked = transaction_of(body)
            commit = commit_on(self._dict)
            _added(lambda: asked.add_to(commit))
            revision = await self._waiting.run(lambda left: _added(lambda: commit.send(left)), timeout, writes=True)
        return JSONResponse({"revision": revision})

    async def list(self, request: Request) -> Response:
        """GET /kv."""
        parameters = parameters_of(request, _READING | {"prefix", "limit", "after"})
        reading, page = reading_of(parameters), page_of(parameters)
        if not reading.local:
            await self._waiting.run(lambda left: self._catch_up(reading, left), reading.timeout)
        body = await self._listing.run(lambda _: self._page(page), reading.timeout)
        return Response(body, media_type="application/json")

    def _page(self, page: Page) -> bytes:
        """The first keys that fit the page, in the order of their code points, and where the next one begins."""
        keys: list[str] = []
        after, left = page.after, page.limit + 1
        while left:
            found = texts_in_order(self._dict, page.prefix, after, left)
            keys += (key for key in found if _has_url(key))
            if len(found) < left:
                break
            after, left = found[-1], page.limit + 1 - len(keys)
        size, count = 0, 0
        while count < min(len(keys), page.limit) and size <= MAX_PAGE_BYTES:
            size += len(keys[count].encode())
            count += 1
        following = keys[count - 1] if count < len(keys) else None
        return json.dumps({"keys": keys[:count], "next": following}, ensure_ascii=False).encode() + b"\n"

    # -- the node -----------------------------------------------------------------------------------------------------

    async def status(self, request: Request) -> Response:
        """GET /status."""
        parameters_of(request, set())
        return JSONResponse(dataclasses.asdict(self._dict.status()))

    async def members(self, request: Request) -> Response:
        """GET /members."""
        parameters_of(request, set())
        members = await self._waiting.run(lambda _: self._dict.members(), MEMBERS_WITHIN)
        return JSONResponse({"members": [dataclasses.asdict(member) for member in members]})

    async def locks(self, request: Request) -> Response:
        """GET /locks."""
        parameters_of(request, set())
        locks = await self._waiting.run(lambda _: self._dict.locks(), MEMBERS_WITHIN)
        return JSONResponse({"locks": [dataclasses.asdict(lock) for lock in locks]})

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: this process is alive, and the node in it has not stopped."""
        if self._dict.status().role in ("stopped", "removed"):
            raise Problem("closed", "the node has stopped; its log says why")
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: there is a leader, and this node has all that was acknowledged before the question."""
        ready = await self._probing.run(lambda left: self._dict.wait_ready(left), READY_WITHIN)
        if not ready:
            raise Problem("not-ready", f"no majority confirmed within {READY_WITHIN:g} s that this node is up to date")
        return JSONResponse({"status": "ready"})

    async def figures(self, request: Request) -> Response:
        """GET /metrics."""
        body, content_type = self.metrics.page(request.headers.get("Accept", ""))
        return Response(body, headers={"Content-Type": content_type})


def asgi(d: ReplicatedDict[Any, Any], *, token: str | None = None) -> Starlette:
    """The store over HTTP and its status page, as an ASGI application to serve, or to mount in another one.

    Args:
        d: The dict, which stays the caller's to close.
        token: What requests must show as their bearer token. Without one, only those that call this machine by a
            loopback name are answered.

    Example:
        app = FastAPI()
        app.mount("/replidict", replidict.http.asgi(d, token=token))
    """
    store, page = Store(d), StatusPage(asks_for_token=token is not None)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        store.close()

    app = Starlette(
        routes=[
            Route("/", page.index),
            Route(FOLDER + "{name}", page.file),
            Route("/live", store.live.live),
            Route("/kv", store.list),
            Route("/kv/{key:replidict_key}", store.item, methods=["GET", "PUT", "DELETE", "POST"]),
            Route("/transaction", store.transaction, methods=["POST"]),
            Route("/watch", store.watches.watch),
            Route("/status", store.status),
            Route("/members", store.members),
            Route("/locks", store.locks),
            Route("/healthz", store.healthz),
            Route("/readyz", store.readyz),
            Route("/metrics", store.figures),
        ],
        middleware=[Middleware(store.metrics.measured), Middleware(Guard, token)],
        exception_handlers=HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a client that follows none would take the answer for a success
    return app


def _added(call: Callable[[], Returned]) -> Returned:
    """Return what the call returns. Raises `Problem` for a number that can't be added to."""
    try:
        return call()
    except EncodingError:
        raise
    except (TypeError, OverflowError) as error:
        raise Problem("not-a-number", str(error)) from None


def _headers(revision: int) -> dict[str, str]:
    return {"ETag": f'"{revision}"', "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


def _absent(key: str) -> Problem:
    return Problem("key-absent", f"{_brief(key)} is not in the dict")


def _unmet(key: str) -> Problem:
    return Problem("precondition-failed", f"{_brief(key)} is absent, present or of another revision: GET tells which")


def _brief(key: str) -> str:
    return repr(key if len(key) <= 80 else key[:77] + "...")


def _has_url(key: str) -> bool:
    return key.isascii() or key == key.encode(errors="ignore").decode()

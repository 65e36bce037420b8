"""Decides which requests are answered: those with the token, or those from this machine if there is none.

Rules kept here:

1. With a token, every request must carry it (RFC 6750), except for the two probes, which only say yes or no, and the
   files of the status page, which hold no data: a browser sends no token when it opens a page.
2. Without a token, only this machine may use the store. A request whose Host is not loopback is refused, since it comes
   from a browser that was tricked into sending it (DNS rebinding).
3. Comparing tokens takes the same time wherever they differ. No token appears in a response or a log line.
"""

from __future__ import annotations

import asyncio
import hmac

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replidict.http.problems import Problem
from replidict.http.request_parameters import path_of
from replidict.http.status_page import is_page
from replidict.security import is_loopback

PROBES = {"/healthz", "/readyz"}


class Guard:
    """ASGI middleware that lets only authorized requests through."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:  # the server ends, and its patience has; writes that had begun say so themselves
            if not started:
                await Problem("closed", "this node is being stopped; nothing was done").response()(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._token is None:
            host = headers.get("Host")
            if host is not None and not is_loopback(_name(host)):
                return Problem(
                    "not-loopback",
                    f"{host[:80]} is not this machine's loopback address; without a token nothing else is answered",
                ).response()
            return None
        path = path_of(scope)
        if path in PROBES or is_page(path):
            return None
        scheme, _, shown = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return self._unauthorized("send it as: Authorization: Bearer TOKEN", "")
        if not hmac.compare_digest(shown.strip().encode("latin-1"), self._token):
            return self._unauthorized("this one is wrong", ', error="invalid_token"')
        return None

    def _unauthorized(self, detail: str, error: str) -> Response:
        challenge = {"WWW-Authenticate": f'Bearer realm="replidict"{error}'}
        return Problem("bad-token", detail, challenge).response()


def _name(host: str) -> str:
    """The host of a Host header, without its port and brackets."""
    name, colon, port = host.rpartition(":")
    if not colon or not (port.isdigit() or not port):
        name = host
    return name.removeprefix("[").removesuffix("]")

"""Reads request heads with h11, and checks what h11 lets pass.

Rules kept here:

1. A head has a limited size besides its path, whether it comes bit by bit or at once: h11 limits incomplete heads only.
2. A request that states the length of its body in two ways is refused: a proxy on the way may have believed the other
   statement, and take the rest for another request (RFC 9112, 6.1 and 6.3).
3. A request target that names a host counts as its path on that host (RFC 9112, 3.2.2): the Host header may differ, and
   `authorization` must check the host that was meant.
"""

from __future__ import annotations

import re

import h11
from typing_extensions import override

HEAD_BYTES = 64 * 1024
"""For the headers and the query."""
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)/?(.*)", re.IGNORECASE)


class Heads(h11.Connection):
    """A stricter h11 connection, from the server's side."""

    @override
    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check(event)
            return _relative(event)
        return event


def _check(request: h11.Request) -> None:
    """Raise `h11.RemoteProtocolError` if this head is none that is answered."""
    query = request.target.partition(b"?")[2]
    headers = sum(len(name) + len(value) + len(b": \r\n") for name, value in request.headers)
    if len(query) + headers > HEAD_BYTES:
        raise h11.RemoteProtocolError("the headers and the query are too long", error_status_hint=431)
    named = {name for name, _ in request.headers}
    if b"transfer-encoding" in named and (b"content-length" in named or request.http_version < b"1.1"):
        raise h11.RemoteProtocolError("Transfer-Encoding goes with no Content-Length, and came with HTTP/1.1")


def _relative(request: h11.Request) -> h11.Request:
    """Rule 3."""
    found = _ABSOLUTE.fullmatch(request.target)
    if found is None:
        return request
    host, path = found.groups()
    others = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=b"/" + path,
        headers=[(b"host", host), *others],
        http_version=request.http_version,
    )

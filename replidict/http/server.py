"""Opens the listening socket and configures uvicorn.

Rules kept here:

1. Without a host, it listens on loopback. It does not listen elsewhere without a token.
2. The address is bound before the dict is opened, so that a port in use costs nothing but an error message.
3. When it is stopped, the server accepts no more connections, and finishes the requests under way within a time limit.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from replidict.errors import ReplidictError, SecurityError
from replidict.http.connection_limits import Connection
from replidict.http.request_heads import HEAD_BYTES
from replidict.options import Options
from replidict.security import is_loopback

KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 10
TOKEN_MIN_BYTES = 8


def listening(address: str) -> socket.socket:
    """A socket bound to `":port"` (loopback), `"host:port"` or `"[::1]:port"`. Raises `ReplidictError`."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ReplidictError(f"bad address {address!r}: an IPv6 address goes in brackets, as in '[::1]:8001'")
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ReplidictError(f"bad address {address!r}: must be ':8001' or 'host:8001'")
    try:
        found = socket.getaddrinfo(host or "127.0.0.1", int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ReplidictError(f"can't listen on {address}: {error}") from error
    family, _, _, _, target = min(found, key=lambda each: each[0] != socket.AF_INET)  # localhost is 127.0.0.1 first
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only if it is said
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(target)
    except OSError as error:
        bound.close()
        raise ReplidictError(f"can't listen on {address}: {error}") from error
    return bound


def token_of(file: Path | None) -> str | None:
    """The bearer token: the text of this file, or of the environment's REPLIDICT_HTTP_TOKEN. None if there is neither.

    Raises `SecurityError` when it can't be read or is none.
    """
    source = "REPLIDICT_HTTP_TOKEN" if file is None else str(file)
    try:
        token = os.environ.get("REPLIDICT_HTTP_TOKEN") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SecurityError(f"{source}: can't read the token for HTTP: {error}") from error
    if token is None:
        return None
    token = token.strip()
    if len(token) < TOKEN_MIN_BYTES or not all("!" <= char <= "~" for char in token):
        raise SecurityError(
            f"{source}: a token for HTTP has at least {TOKEN_MIN_BYTES} characters of ASCII, and no spaces: make one "
            "with python -c 'import secrets; print(secrets.token_hex(32))'"
        )
    return token


def check_protected(bound: socket.socket, token: str | None) -> None:
    """Raise `SecurityError` if others could reach this socket and nothing would stop them."""
    host = bound.getsockname()[0]
    if token is None and not is_loopback(host):
        raise SecurityError(
            f"HTTP at {host} is not on loopback, and anyone who reaches it could use this dict: put a token in "
            "a file and give it with --http-token-file (or in the environment's REPLIDICT_HTTP_TOKEN), or listen on "
            "loopback: --http :PORT"
        )


class HttpServer:
    """uvicorn in a thread of its own."""

    def __init__(self, app: ASGIApp, bound: socket.socket, options: Options) -> None:
        """Serve the app on a bound socket, which this closes at the end. `options` are those of the dict."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Connection,
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                h11_max_incomplete_event_size=3 * options.max_key_bytes + HEAD_BYTES,  # %XX for each byte of a key
            )
        )
        self._bound = bound
        self._thread = threading.Thread(target=self._server.run, args=([bound],), name="replidict http")

    def start(self) -> None:
        """Begin. Clients that call from here on are answered."""
        self._bound.listen(2048)
        self._thread.start()

    def stop(self) -> None:
        """Accept no more requests and finish those under way; the second call ends them. It may be called in signal
        handlers."""
        if self._server.should_exit:
            self._server.force_exit = True
        self._server.should_exit = True

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no more, because it was told to stop or has ended by itself."""
        return self._server.should_exit or not self._thread.is_alive()

    def ended_within(self, seconds: float) -> bool:
        """Wait so long for its end; whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when it has ended."""
        self._thread.join()

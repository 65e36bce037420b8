"""Connections that have not authenticated yet: their limits, and which of them is closed for a new one.

Rules kept here:

1. There are at most `UNAUTHENTICATED_MAX`. Beyond that, one of the host with the most of them is closed, so that a
   flood from one host is only in the way of that host.
2. Of that host, those that were already refused are closed first, then those that are least far in the handshake: a
   member identifies itself as soon as it is connected, and nobody without the secret gets as far as it does.
3. Among these, one is chosen at random. If it were the oldest, a flood faster than a handshake would keep a member out
   for good; so each of its attempts has a chance.

An IPv6 host is its /64 network, all of whose addresses it may have.
"""

from __future__ import annotations

import ipaddress
import random

from replidict.transport.tcp import SocketConnection

UNAUTHENTICATED_MAX = 128


class UnauthenticatedConnections:
    """The unauthenticated connections of one node."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[int, SocketConnection]] = {}  # by host, then by file descriptor
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def come(self, connection: SocketConnection) -> SocketConnection | None:
        """A connection arrives. Returns the one that must be closed for it, if any; `gone` must be called for it."""
        victim = self._last_in_line() if self._count >= UNAUTHENTICATED_MAX else None
        self._by_host.setdefault(_host(connection.remote), {})[connection.fd] = connection
        self._count += 1
        return victim

    def gone(self, connection: SocketConnection) -> None:
        """It is closed, or authenticated; if it was not among these, nothing happens."""
        host = _host(connection.remote)
        of_host = self._by_host.get(host, {})
        if of_host.get(connection.fd) is connection:
            del of_host[connection.fd]
            self._count -= 1
            if not of_host:
                del self._by_host[host]

    def _last_in_line(self) -> SocketConnection:
        of_host = max(self._by_host.values(), key=len).values()
        least = min(map(_progress, of_host))
        return random.choice([connection for connection in of_host if _progress(connection) == least])


def _progress(connection: SocketConnection) -> tuple[int, bool]:
    """How far it has come: in TLS mode, a hello is a long way."""
    return 0 if connection.parting else connection.session.state.value, connection.session.heard


def _host(remote: str) -> str:
    if ":" not in remote:
        return remote
    address, _, _ = remote.partition("%")  # the interface, of a link-local one
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(address)) >> 64 << 64))

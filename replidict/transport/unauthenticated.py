"""Connections that have not authenticated yet: their limits, and which of them is closed for a new one.

Rules this module keeps:

1. There are at most `STRANGERS_MAX`. Beyond that, one goes from the host that has the most of them, so that whoever
   floods a node from one host stands in nobody's way but that host's.
2. Of that host, those go first that were told why they must go, then those that have come least far in the handshake: a
   member says who it is as soon as it is through, and nobody without the secret gets as far as it does.
3. Among these one goes at random. If it were the oldest, a flood that is faster than a handshake would keep a member
   out for good; like this, each of its calls has a chance.

An IPv6 host is its network of 64 bits: it may have all addresses in there.
"""

from __future__ import annotations

import ipaddress
import random

from replidict.transport.tcp import SocketConnection

UNAUTHENTICATED_MAX = 128


class UnauthenticatedConnections:
    """Those of one node."""

    def __init__(self) -> None:
        self._by_host: dict[str, dict[int, SocketConnection]] = {}  # by host, then by file descriptor
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def come(self, connection: SocketConnection) -> SocketConnection | None:
        """Somebody called. Returns who must go for it, if any: `gone` is to follow."""
        victim = self._last_in_line() if self._count >= UNAUTHENTICATED_MAX else None
        self._by_host.setdefault(_host(connection.remote), {})[connection.fd] = connection
        self._count += 1
        return victim

    def gone(self, connection: SocketConnection) -> None:
        """It is closed, or proved itself; if it was none, nothing happens."""
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

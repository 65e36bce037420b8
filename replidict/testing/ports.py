"""Finds free loopback addresses for nodes."""

from __future__ import annotations

import random
import socket

PORTS = range(15_000, 32_000)
"""Below those that systems give to outgoing connections."""

_draw = random.SystemRandom()


def free_addresses(count: int) -> list[str]:
    """So many addresses with ports that are free now; another process may take one before it is used."""
    found: list[str] = []
    while len(found) < count:
        address = f"127.0.0.1:{_draw.choice(PORTS)}"
        if address not in found and _is_free(address):
            found.append(address)
    return found


def _is_free(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


def reserve(address: str) -> socket.socket:
    """Keep the port of a node that is down, until the socket is closed: `free_addresses` does not give it to others."""
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the node may linger
        sock.bind((host, int(port)))
    except BaseException:
        sock.close()
        raise
    return sock

"""How a node opens the connection to a peer, again and again (see `routes` for pauses), and what it logs of that."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable

from replidict.errors import ReplidictError
from replidict.log_throttle import LogThrottle
from replidict.monotonic_clock import clock
from replidict.security import split_address
from replidict.transport.peer_link import Pair
from replidict.transport.routes import Lookup, reason
from replidict.transport.tcp import SocketConnection, dial

CONNECT_TIMEOUT = 1.0  # seconds for TCP to arrive at one address
LINES_PER_PEER = 5  # in the log, of one level, a minute
LOOKUP_JOIN = 2.0  # seconds that `close` waits for lookups under way


class Dialing:
    """The calls of one node to its peers."""

    def __init__(
        self, add: Callable[[socket.socket, str, str, float], SocketConnection], log_throttle: LogThrottle
    ) -> None:
        """`add` makes a connection of a socket on its way to a host; the address called and a deadline follow."""
        self._add, self._log_throttle = add, log_throttle
        self._lookups: list[Lookup] = []  # under way

    def call(self, peer: Pair, now: float) -> bool:
        """Take the next step towards a connection. Returns whether a call is under way; if not, `peer.route.due` says
        when to try again."""
        try:
            target = peer.route.take(now)
            if target is not None:
                host, _ = split_address(peer.node.id)
                peer.calling = self._add(dial(target), host, peer.node.id, now + CONNECT_TIMEOUT)
                return True
        except (OSError, ReplidictError) as error:
            self.failed(peer, now, "unreachable", reason(error))
        if peer.route.lookup is not None and peer.route.lookup not in self._lookups:
            self._lookups.append(peer.route.lookup)
        self._lookups = [lookup for lookup in self._lookups if not lookup.done.is_set]
        return False

    def failed(self, peer: Pair, now: float, code: str, text: str) -> None:
        """A call came to nothing."""
        level = peer.unreachable(now, code)
        if level is not None:
            self.log(peer, now, level, text)

    def log(self, peer: Pair, now: float, level: int, text: str) -> None:
        """Say why there is no connection."""
        address = peer.node.id
        self._log_throttle.log(address, now, f"no connection to {address}: {text}", level, LINES_PER_PEER)

    def connected(self, address: str, now: float) -> None:
        """Say that there is one."""
        self._log_throttle.log(address, now, f"connected to {address}", logging.INFO, LINES_PER_PEER)

    def close(self, others: Iterable[Lookup]) -> None:
        """Wait a while for the lookups under way, these others included."""
        until = clock() + LOOKUP_JOIN
        for lookup in [*self._lookups, *others]:
            lookup.join(max(until - clock(), 0.0))

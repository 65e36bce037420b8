"""When and where to call a peer: addresses, host names that change theirs, and pauses between attempts.

Rules this module keeps:

1. Names are looked up anew for every attempt, in a thread of their own, since `getaddrinfo` blocks; the thread
   touches nothing but its own result.
2. All addresses of a name are tried in one attempt; between attempts is a pause that grows from 0.2 to 0.5 s.
3. `localhost` is 127.0.0.1 and ::1, whatever a resolver says, and a node that trusts all that is on loopback calls
   no one elsewhere.
"""

from __future__ import annotations

import socket
from typing import Any

from replidict.errors import ReplidictError
from replidict.latch import Latch
from replidict.own_threads import OwnThread
from replidict.security import is_loopback, split_address

PAUSE_FIRST, PAUSE_LAST, PAUSE_FACTOR = 0.2, 0.5, 1.3  # seconds between two attempts
LOOKUP_INTERVAL = 0.02  # seconds between two looks at a lookup under way

Target = tuple[socket.AddressFamily, Any]  # a family and its socket address


class Route:
    """How to reach one peer. `due` is the clock time at which `take` is worth calling."""

    def __init__(self, address: str, loopback_only: bool) -> None:
        self.address = address
        self.due = float("-inf")
        self.lookup: Lookup | None = None
        self._loopback_only = loopback_only
        self._targets: list[Target] = []
        self._pause = PAUSE_FIRST

    def take(self, now: float) -> Target | None:
        """Where to call now; None: not yet. `ReplidictError` when there is no such place for the time being."""
        if now < self.due:
            return None
        if not self._targets:
            self._targets = self._find()
        if self._targets:
            return self._targets.pop(0)
        self.due = now + LOOKUP_INTERVAL
        return None

    def failed(self, now: float) -> None:
        """The call, or the search, came to nothing."""
        if not self._targets:
            self.due = now + self._pause
            self._pause = min(self._pause * PAUSE_FACTOR, PAUSE_LAST)

    def arrived(self) -> None:
        """The peer is connected: when it is lost again, begin anew."""
        self._targets, self._pause = [], PAUSE_FIRST

    def _find(self) -> list[Target]:
        """The addresses of the host name; none while it is being looked up."""
        host, port = split_address(self.address)
        if self._loopback_only and not is_loopback(host):
            raise ReplidictError(
                "it is not a loopback address, and this node connects to others only with secret= or tls="
            )
        if self.lookup is None:
            targets = numeric(host, port)
            if targets:
                return targets
            self.lookup = Lookup(host, port)
        if not self.lookup.done.is_set:
            return []
        lookup, self.lookup = self.lookup, None
        if lookup.problem:
            raise ReplidictError(lookup.problem)
        return list(lookup.targets)


class Lookup:
    """One lookup of a host name, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.done = Latch()
        self.targets: list[Target] = []
        self.problem = ""
        # A daemon, so that a resolver that takes minutes can't keep the program from ending.
        self._thread = OwnThread(lambda: self._run(host, port), "replidict-lookup")
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no more: that is no reason for a node to stop
            self.problem = f"the name {host!r} can't be looked up: {error}"
            self.done.set()

    def _run(self, host: str, port: int) -> None:
        try:
            self.targets = resolve(host, port)
        except (OSError, UnicodeError) as error:
            self.problem = f"the name {host!r} can't be resolved: {reason(error)}"
        finally:
            self.done.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout)


def numeric(host: str, port: int) -> list[Target]:
    """The targets of an IP address or of `localhost`, which no resolver is trusted with; for a name, nothing."""
    if host.lower() == "localhost":
        return [*numeric("127.0.0.1", port), *numeric("::1", port)]
    try:
        return resolve(host, port, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []


def resolve(host: str, port: int, flags: int = 0) -> list[Target]:
    """The addresses that a host name has now. Blocks."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICSERV)
    return list(dict.fromkeys((family, target) for family, _, _, _, target in found))


def reason(error: BaseException | None) -> str:
    """The reason of a failure, in the system's words."""
    return str(getattr(error, "strerror", None) or error)

"""Whether anybody listens at the address of a peer that has closed its connection.

Rules this module keeps:

1. A probe is a TCP connection that says nothing, and is closed as soon as it is there.
2. Told is only that all that the address stands for has refused it (ECONNREFUSED), apart from what this machine has no
   way to. Where nothing answers, or something else fails, nothing is told.
3. The system closes the listener and the connections of a process that ends one after the other, in any order. So who
   has answered is asked again, `ROUNDS` times at most.
4. Sockets are closed in `tick`, never during a poll (see `tcp`, rule 3).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from pysyncobj.poller import POLL_EVENT_TYPE, Poller

from replidict.security import is_loopback, split_address
from replidict.transport.routes import LOOKUP_INTERVAL, Lookup, Target, numeric
from replidict.transport.tcp import connected, dial

ROUNDS, ROUND_INTERVAL = 10, 0.01  # how often somebody is asked, and seconds between two times
PATIENCE = 1.0  # seconds after which there will be no answer

_NO_WAY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH})
"""As where a name stands for an IPv6 address, and this machine has none."""


class _Probe:
    """The probes of one address, one after the other."""

    def __init__(self, address: str) -> None:
        self.address = address
        host, port = split_address(address)
        self.targets = numeric(host, port)
        self.lookup = None if self.targets else Lookup(host, port)
        self.left = list(self.targets)  # of this round
        self.refused = self.answered = False  # by any target of this round
        self.rounds = ROUNDS
        self.sock: socket.socket | None = None
        self.code: int | None = None  # what came of it: 0, an error, or nothing yet
        self.due = float("-inf")

    def note(self, code: int) -> None:
        """What came of one target."""
        if code == errno.ECONNREFUSED:
            self.refused = True
        elif code not in _NO_WAY:
            self.answered = True
            self.left.clear()

    def begin_round(self) -> None:
        """Ask all targets."""
        self.left = list(self.targets)
        self.refused = self.answered = False


class Probes:
    """Those of one node that are under way; `refused` gets the address where nobody listens, in `tick`."""

    def __init__(self, poller: Poller, loopback_only: bool, refused: Callable[[str], None]) -> None:
        self._poller, self._loopback_only, self._refused = poller, loopback_only, refused
        self._probes: dict[str, _Probe] = {}
        self.lookups: list[Lookup] = []
        """Those under way, for who waits for their threads."""

    @property
    def due(self) -> float:
        """The clock time at which `tick` wants to run next."""
        return min([probe.due for probe in self._probes.values()], default=float("inf"))

    def begin(self, address: str) -> None:
        """Ask whether anybody listens there, from the next `tick` on."""
        self.cancel(address)
        if self._loopback_only and not is_loopback(split_address(address)[0]):
            return
        probe = self._probes[address] = _Probe(address)
        self.lookups = [lookup for lookup in self.lookups if not lookup.done.is_set]
        if probe.lookup is not None:
            self.lookups.append(probe.lookup)

    def cancel(self, address: str) -> None:
        """Ask no more. Not during a poll."""
        if (probe := self._probes.pop(address, None)) is not None:
            self._close(probe)

    def close(self) -> None:
        """Ask nobody any more."""
        for address in list(self._probes):
            self.cancel(address)

    def abandon(self) -> None:
        """Close the descriptors of a forked child, where the poller is the parent's."""
        for probe in self._probes.values():
            if probe.sock is not None:
                probe.sock.close()

    def tick(self, now: float) -> None:
        """Do what is due."""
        for probe in [probe for probe in self._probes.values() if probe.due <= now]:
            if probe.lookup is None or self._look_up(probe, probe.lookup, now):
                self._go_on(probe, now)

    def _look_up(self, probe: _Probe, lookup: Lookup, now: float) -> bool:
        """Take over what a lookup has found, if it has."""
        if not lookup.done.is_set:
            probe.due = now + LOOKUP_INTERVAL
        elif lookup.targets:
            probe.lookup, probe.targets = None, list(lookup.targets)
            probe.begin_round()
            return True
        else:
            del self._probes[probe.address]
        return False

    def _go_on(self, probe: _Probe, now: float) -> None:
        if probe.sock is not None:
            if probe.code is None:
                self.cancel(probe.address)  # nothing answers
                return
            self._close(probe)
            probe.note(probe.code)
        while probe.left:
            try:
                self._dial(probe, probe.left.pop(0))
            except OSError as error:
                probe.note(error.errno or 0)
            else:
                probe.due = now + PATIENCE
                return
        probe.rounds -= 1
        if probe.refused and not probe.answered:
            del self._probes[probe.address]
            self._refused(probe.address)
        elif probe.rounds:
            probe.begin_round()
            probe.due = now + ROUND_INTERVAL
        else:
            del self._probes[probe.address]

    def _dial(self, probe: _Probe, target: Target) -> None:
        sock = dial(target)
        probe.sock, probe.code = sock, None

        def on_event(fd: int, mask: int) -> None:
            try:
                if probe.code is None and connected(sock):
                    probe.code = 0
            except OSError as error:
                probe.code = error.errno
            if probe.code is not None:
                probe.due = float("-inf")

        self._poller.subscribe(sock.fileno(), on_event, POLL_EVENT_TYPE.WRITE | POLL_EVENT_TYPE.ERROR)

    def _close(self, probe: _Probe) -> None:
        if probe.sock is not None:
            self._poller.unsubscribe(probe.sock.fileno())
            probe.sock.close()
            probe.sock = None

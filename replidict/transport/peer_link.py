"""The connection between two nodes: which of the two calls, and which of two connections stays.

Rules this module keeps:

1. The node with the greater address calls. The lesser one calls, too, when it has had no connection for `MISSED_CALL`:
   the other may not know any more that it exists, or not be able to reach it.
2. When both call, the greater one alone decides, since two that decide by themselves could each choose the connection
   that the other gives up. Until it has accepted the other's call it may give up its own, which opens at the other
   side only by its last word; once its own is open, it refuses the other's, unless that comes so late that the other
   must have lost it.
3. Why a peer can't be reached is logged once for each kind of reason, until it is.
"""

from __future__ import annotations

import logging

from pysyncobj.node import Node

from replidict.transport.routes import Route
from replidict.transport.tcp import SocketConnection

MISSED_CALL = 1.5  # seconds without a connection after which the lesser address calls as well
MISSED_AFTER = 5.0  # seconds for which nobody wonders where a peer is that was never there
REASONS_MAX = 16  # kinds of reasons told apart about a peer that can't be reached; it may make up more


class Pair:
    """This node (`me`) and a peer, as the wire sees them."""

    def __init__(self, me: str, node: Node, loopback_only: bool, now: float) -> None:
        self.me, self.node, self.route = me, node, Route(node.id, loopback_only)
        self.greater = me > node.id
        self.live: SocketConnection | None = None
        """The connection that the engine uses."""
        self.calling: SocketConnection | None = None
        """This side's call, on its way."""
        self.coming: SocketConnection | None = None
        """The peer's call, accepted here, and not yet there."""
        self._turned_at = now  # when `live` was made or lost
        self._said: set[str] = set()  # the kinds of reasons logged since it was last connected
        self._met = False  # ever
        self._missed_since = float("inf")

    def should_call(self, now: float) -> bool:
        """Rule 1: is it for this side to call now?"""
        if self.live is not None or self.calling is not None or self.coming is not None:
            return False
        return self.greater or now >= self._turned_at + MISSED_CALL

    def crossed(self, now: float) -> bool:
        """Rule 2: must the peer's call be refused, because this side's own has just come through?"""
        mine = self.live is not None and self.live.called is not None
        return self.greater and mine and now < self._turned_at + MISSED_CALL

    def opened(self, connection: SocketConnection, now: float) -> None:
        """Both sides have accepted each other."""
        self.live, self.calling, self.coming, self._turned_at = connection, None, None, now
        self.route.arrived()
        self._said.clear()
        self._met = True

    def lost(self, now: float) -> bool:
        """The live connection is gone. Returns whether it lasted no longer than a farewell."""
        brief = now < self._turned_at + MISSED_CALL
        self.live, self._turned_at = None, now
        self.route.failed(now)
        return brief

    def unreachable(self, now: float, code: str) -> int | None:
        """A call failed. Rule 3: returns the log level for it, if it is to be logged."""
        self.route.failed(now)
        level = logging.INFO if code == "crossed" else logging.WARNING
        if code == "absent" and not self._met:
            # Founders start one after the other: that one is not there yet is no reason to worry, for a while.
            self._missed_since = min(self._missed_since, now)
            if now - self._missed_since < MISSED_AFTER:
                level = logging.INFO
            else:
                code = "missed"
        if code in self._said or len(self._said) >= REASONS_MAX:
            return None
        self._said.add(code)
        return level

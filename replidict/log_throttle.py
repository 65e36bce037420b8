"""`LogThrottle`: limits the log lines about each peer to a few a minute, and counts the rest."""

from __future__ import annotations

import logging

from replidict.logging_thread import Logger

logger = Logger(__name__)

INTERVAL = 60.0  # seconds between two lines about one key
KEYS_MAX = 1024  # keys told apart; all others are one


class LogThrottle:
    """Limits log lines by key (a host, a peer) and level. `tick` must be called regularly: it reports what was left
    out."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._said: dict[tuple[str, int], tuple[float, int, int]] = {}  # until when, how many lines, and were left out
        self._next = float("inf")

    def log(self, key: str, now: float, text: str, level: int = logging.WARNING, most: int = 1) -> None:
        """Log a line about `key`, up to a number a minute; count the rest."""
        if (key, level) not in self._said and len(self._said) >= KEYS_MAX:
            key = "other hosts"
        known = key, level
        until, lines, left_out = self._said.get(known, (now, 0, 0))
        if now >= until:
            self._report(known)
            until, lines, left_out = now + INTERVAL, 0, 0
            self._next = min(self._next, until)
        if lines < most:
            self._said[known] = until, lines + 1, left_out
            logger.log(level, "%s: %s", self._me, text)
        else:
            self._said[known] = until, lines, left_out + 1

    def tick(self, now: float) -> None:
        """Tell how much was left out where a minute is over."""
        if now < self._next:
            return
        for known, (until, _, _) in list(self._said.items()):
            if now >= until:
                self._report(known)
        self._next = min((until for until, _, _ in self._said.values()), default=float("inf"))

    def _report(self, known: tuple[str, int]) -> None:
        _, _, left_out = self._said.pop(known, (0.0, 0, 0))
        if left_out:
            logger.log(known[1], "%s: %d more like that about %s within a minute", self._me, left_out, known[0])

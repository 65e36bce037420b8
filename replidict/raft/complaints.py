"""Log lines about strangers: one a minute for each, and a count of what was left out, whatever they do."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

INTERVAL = 60.0  # seconds between two lines about one key
KEYS_MAX = 1024  # keys told apart; all others share one


class Complaints:
    """Warnings, limited per key (a host). Needs `tick`, to tell what it left out and to forget."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._quiet: dict[str, tuple[float, int]] = {}  # key: until when, and how many were left out
        self._next = float("inf")

    def log(self, key: str, now: float, text: str) -> None:
        """Log a warning about `key`, or count it."""
        if key not in self._quiet and len(self._quiet) >= KEYS_MAX:
            key = "other hosts"
        until, left_out = self._quiet.get(key, (now, -1))
        if now < until:
            self._quiet[key] = (until, left_out + 1)
            return
        self._report(key)
        self._quiet[key] = (now + INTERVAL, 0)
        self._next = min(self._next, now + INTERVAL)
        logger.warning("%s: %s", self._me, text)

    def tick(self, now: float) -> None:
        """Tell how much was left out where a minute is over."""
        if now < self._next:
            return
        for key, (until, _) in list(self._quiet.items()):
            if now >= until:
                self._report(key)
        self._next = min((until for until, _ in self._quiet.values()), default=float("inf"))

    def _report(self, key: str) -> None:
        _, left_out = self._quiet.pop(key, (0.0, 0))
        if left_out:
            logger.warning("%s: %d more like that about %s within a minute", self._me, left_out, key)

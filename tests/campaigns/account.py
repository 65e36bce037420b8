"""What the clients of a campaign were told, and what must follow from it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.measure import percentile


class Account:
    """Adds of keys of their own, which must be there once and for all, and the violations that were found."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.added: dict[str, int] = {}
        self.maybe_added: dict[str, int] = {}
        self.violations: list[str] = []

    def violated(self, what: str) -> None:
        """A promise was broken."""
        with self.mutex:
            self.violations.append(what)

    def lost(self, content: dict[str, Any]) -> list[str]:
        """The keys that were added, and are not there. They are violations, and so are adds that were refused."""
        lost = sorted(key for key, value in self.added.items() if content.get(key) != value)
        strange = sorted(
            key for key in content if key[0] == "a" and key not in self.added and key not in self.maybe_added
        )
        if lost:
            self.violated(f"{len(lost)} acknowledged writes are lost: {lost[:10]}")
        if strange:
            self.violated(f"{len(strange)} writes that were refused are there: {strange[:10]}")
        return lost

    def adds_up(self, key: str, value: int, acknowledged: int, unknown: int) -> dict[str, int]:
        """A counter, which must show what was acknowledged, and at most what is unknown besides."""
        found = {"value": value, "acknowledged": acknowledged, "unknown": unknown}
        if not acknowledged <= value <= acknowledged + unknown:
            self.violated(f"{key} does not add up: {found}")
        return found


def distribution(seconds: Iterable[float]) -> dict[str, float]:
    """How many there are, and their median, 99th percentile and largest, in milliseconds."""
    ordered: Sequence[float] = sorted(seconds)
    if not ordered:
        return {"count": 0}
    shares = {"p50 ms": 0.5, "p99 ms": 0.99, "max ms": 1.0}
    return {"count": len(ordered)} | {
        name: round(percentile(ordered, share) * 1e3, 1) for name, share in shares.items()
    }

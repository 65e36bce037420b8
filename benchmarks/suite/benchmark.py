"""What makes a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.settings import Measured, Settings


@dataclass(frozen=True)
class Benchmark:
    """A name to call it by, what it measures, and how to read it."""

    name: str
    title: str
    measure: Callable[[Settings], Measured]
    """One round."""
    compare: tuple[str, ...] = ()
    """Figures for which ratios are shown..."""
    against: tuple[str, ...] = ()
    """... of ours to those of these systems."""
    repeated: bool = True
    """Whether `--runs` applies; not where one round has repetitions enough."""
    by_default: bool = True

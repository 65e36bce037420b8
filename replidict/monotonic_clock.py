"""The clock for all waiting: seconds on this machine, never set back."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# A lease must not outlive a suspended machine: this clock goes on while it sleeps, where there is such a one.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# Bound when this is imported: tests that freeze `time.monotonic` or `time.time` must not freeze a deadline.
clock: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Seconds on this machine's clock that never goes back."""

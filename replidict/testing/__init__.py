"""Helpers for testing programs that use a `ReplicatedDict`: clusters in one process, faults, simulated time."""

from replidict.testing.cluster import Cluster
from replidict.testing.failing_writes import fail_next, steal_lock
from replidict.testing.simulation import FAULTS, SimulationFailed, SimulationResult, simulate
from replidict.testing.time_travel import Clock

__all__ = [
    "FAULTS",
    "Clock",
    "Cluster",
    "SimulationFailed",
    "SimulationResult",
    "fail_next",
    "simulate",
    "steal_lock",
]

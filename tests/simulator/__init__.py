"""Whole clusters in simulated time, over a simulated network and simulated disks: `simulate(seed)`."""

from replidict.testing.simulator.violation import Violation
from tests.simulator.run import Result, simulate

__all__ = ["Result", "Violation", "simulate"]

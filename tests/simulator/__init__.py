"""Whole clusters in simulated time, over a simulated network and simulated disks: `simulate(seed)`."""

from tests.simulator.run import Result, simulate
from tests.simulator.violation import Violation

__all__ = ["Result", "Violation", "simulate"]

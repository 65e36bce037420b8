"""Whole nodes in simulated time, on a simulated network and simulated disks."""

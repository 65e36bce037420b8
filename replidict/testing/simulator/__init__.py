"""Whole nodes in simulated time, over a simulated network and simulated disks."""

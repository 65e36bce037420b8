"""Authenticated connections between nodes, and from their clients."""

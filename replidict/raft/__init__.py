"""Raft, on top of PySyncObj."""

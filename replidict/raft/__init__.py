"""Raft: PySyncObj made safe."""

"""The storage of a node: one SQLite file."""

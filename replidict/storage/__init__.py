"""One SQLite file per node."""

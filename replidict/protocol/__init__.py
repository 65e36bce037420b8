"""The messages between nodes and clients, and the shape of log entries."""

"""The replicated state machine: pure, and the same on every node."""

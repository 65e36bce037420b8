"""Programs to read and to run: `python examples/lease.py` or `python -m examples.lease`, and so each of the others."""

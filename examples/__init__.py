"""Programs to read and to run: `python -m examples.demo`, and the same for each of the others."""

"""Programs to read and to run: `python examples/cron.py` or `python -m examples.cron`, and so on."""

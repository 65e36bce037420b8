"""Campaigns: real processes under load and faults for minutes, and then the account. See `__main__`."""

"""The command `replidict`. docs/command.md tells it to users; nothing but `__main__` imports it."""

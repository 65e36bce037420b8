"""The command `replidict`. docs/command.md tells it to users; no other module imports it."""

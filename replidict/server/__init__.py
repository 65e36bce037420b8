"""An open node in its process, and what it does for others."""

"""An open node in its process, and what it does for clients and attached processes."""

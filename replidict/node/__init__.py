"""One node of the cluster: its thread, and the calls that wait for it."""

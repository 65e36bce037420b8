"""The face of the dict: what a program holds in its hands."""

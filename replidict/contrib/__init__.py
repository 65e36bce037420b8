"""Adapters for frameworks, each an extra with its own dependency: Django, APScheduler, tooz, Prometheus."""

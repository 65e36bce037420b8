"""What every test has to leave behind: nothing."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator

import pytest


def open_descriptors() -> set[tuple[str, str]]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))
        except OSError:
            pass  # the one that listed the directory
    return found


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No test leaves a thread or a file descriptor behind."""
    threads = set(threading.enumerate())
    descriptors = open_descriptors()
    yield
    deadline = time.monotonic() + 60
    while True:
        gc.collect()
        left = set(threading.enumerate()) - threads, open_descriptors() - descriptors
        if not any(left) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert not any(left), f"left behind: {left}"

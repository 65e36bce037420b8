"""What every test has to leave behind: nothing. And what the tests of several modules are given."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from importlib import import_module

import pytest

from tests.wire_nets import Net, a_net
from tests.wire_support import Certificates


def pytest_collection_finish() -> None:
    """What is there before the first test stays: the collector, which runs after each test, need not look at it."""
    import_module("hypothesis")  # which asks the collector who refers to something of its plugins
    gc.collect()
    gc.freeze()


def open_descriptors() -> set[tuple[str, str]]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))
        except OSError:
            pass  # the one that listed the directory
    return found


def opened_since(before: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Descriptors that are new, but for those of database files that were open before and still are: a node that other
    tests use as well reads its file through, or makes a snapshot, on its own. SQLite keeps the reader's descriptor for
    the next one, since to close it would give up the locks of the node."""
    files = {path + end for _, path in before if path.endswith(".db") for end in ("", "-wal")}
    return {(descriptor, path) for descriptor, path in open_descriptors() - before if path not in files}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No test leaves a thread or a file descriptor behind."""
    threads = set(threading.enumerate())
    descriptors = open_descriptors()
    yield
    deadline = time.monotonic() + 60
    while True:
        gc.collect()
        left = set(threading.enumerate()) - threads, opened_since(descriptors)
        if not any(left) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert not any(left), f"left behind: {left}"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def net(certificates: Certificates, caplog: pytest.LogCaptureFixture) -> Iterator[Net]:
    with a_net(certificates, caplog) as net:
        yield net

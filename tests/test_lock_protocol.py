"""CPython's own tests of `threading.Lock` and `threading.BoundedSemaphore`, against `d.lock` and `d.semaphore`."""

from __future__ import annotations

import unittest
from importlib import import_module
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest

from replidict import Lock, Options, ReplicatedDict, Semaphore

lock_tests: Any = import_module("test.lock_tests")

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

NOT_FOR_US = {
    "test_at_fork_reinit": "a private method of CPython's; after a fork, locks are the parent's",
    "test_acquire_timeout": "gives 5 ms for what is a commit on a disk; below with more",
}
NOT_FOR_SEMAPHORES = {
    **NOT_FOR_US,
    "test_repr": "has the name of CPython's class in it, and a value that no process alone knows",
}


class _OnADict(unittest.TestCase):
    opened: ClassVar[ReplicatedDict[str, int]]
    _directory: ClassVar[TemporaryDirectory[str]]
    _numbers = count()

    @classmethod
    def setUpClass(cls) -> None:
        cls._directory = TemporaryDirectory(dir=IN_MEMORY)
        cls.opened = ReplicatedDict(Path(cls._directory.name) / "n", options=Options(durability="process"))

    @classmethod
    def tearDownClass(cls) -> None:
        cls.opened.close()
        cls._directory.cleanup()


def _without(tests: Any, names: dict[str, str]) -> Any:
    """The same tests, but for these."""
    assert not [name for name in names if not hasattr(tests, name) and name not in NOT_FOR_US]
    return type(tests.__name__, (tests,), dict.fromkeys(name for name in names if hasattr(tests, name)))


class TestLock(_OnADict, _without(lock_tests.LockTests, NOT_FOR_US)):  # type: ignore[misc]
    """CPython's tests of `Lock`. They say what they show."""

    def locktype(self) -> Lock:
        return self.opened.lock(f"lock {next(self._numbers)}")


class TestSemaphore(_OnADict, _without(lock_tests.BoundedSemaphoreTests, NOT_FOR_SEMAPHORES)):  # type: ignore[misc]
    """CPython's tests of `BoundedSemaphore`."""

    def semtype(self, value: int = 1) -> Semaphore:
        return self.opened.semaphore(f"semaphore {next(self._numbers)}", value)

    def test_acquire_with_a_timeout(self) -> None:
        """As `test_acquire_timeout`: permits that are free are obtained, one that is not is not, within its time."""
        semaphore = self.semtype(2)
        with pytest.raises(ValueError, match="non-blocking"):
            semaphore.acquire(False, timeout=1.0)
        assert semaphore.acquire(timeout=60)
        assert semaphore.acquire(timeout=60)
        assert not semaphore.acquire(timeout=0.05)
        semaphore.release()
        assert semaphore.acquire(timeout=60)

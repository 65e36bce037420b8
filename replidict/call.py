"""`Call`: a function that another thread runs, and its outcome.

Nothing here holds a lock, because a signal handler that makes a call may interrupt a waiting thread anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from replidict.errors import ReplidictError, StorageError, raise_anew
from replidict.latch import Latch

Returned = TypeVar("Returned")


class Call(Generic[Returned]):
    """A function that another thread will call, and its outcome."""

    __slots__ = ("_begun", "_done", "_error", "_function", "_over", "_returned", "_withdrawn")

    def __init__(self, function: Callable[[], Returned], done: Callable[[], object] | None = None) -> None:
        """`done` is called by the thread that finishes the call; it must neither block nor raise."""
        self._function = function
        self._done = done
        self._over = Latch()
        self._begun = self._withdrawn = False
        self._error: BaseException | None = None
        self._returned: Any = None

    def run(self) -> BaseException | None:
        """Call it, unless it was withdrawn. Returns what it raised."""
        self._begun = True  # before looking: whoever withdraws it looks the other way round
        if not self._withdrawn:
            try:
                self._returned = self._function()
            except Exception as error:  # noqa: BLE001 -- the caller's to handle
                self._error = error
            except BaseException as error:  # noqa: BLE001 -- meant for the thread that it runs in, and not for the caller
                self._error = StorageError(f"this node has stopped: {type(error).__name__}: {error}".removesuffix(": "))
                self._end()
                return error
            self._end()
        return self._error

    def _end(self) -> None:
        self._over.set()
        if self._done is not None:
            self._done()

    def refuse(self, error: ReplidictError) -> None:
        """Say why it will not be called."""
        self._error = error
        self._end()

    def withdraw(self) -> bool:
        """Give it up; returns whether it was not begun, and never will be."""
        self._withdrawn = True
        return not self._begun

    def done(self) -> bool:
        """Whether it is over."""
        return self._over.is_set

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for what it raised, if anything. Raises `TimeoutError` when that takes longer than `timeout` seconds."""
        if not self._over.wait(timeout):
            raise TimeoutError
        return self._error

    def result(self, timeout: float | None = None) -> Returned:
        """Wait for what it returned. Raises what it raised, and as `exception`."""
        error = self.exception(timeout)
        if error is None:
            return self._returned  # type: ignore[no-any-return]
        if isinstance(error, ReplidictError):
            raise_anew(error)
        raise error

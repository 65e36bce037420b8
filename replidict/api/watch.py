"""Watches: the changes of a dict, each told once, in order, to whoever iterates.

Rules kept here:

1. A watch that nobody refers to any more ends, with a `ResourceWarning`; it keeps neither the dict nor its node open.
2. What may run in a signal handler or a finalizer (`close`, waking) takes no lock that others wait for.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from replidict.api.changes import ANY, Change, Changes, interest_in, revision_after
from replidict.errors import ClosedError, ReplidictError, waits_for_itself
from replidict.monotonic_clock import clock
from replidict.node.call_arguments import seconds_of
from replidict.node.node import Node
from replidict.node.waiters import Interest
from replidict.own_threads import in_node_thread
from replidict.server.shared_node import Opened

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Watch(Generic[K, V]):
    """An iterator over changes; see `ReplicatedDict.watch`. For one thread, but for `close`, which any may call."""

    def __init__(
        self,
        node: Node,
        decode: Callable[[bytes], Any],
        interest: Interest,
        what: str,
        *,
        after: int | None = None,
        snapshot: bool = False,
        resync: bool = False,
        wake: Callable[[], object] | None = None,
    ) -> None:
        """See `open_watch`."""
        self._node, self._what = node, what
        self._bell = threading.Lock()
        self._bell.acquire()
        self._changes: Changes[K, V] = Changes(
            node, decode, interest, after, snapshot, resync, wake or _ringing(self._bell)
        )
        self._look()

    def _look(self) -> None:
        if self._changes.wants_state:
            self._node.call_and_wait(self._changes.look)

    @property
    def revision(self) -> int:
        """All changes up to this revision were delivered, or were none of what is watched."""
        return self._changes.revision

    def next(self, timeout: float | None = None) -> Change[K, V] | None:
        """Wait for the next change, and return it.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes, 0 not at all.

        Returns:
            The change, or None if there was none in time; `revision` has then moved up to what is applied here.

        Raises:
            HistoryLost: It is further behind than this node can tell; not with `resync=True`.
            ClosedError: The watch or the dict is closed.
            StorageError: The node has stopped.
            DecodingError: A value can't be decoded on this machine; the same change is tried again by the next call.
        """
        deadline = None if timeout is None else clock() + seconds_of(timeout, "timeout")
        waited = False
        while True:
            change = self._changes.take()
            if change is None and self._changes.wants_state:
                self._look()
                change = self._changes.take()
            if change is not None or waited:
                return change
            left = -1.0 if deadline is None else max(deadline - clock(), 0.0)
            if left and in_node_thread():
                raise waits_for_itself(ReplidictError, "there is no change yet, and none was waited for")
            waited = not self._node.wait(self._bell, True, left)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change[K, V]:
        try:
            change = self.next()
        except ClosedError:
            if self._changes.closed:
                raise StopIteration from None
            raise
        assert change is not None, "without a timeout there is no end to waiting"
        return change

    def close(self) -> None:
        """End it: iteration ends, also where it waits, and `next` raises `ClosedError`. Idempotent, for any thread."""
        self._changes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        changes: Changes[K, V] | None = getattr(self, "_changes", None)  # absent if it was never opened
        if changes is None or changes.closed:
            return
        described = repr(self)
        changes.close()
        if self._node.failure is None:
            warnings.warn(f"{described} was not closed: use `with`, or call close()", ResourceWarning, 2, self)

    def __repr__(self) -> str:
        return f"<Watch of {self._what} at revision {self.revision}{', closed' if self._changes.closed else ''}>"


class Watching(Generic[K, V]):
    """The part of a dict that is watched."""

    _host: Opened
    _decode: Callable[[bytes], Any]
    _key: Callable[[object], bytes]

    def watch(
        self,
        key: K = ANY,
        *,
        prefix: str | None = None,
        after: int | None = None,
        snapshot: bool = False,
        resync: bool = False,
    ) -> Watch[K, V]:
        """Watch changes, of all keys or some: each is told once, in order, whole commands at a time.

        It begins with what is applied here when this returns, and is not slowed down by those that nobody reads. What
        one watch has not read yet, the node remembers within `Options(history_entries=..., history_bytes=...)`.

        Args:
            key: Watch this key only.
            prefix: Watch the keys only that are a str and begin so.
            after: Begin behind this revision, also one that another node told, or this one before it was restarted.
            snapshot: Begin with the state, as a `Change` of kind "snapshot"; nothing is missed between it and the next.
            resync: Where changes can't be told any more, give a snapshot instead of raising `HistoryLost`.

        Returns:
            An iterator over `Change`, with `next(timeout)` and `close()`, and a context manager.

        Raises:
            HistoryLost: What is behind `after` is not known here any more; not with `resync=True`.
            ValueError: Arguments that make no sense.
            EncodingError: `key` can't be one.
            ClosedError: The dict is closed.
            StorageError: The node has stopped.

        Example:
            with d.watch(prefix="settings/", snapshot=True) as changes:
                for change in changes:
                    for event in change.events:
                        print(event.kind, event.key, event.value)
        """
        return open_watch(self, key, prefix=prefix, after=after, snapshot=snapshot, resync=resync)


def open_watch(
    d: Watching[K, V],
    key: Any = ANY,
    *,
    prefix: str | None = None,
    after: int | None = None,
    snapshot: bool = False,
    resync: bool = False,
    wake: Callable[[], object] | None = None,
) -> Watch[K, V]:
    """As `watch`, for those who do not wait in `next`: `wake` is called by another thread when it may have something.

    It must neither block nor raise, and may be called for nothing.
    """
    if snapshot and after is not None:
        raise ValueError("watch() begins with a snapshot or after= a revision, not both")
    (interest, what), revision = interest_in(key, prefix, d._key), revision_after(after)
    return Watch(d._host.node, d._decode, interest, what, after=revision, snapshot=snapshot, resync=resync, wake=wake)


def _ringing(bell: threading.Lock) -> Callable[[], None]:
    def ring() -> None:
        try:
            bell.release()
        except RuntimeError:
            pass  # it rings already

    return ring

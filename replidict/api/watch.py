"""`Watch`, an iterator over the changes of a dict, as a watch of etcd: each change once, in order.

Rules kept here:

1. A watch that is no longer referenced ends, with a `ResourceWarning`; it keeps neither the dict nor its node open.
2. What may run in a signal handler or a finalizer (`close`, waking) takes no lock that others wait for.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from replidict.api.watched_changes import ANY, Change, Changes, interest_in, revision_after
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
    """An iterator over the changes of a dict; `ReplicatedDict.watch` opens it.

    One thread at a time may use it, but any thread may call `close`. It is a context manager, which closes it.

    Example:
        >>> with d.watch() as watch:
        ...     d["a"] = 1
        ...     d["a"] = 2
        ...     print(watch.next(timeout=5))
        ...     watch.next(timeout=5).events[0].previous
        Change(revision=1, kind='changes', events=(Event(kind='set', key='a', value=1, previous=None, revision=1),))
        1
    """

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
        """The revision up to which every change of what is watched was delivered: `after=` it goes on from here."""
        return self._changes.revision

    def next(self, timeout: float | None = None) -> Change[K, V] | None:
        """Wait for the next change.

        Args:
            timeout: Seconds to wait; None: for as long as it takes; 0: do not wait.

        Returns:
            The `Change`; None if there was none in time, and then `revision` is that of this node's copy.

        Raises:
            HistoryLost: This node no longer remembers the next change; never with `resync=True`.
            ClosedError: The watch or the dict is closed.
            StorageError: The node has stopped.
            DecodingError: This machine can't decode a value; the next call tries the same change again.
            ValueError: `timeout` is no number of seconds.
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
        """End the watch: iteration ends, even while it waits, and `next` raises `ClosedError`.

        Any thread may call it, and again.
        """
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
    """The method of `ReplicatedDict` that opens a watch."""

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
        """Watch the changes of all keys or of some: each change once, in order; the changes of one command together.

        It begins with the first change that is applied on this node after the call. A slow reader does not slow the
        node down: the node remembers the last changes, within `Options(history_entries=..., history_bytes=...)`.

        Args:
            key: The only key to watch; by default all keys.
            prefix: Watch only the keys that are str and begin with this; None: all keys.
            after: Begin with the first change after this revision, which may have come from another node, or from
                before a restart; None: begin now.
            snapshot: Begin with the present state, as a `Change` of kind "snapshot"; no change between it and the next
                is missed.
            resync: When this node no longer remembers the next change, deliver a snapshot instead of raising
                `HistoryLost`.

        Returns:
            A `Watch`: an iterator over `Change`, with `next(timeout)` and `close()`, and a context manager.

        Raises:
            HistoryLost: This node no longer remembers the changes after `after`; never with `resync=True`.
            ValueError: An argument makes no sense.
            EncodingError: `key` can't be a key.
            ClosedError: The dict is closed.
            StorageError: The node has stopped.

        Example:
            >>> d["settings/color"] = "red"
            >>> with d.watch(prefix="settings/", snapshot=True) as changes:
            ...     d["settings/size"] = 7
            ...     for change in changes:
            ...         for event in change.events:
            ...             print(change.kind, event.kind, event.key, event.value)
            ...         if change.revision == 2:
            ...             break
            snapshot set settings/color red
            changes set settings/size 7
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
    """Open a watch for a reader that does not wait in `next`: another thread calls `wake` when there may be something.

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

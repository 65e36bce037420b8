"""Watches: the changes of a dict, each told once, in order, to whoever iterates.

Rules kept here:

1. Keys and values are decoded in the watcher's thread, when they are asked for.
2. A watch that nobody refers to any more ends, with a `ResourceWarning`; it keeps neither the dict nor its node open.
3. What may run in a signal handler or a finalizer (`close`, waking) takes no lock that others wait for.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Literal, NamedTuple, Self, TypeAlias, TypeVar

from replidict.brief import brief
from replidict.errors import ClosedError, HistoryLost, ReplidictError, raise_anew, waits_for_itself
from replidict.machine.changes import Item, KeyChange
from replidict.machine.codec import decode_key
from replidict.machine.equality import place
from replidict.machine.values import value_of
from replidict.monotonic_clock import clock
from replidict.node.call_arguments import seconds_of
from replidict.node.history import Cursor, Found
from replidict.node.node import Node
from replidict.node.waiters import Interest
from replidict.own_threads import in_node_thread
from replidict.server.open_node import Host

_State: TypeAlias = Sequence[tuple[Hashable, Item]]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ANY: Final[Any] = type("ANY", (), {"__repr__": lambda self: "ANY", "__slots__": ()})()
"""Stands for every key."""


class Event(NamedTuple, Generic[K, V]):
    """One change of one key."""

    kind: Literal["set", "delete", "expire"]
    key: K
    value: V | None
    """What it is now; None if the key is gone."""

    previous: V | None
    """What it was before; None if the key was absent."""

    revision: int
    """The revision of the change; in a snapshot, the one that wrote the value."""


class Change(NamedTuple, Generic[K, V]):
    """What one command changed of what is watched, whole; or the state, in a snapshot."""

    revision: int
    kind: Literal["changes", "snapshot"]
    """In a snapshot, the events set all that there is: forget what is not among them."""

    events: tuple[Event[K, V], ...]


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
        self._node, self._decode, self._interest, self._resync = node, decode, interest, resync
        self._what = what
        self._bell = threading.Lock()
        self._bell.acquire()
        self._state: tuple[int, _State] | None = None
        if node.failure is not None:
            raise_anew(node.failure)
        wake = wake or _ringing(self._bell)
        if after is not None:
            try:
                self._cursor = Cursor(node.history, interest, wake, after)
                return
            except HistoryLost:
                if not resync:
                    raise
        if snapshot or after is not None:
            self._state = self._now()
        self._cursor = Cursor(node.history, interest, wake, self._state[0] if self._state else node.history.newest)

    @property
    def revision(self) -> int:
        """All changes up to this revision were delivered, or were none of what is watched."""
        return self._cursor.revision

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
            if self._cursor.closed:
                raise ClosedError("this watch is closed: open another one, with after= its revision to go on")
            if self._node.failure is not None:
                raise_anew(self._node.failure)
            change = self._take()
            if change is not None or waited:
                return change
            left = -1.0 if deadline is None else max(deadline - clock(), 0.0)
            if left and in_node_thread():
                raise waits_for_itself(ReplidictError, "there is no change yet, and none was waited for")
            waited = not self._bell.acquire(timeout=left)

    def _take(self) -> Change[K, V] | None:
        """What is there to be delivered."""
        found: Found | None = None
        if self._state is None:
            try:
                found = self._cursor.read()
            except HistoryLost:
                if not self._resync:
                    raise
                self._state = self._now()
        if self._state is not None:
            return self._snapshot(*self._state)
        if found is None:
            return None
        change: Change[K, V] = Change(found.revision, "changes", tuple(map(self._event, found.changes)))
        self._cursor.passed(found)
        return change

    def _event(self, change: KeyChange) -> Event[K, V]:
        revision, kind, _, key, value, previous = change
        assert kind != "clear", "the history does not keep it"
        decoded = decode_key(key)
        return Event(
            kind,
            decoded,  # type: ignore[arg-type]
            None if value is None else value_of(self._decode, decoded, value),
            None if previous is None else value_of(self._decode, decoded, previous),
            revision,
        )

    def _snapshot(self, revision: int, items: _State) -> Change[K, V]:
        events = []
        for where, item in items:
            if self._interest.covers(where):
                key = decode_key(item.key)
                events.append(Event("set", key, value_of(self._decode, key, item.value), None, item.revision))
        change: Change[K, V] = Change(revision, "snapshot", tuple(events))  # type: ignore[arg-type]
        self._state = None
        self._cursor.restart(revision)
        return change

    def _now(self) -> tuple[int, _State]:
        """The state at one moment between two commands, and its revision."""
        machine, wanted = self._node.machine, self._interest.key

        def look() -> tuple[int, _State]:
            items = machine.items
            if wanted is None:
                return machine.revision, list(items.items())
            return machine.revision, [(where, items[where]) for where in wanted if where in items]

        return self._node.call_and_wait(look)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change[K, V]:
        try:
            change = self.next()
        except ClosedError:
            if self._cursor.closed:
                raise StopIteration from None
            raise
        assert change is not None, "without a timeout there is no end to waiting"
        return change

    def close(self) -> None:
        """End it: iteration ends, also where it waits, and `next` raises `ClosedError`. Idempotent, for any thread."""
        self._cursor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        cursor: Cursor | None = getattr(self, "_cursor", None)  # absent if it was never opened
        if cursor is None or cursor.closed:
            return
        described = repr(self)
        cursor.close()
        if self._node.failure is None:
            warnings.warn(f"{described} was not closed: use `with`, or call close()", ResourceWarning, 2, self)

    def __repr__(self) -> str:
        return f"<Watch of {self._what} at revision {self.revision}{', closed' if self._cursor.closed else ''}>"


class Watching(Generic[K, V]):
    """The part of a dict that is watched."""

    _host: Host
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
    (interest, what), revision = _interest_in(key, prefix, d._key), _revision_of(after)
    return Watch(d._host.node, d._decode, interest, what, after=revision, snapshot=snapshot, resync=resync, wake=wake)


def _interest_in(key: Any, prefix: str | None, encoded: Callable[[object], bytes]) -> tuple[Interest, str]:
    """What the arguments of `watch` ask for, also in words; `encoded` checks a key."""
    if prefix is not None and not isinstance(prefix, str):
        raise ValueError(f"prefix={prefix!r}: must be a str, with which the keys begin that are to be watched")
    if key is ANY:
        return Interest(prefix=prefix), "all keys" if prefix is None else f"keys that begin with {brief(prefix)}"
    if prefix is not None:
        raise ValueError("watch() takes a key or prefix=, not both")
    return Interest(key=frozenset((place(encoded(key)),))), f"the key {brief(key)}"


def _revision_of(after: object) -> int | None:
    """The argument `after`, checked."""
    if after is None:
        return None
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 2**63:
        raise ValueError(f"after={after!r}: must be a revision, as `Watch.revision` and `set` give it")
    return int(after)


def _ringing(bell: threading.Lock) -> Callable[[], None]:
    def ring() -> None:
        try:
            bell.release()
        except RuntimeError:
            pass  # it rings already

    return ring

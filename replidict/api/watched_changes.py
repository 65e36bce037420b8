"""The changes that a watch reports, decoded. Nothing here blocks.

Rules kept here:

1. The reader's thread decodes keys and values, when they are asked for.
2. A snapshot and the position at which its watch continues are taken in one step of the node's thread, so no change
   falls between them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from replidict.brief import brief
from replidict.errors import ClosedError, HistoryLost, raise_anew
from replidict.machine.changes import Item, KeyChange
from replidict.machine.codec import decode_key
from replidict.machine.equality import place
from replidict.machine.stored_values import value_of
from replidict.node.history import Cursor, Found
from replidict.node.node import Node
from replidict.node.waiters import Interest

_State: TypeAlias = Sequence[tuple[Hashable, Item]]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ANY: Final[Any] = type("ANY", (), {"__repr__": lambda self: "ANY", "__slots__": ()})()
"""Stands for every key."""


class Event(NamedTuple, Generic[K, V]):
    """One change of one key.

    Attributes:
        kind: "set", "delete" or "expire".
        key: The key.
        value: The value after the change; None if the key was removed.
        previous: The value before the change; None if the key was absent.
        revision: The revision of the change; in a snapshot, that of the write that stored the value.
    """

    kind: Literal["set", "delete", "expire"]
    key: K
    value: V | None
    """What it is now; None if the key is gone."""

    previous: V | None
    """What it was before; None if the key was absent."""

    revision: int
    """The revision of the change; in a snapshot, the one that wrote the value."""


class Change(NamedTuple, Generic[K, V]):
    """What one command changed of the keys that are watched; or, as a snapshot, all of them.

    Attributes:
        revision: The revision of the command, or of the snapshot.
        kind: "changes" or "snapshot". A snapshot sets every key that exists: forget all others.
        events: One `Event` for each key, in the order of the command.
    """

    revision: int
    kind: Literal["changes", "snapshot"]
    """In a snapshot, the events set all that there is: forget what is not among them."""

    events: tuple[Event[K, V], ...]


class Changes(Generic[K, V]):
    """What one watch has read and will report next. For one thread at a time; any thread may call `close`."""

    def __init__(
        self,
        node: Node,
        decode: Callable[[bytes], Any],
        interest: Interest,
        after: int | None,
        snapshot: bool,
        resync: bool,
        wake: Callable[[], object],
    ) -> None:
        """`wake` is called by any thread when there may be something to take. It neither blocks nor raises.

        Raises `HistoryLost` if what is behind `after` can't be told; what ended the node.
        """
        if node.failure is not None:
            raise_anew(node.failure)
        self._node, self._decode, self._interest, self._resync = node, decode, interest, resync
        self.wants_state = snapshot
        """Whether there is nothing to take before `look` was called in the node's thread."""
        self._state: tuple[int, _State] | None = None
        self._read_up_to: int | None = None  # while a state waits to be told
        history = node.history
        if after is not None:
            try:
                self._cursor = Cursor(history, interest, wake, after)
                return
            except HistoryLost:
                if not resync:
                    raise
                self.wants_state = True
        while True:
            try:
                self._cursor = Cursor(history, interest, wake, history.newest)
                return
            except HistoryLost:
                pass  # it has gone on meanwhile

    @property
    def revision(self) -> int:
        """All up to this one was taken."""
        read_up_to = self._read_up_to
        return self._cursor.revision if read_up_to is None else read_up_to

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._cursor.closed

    def close(self) -> None:
        """It is over. Idempotent, for any thread, signal handler or finalizer."""
        self._cursor.close()

    def take(self) -> Change[K, V] | None:
        """The next change; None if there is none, or a snapshot is needed. Raises as `Watch.next`."""
        if self._cursor.closed:
            raise ClosedError("this watch is closed: open another one, with after= its revision to go on")
        if self._node.failure is not None:
            raise_anew(self._node.failure)
        found: Found | None = None
        if self._state is None and not self.wants_state:
            try:
                found = self._cursor.read()
            except HistoryLost:
                if not self._resync:
                    raise
                self.wants_state = True
        if self._state is not None:
            return self._snapshot(*self._state)
        if found is None:
            return None
        change: Change[K, V] = Change(found.revision, "changes", tuple(map(self._event, found.changes)))
        self._cursor.passed(found)
        return change

    def look(self) -> None:
        """Take down the state at this moment, and go on behind it. In the node's thread, between two steps (rule 2)."""
        if not self.wants_state:
            return
        machine, wanted = self._node.machine, self._interest.key
        if wanted is None:
            found = list(machine.items.items())
        else:
            found = [(where, machine.items[where]) for where in wanted if where in machine.items]
        self._read_up_to = self._cursor.revision
        self._cursor.restart(machine.revision)
        self._state = machine.revision, found
        self.wants_state = False

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
        self._state = self._read_up_to = None
        return change


def interest_in(key: Any, prefix: str | None, encoded: Callable[[object], bytes]) -> tuple[Interest, str]:
    """The interest that the arguments of `watch` express, also in words; `encoded` checks a key."""
    if prefix is not None and not isinstance(prefix, str):
        raise ValueError(f"prefix={prefix!r}: must be a str, with which the keys begin that are to be watched")
    if key is ANY:
        return Interest(prefix=prefix), "all keys" if prefix is None else f"keys that begin with {brief(prefix)}"
    if prefix is not None:
        raise ValueError("watch() takes a key or prefix=, not both")
    return Interest(key=frozenset((place(encoded(key)),))), f"the key {brief(key)}"


def revision_after(after: object) -> int | None:
    """The argument `after`, checked."""
    if after is None:
        return None
    if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 2**63:
        raise ValueError(f"after={after!r}: must be a revision, as `Watch.revision` and `set` give it")
    return int(after)

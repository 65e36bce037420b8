"""An index of the watchers by key and prefix, so that a change wakes only those it concerns.

Rules kept here:

1. A change costs one lookup by key, and one for each length of prefix in use, however many watchers wait.
2. A watcher that is found is woken once, and taken out until it arms itself again: one that never reads costs nothing.
3. No locks: a signal handler or the garbage collector may arm or close a waiter at any moment, in any thread. Both only
   append to a queue; only the node's thread uses the index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from replidict.machine.changes import KeyChange


@dataclass(frozen=True)
class Interest:
    """Which changes a watcher wants: those of one key, of the str keys with a prefix, or (without either) all.

    Keys are told apart by their places (see `machine.equality`).
    """

    key: frozenset[Hashable] | None = None
    """Holds one place, because places are equal as they are in a `dict`: by hash first."""

    prefix: str | None = None

    def covers(self, key: Hashable) -> bool:
        """Whether changes of this key are among them."""
        if self.key is not None:
            return key in self.key
        return self.prefix is None or (type(key) is str and key.startswith(self.prefix))


@dataclass(eq=False, slots=True)
class Waiter:
    """One watcher. `wake` is called by the node's thread, or by whoever closes the watch; it must neither block nor
    raise.

    `first` is set by the node's thread: there may be something from this piece of the history on. Its owner sets it to
    None.
    """

    interest: Interest
    wake: Callable[[], object]
    first: int | None = None
    closed: bool = False


@dataclass(eq=False, slots=True)
class Waiters:
    """The waiting watchers of one node."""

    opened: set[Waiter] = field(default_factory=set)
    _queue: deque[Waiter] = field(default_factory=deque)
    _of_all: dict[None, set[Waiter]] = field(default_factory=dict)  # one group, or none
    _of_key: dict[Hashable, set[Waiter]] = field(default_factory=dict)
    _of_prefix: dict[str, set[Waiter]] = field(default_factory=dict)
    _lengths: set[int] = field(default_factory=set)  # of these prefixes, and perhaps of some that are gone
    _found: list[Waiter] = field(default_factory=list)

    # -- any thread ---------------------------------------------------------------------------------------------------

    def open(self, waiter: Waiter) -> None:
        """Make a new waiter; it is not armed."""
        self.opened.add(waiter)

    def arm(self, waiter: Waiter) -> None:
        """Have a waiter woken by the next change of interest. A caller that looks for changes later misses none."""
        self._queue.append(waiter)

    def close(self, waiter: Waiter) -> None:
        """It waits no longer. Idempotent."""
        waiter.closed = True
        self.opened.discard(waiter)
        self._queue.append(waiter)
        waiter.wake()

    def wake_all(self) -> None:
        """Have everybody look, because the node has stopped."""
        for waiter in list(self.opened):
            waiter.wake()

    # -- the node's thread --------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Process the queue of armed and closed waiters."""
        queue = self._queue
        while queue:
            waiter = queue.popleft()
            groups, name = self._place(waiter.interest)
            if not waiter.closed:
                groups.setdefault(name, set()).add(waiter)
            elif name in groups:
                groups[name].discard(waiter)
                if not groups[name]:
                    del groups[name]
        if len(self._lengths) > len(self._of_prefix):
            self._lengths = {len(prefix) for prefix in self._of_prefix}

    def _place(self, interest: Interest) -> tuple[dict[Any, set[Waiter]], Hashable]:
        if interest.key is not None:
            (key,) = interest.key
            return self._of_key, key
        if interest.prefix is not None:
            self._lengths.add(len(interest.prefix))
            return self._of_prefix, interest.prefix
        return self._of_all, None

    @property
    def waiting(self) -> bool:
        """Whether any waiter is armed."""
        return bool(self._of_all or self._of_key or self._of_prefix)

    def find(self, changes: Iterable[KeyChange], number: int) -> None:
        """Note the waiters that these changes, now visible in the piece of this number, concern."""
        for _, _, key, *_ in changes:
            if self._of_all:
                self._tell(self._of_all.pop(None), number)
            if self._of_key and key in self._of_key:
                self._tell(self._of_key.pop(key), number)
            if self._of_prefix and type(key) is str:
                for length in self._lengths:
                    if key[:length] in self._of_prefix:
                        self._tell(self._of_prefix.pop(key[:length]), number)

    def find_all(self, number: int) -> None:
        """This piece concerns everybody."""
        for groups in (self._of_all, self._of_key, self._of_prefix):
            for waiting in groups.values():
                self._tell(waiting, number)
            groups.clear()

    def _tell(self, waiting: set[Waiter], number: int) -> None:
        for waiter in waiting:
            if waiter.first is None:
                waiter.first = number
        self._found += waiting

    def wake(self) -> None:
        """Wake the waiters that were found."""
        if self._found:
            found, self._found = self._found, []
            for waiter in found:
                waiter.wake()

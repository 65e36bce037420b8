"""The last changes of a node's dict, in memory, and the cursors that read them.

Rules kept here:

1. The node's thread writes, any thread reads, and no thread waits for another: there is no lock. Each step below is one
   operation of a `dict`, a `deque` or an attribute, and the order of the steps replaces the lock.
2. Changes are kept in pieces, as they were applied. A piece holds whole commands, and is dropped as a whole, the oldest
   first. Dropping is noted before it is done, so a reader that does not find a piece knows why.
3. A cursor arms its waiter first and looks for changes afterwards; the node's thread adds changes first and looks for
   waiters afterwards. So one of the two sees the other.
4. A cursor has lost something only if a change of interest was dropped. Other changes may be dropped, however many.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import msgspec

from replidict.errors import HistoryLost
from replidict.machine.changes import KeyChange
from replidict.machine.state_machine import StateMachine
from replidict.node.waiters import Interest, Waiter, Waiters

PIECE_BYTES = 240
CHANGE_BYTES = 260
"""What Python takes for a piece, and for a change in it, beside the bytes of keys and values."""

KEY_FACTOR = 4
"""A key is kept encoded and as an object, which may take several times as much."""


class _Piece(msgspec.Struct, gc=False):
    """Changes that were applied together, their last revision, and the memory that they take."""

    changes: tuple[KeyChange, ...]
    revision: int
    bytes: int


class History:
    """The changes of one node since `oldest`, as far as the bounds allow."""

    def __init__(self, machine: StateMachine, most_entries: int, most_bytes: int) -> None:
        """It begins with the state that the machine has now."""
        self.oldest = self.newest = self.announced = machine.revision
        """All changes behind `oldest` can be told, up to `newest`; up to `announced` whoever waits was told."""
        self.waiters = Waiters()
        self._machine = machine
        self._most_entries, self._most_bytes = most_entries, most_bytes
        self._pieces: dict[int, _Piece] = {}  # by number
        self._first = self._end = 0  # numbers: of the oldest piece, and of the next one
        self._entries = self._bytes = 0

    # -- any thread ---------------------------------------------------------------------------------------------------

    @property
    def watchers(self) -> int:
        """How many watches are open."""
        return len(self.waiters.opened)

    @property
    def end(self) -> int:
        """The number that the next piece will have."""
        return self._end

    def piece(self, number: int) -> tuple[KeyChange, ...] | None:
        """The changes of a piece before `end`; None if it was dropped."""
        piece = self._pieces.get(number)
        return None if piece is None else piece.changes

    def find(self, revision: int) -> int:
        """The number of the first piece with changes behind a revision."""
        first = self._first

        def last_revision(number: int) -> int:
            piece = self._pieces.get(number)
            return 0 if piece is None else piece.revision

        return first + bisect_right(range(first, self._end), revision, key=last_revision)

    # -- the node's thread --------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Take over what the machine has applied."""
        revision = self._machine.revision
        if revision == self.newest:
            return
        changes = self._machine.take_told()
        if changes and changes[0][1] == "clear":
            self._drop_all(changes.pop(0)[0])
            self._announce_loss()
        fresh = [] if not changes else self._keep(tuple(changes))
        self.newest = revision
        self.waiters.settle()
        if self.waiters.waiting:
            for number, piece in fresh:
                self.waiters.find(piece, number)
        self.announced = revision

    def _keep(self, changes: tuple[KeyChange, ...]) -> list[tuple[int, tuple[KeyChange, ...]]]:
        """Add a piece, or several; with the number of each."""
        size = PIECE_BYTES + CHANGE_BYTES * len(changes)
        # The new value is the dict's, until a later change has it as previous.
        size += sum([KEY_FACTOR * len(key) + len(previous or b"") for _, _, _, key, _, previous in changes])
        number = self._end
        if len(changes) > self._most_entries or size > self._most_bytes:
            commands = [tuple(group) for _, group in groupby(changes, itemgetter(0))]
            if len(commands) > 1:
                return [piece for command in commands for piece in self._keep(command)]
            self._drop_all(changes[-1][0])  # it does not fit in
            return [(number, changes)]
        while self._entries + len(changes) > self._most_entries or self._bytes + size > self._most_bytes:
            self._drop_first()
        self._pieces[number] = _Piece(changes, changes[-1][0], size)
        self._entries += len(changes)
        self._bytes += size
        self._end += 1
        return [(number, changes)]

    def _drop_first(self) -> None:
        piece = self._pieces[self._first]
        self.oldest = piece.revision  # rule 2
        self._first += 1
        del self._pieces[self._first - 1]
        self._entries -= len(piece.changes)
        self._bytes -= piece.bytes

    def _drop_all(self, revision: int) -> None:
        """Drop everything up to this revision. This takes a piece number, too, so that waiting cursors find that it is
        gone."""
        self.oldest = revision  # rule 2
        self._first = self._end = self._end + 1
        self._pieces = {}
        self._entries = self._bytes = 0

    def _announce_loss(self) -> None:
        self.waiters.settle()
        self.waiters.find_all(self._end - 1)

    def begin_anew(self) -> None:
        """The machine has become a later state by other means than applying: what led there is not known."""
        self._machine.take_told()
        revision = self._machine.revision
        if revision != self.newest:
            self._drop_all(revision)
            self.newest = revision
            self._announce_loss()
            self.announced = revision

    def wake(self) -> None:
        """Wake the watchers that have something to read."""
        self.waiters.settle()
        self.waiters.wake()


class Found(NamedTuple):
    """The changes of one revision and their place: from `start` to before `stop` in a piece, others in between."""

    revision: int
    changes: Sequence[KeyChange]
    piece: int
    start: int
    stop: int


class Cursor:
    """The position of one reader. For one thread at a time; any thread may call `close`."""

    def __init__(self, history: History, interest: Interest, wake: Callable[[], object], after: int) -> None:
        """Read what is behind a revision. Raises `HistoryLost` if that can't be told any more."""
        self.revision = after
        """All changes of interest up to here were read."""
        self._history = history
        self._waiter = Waiter(interest, wake)
        self._armed = False
        self._next: tuple[int, int] | None = (history.find(after), 0)
        """Where to go on looking: piece, and place in it; None: nowhere, until the waiter is told."""
        if after < history.oldest:
            raise self._lost()
        history.waiters.open(self._waiter)
        self._look_ahead(after, *self._next)

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._waiter.closed

    def read(self) -> Found | None:
        """The next changes of interest, all of one revision; None if there are none up to `revision`.

        They are given again until `passed` is called. Raises `HistoryLost`, again and again, when they were dropped.
        """
        while True:
            if self._next is None:
                announced, first = self._history.announced, self._waiter.first  # in this order
                if first is None:
                    self.revision = max(self.revision, announced)
                    return None
                self._next = (first, 0)  # what is before that is of no interest
            found = self._look(self.revision, *self._next)
            if found is not None:
                return found
            self._next = None

    def passed(self, found: Found) -> None:
        """These changes were read. It looks ahead for the next ones: they are what it must not lose."""
        self._look_ahead(found.revision, found.piece, found.stop)

    def restart(self, revision: int) -> None:
        """Go on behind this revision, whatever was read before. Raises `HistoryLost` if that can't be told any more."""
        first = self._history.find(revision)
        if revision < self._history.oldest:  # looked for after it was found, as `_drop_first` notes it before
            raise self._lost()
        self._look_ahead(revision, first, 0)

    def _look_ahead(self, revision: int, piece: int, place: int) -> None:
        following: tuple[int, int] | None = (piece, place)
        try:
            found = self._look(revision, piece, place)
            following = None if found is None else (found.piece, found.start)
        except HistoryLost:
            pass  # it is raised when somebody reads
        self._next, self.revision = following, revision

    def _look(self, past: int, number: int, place: int) -> Found | None:
        """The first changes of interest behind the revision `past`. If there are none, the waiter is armed."""
        history, waiter = self._history, self._waiter
        covers = waiter.interest.covers
        while True:
            end = history.end
            while number < end:
                piece = history.piece(number)
                if piece is None and past < history.oldest:
                    raise self._lost()
                for start in range(place, 0 if piece is None else len(piece)):
                    assert piece is not None
                    revision, _, key, *_ = piece[start]
                    if revision > past and covers(key):
                        stop = start + 1
                        while stop < len(piece) and piece[stop][0] == revision:
                            stop += 1
                        changes = [change for change in piece[start:stop] if covers(change[2])]
                        return Found(revision, changes, number, start, stop)
                number, place = number + 1, 0
            if waiter.first is not None:  # it was told of what was seen by now, and stands aside
                self._armed, waiter.first = False, None
            if self._armed:
                return None
            history.waiters.arm(waiter)  # rule 3: and now look again
            self._armed = True

    def _lost(self) -> HistoryLost:
        history = self._history
        return HistoryLost(
            f"this node no longer has all changes after revision {self.revision}, only those after {history.oldest} "
            f"(it is at {history.newest}): begin with a snapshot, or watch with resync=True; "
            "Options(history_entries=..., history_bytes=...) keep more",
            history.oldest,
            history.newest,
        )

    def close(self) -> None:
        """It is over: nothing is told to it any more. Idempotent, for any thread, signal handler or finalizer."""
        if not self._waiter.closed:
            self._history.waiters.close(self._waiter)

"""The map of keys to values, which one thread changes while others read it without a lock.

Rules kept here:

1. Other threads read at any time, and so do signal handlers and finalizers, which may interrupt any thread, also the
   one that changes the map. So nothing is locked: readers look into `readable`. A single key changes in one step. While
   what a command makes of several keys goes to `items` one by one, that is an `Overlay`, which has all of it at once.
2. `revision` grows before an entry changes anything visible, and `settled` becomes equal to it when all is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from operator import attrgetter, call, is_
from typing import Any, Literal, NoReturn

from typing_extensions import override

from replidict.brief import brief
from replidict.errors import EncodingError
from replidict.machine.changes import TELL_AT_MOST, Changes, Item, KeyChange
from replidict.machine.coordination import Coordination
from replidict.machine.digest import StateDigest
from replidict.machine.equality import key_at, place, place_of
from replidict.machine.key_index import KeyIndex


class Unreadable(dict[Any, Any]):
    """Stands in for a map that can't be read any more; `refuse` raises the reason."""

    def __init__(self, refuse: Callable[[], NoReturn]) -> None:
        super().__init__()
        self._refuse = refuse

    def _raise(self, *ignored: object) -> NoReturn:
        self._refuse()

    __getitem__ = __contains__ = __iter__ = __len__ = get = copy = _raise


class Overlay(dict[Hashable, "Item"]):
    """A map as a command leaves it, while it is being changed to that."""

    def __init__(self, items: dict[Hashable, Item], changed: dict[Hashable, Item | None]) -> None:
        """`changed` is what the command makes of its keys; None: removed."""
        super().__init__()
        self._items, self._changed = items, changed

    @override
    def get(self, key: Hashable, default: Any = None) -> Any:
        item = self._changed[key] if key in self._changed else self._items.get(key)
        return default if item is None else item

    @override
    def __getitem__(self, key: Hashable) -> Item:
        item: Item | None = self.get(key)
        if item is None:
            raise KeyError(key)
        return item

    @override
    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None

    @override
    def copy(self) -> dict[Hashable, Item]:
        copied = self._items.copy()
        for key, item in self._changed.items():
            _put_in(copied, key, item)
        return copied

    @override
    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.copy())

    @override
    def __len__(self) -> int:
        return len(self.copy())


def _called(*functions: Callable[[], Any]) -> tuple[Any, ...]:
    return tuple(map(call, functions))


class KeyMap:
    """The map, its revision, and the changes that are still to be passed on."""

    def __init__(self, tell_at_most: int = TELL_AT_MOST) -> None:
        self.items: dict[Hashable, Item] = {}
        self.plain = True
        """Whether all keys stand under themselves in `items`: for the others see `equality`."""
        self.readable = self.items
        """What readers read: `items`, an `Overlay` or an `Unreadable`."""
        self.key_index: KeyIndex | None = None
        """All keys in order, since somebody asked for that."""
        self.revision = self.settled = 0
        self.applied_index = 0
        self.coordination = Coordination(self._remove_all)
        self._digest = StateDigest()
        self._next_position = 1
        self._changes = self._no_changes()
        self._tell_at_most = tell_at_most
        self._told: list[KeyChange] = []
        self._progress = partial(attrgetter("revision", "readable"), self)

    # -- reading, for any thread ------------------------------------------------------------------------------------

    def find(self, key: Hashable) -> Item | None:
        """The item stored under a key now."""
        return self.readable.get(key if type(key) is str else place_of(key))

    def moment(self) -> dict[Hashable, Item]:
        """All that is stored at one moment, in order; the caller owns it."""
        while True:
            readable = self.readable
            try:
                # One call into C for the three, so that nothing comes between: of many keys, a copy takes so long that
                # another thread's turn has come. Only an `Overlay`, or a key that compares itself in Python, lets
                # others run meanwhile.
                before, copied, after = _called(self._progress, readable.copy, self._progress)
            except RecursionError:
                raise
            except RuntimeError:  # "dictionary changed size": by such a key
                continue
            if before[1] is readable and all(map(is_, before, after)):
                if self.plain:
                    return copied  # type: ignore[no-any-return]
                return {key_at(where, item.key): item for where, item in copied.items()}

    @property
    def next_position(self) -> int:
        """Where in the insertion order the next key will be."""
        return self._next_position

    def count(self) -> int:
        """How many keys there are now."""
        while True:
            readable = self.readable
            count = len(readable)
            if self.readable is readable:
                return count

    def end(self, refuse: Callable[[], NoReturn]) -> None:
        """Have every reader get what `refuse` raises from now on."""
        self.readable = Unreadable(refuse)

    # -- changing ---------------------------------------------------------------------------------------------------

    def _load_keys(self, rows: Iterable[tuple[int, bytes, bytes, int]], revision: int, next_position: int) -> None:
        items: dict[Hashable, Item] = {}
        for position, key, value, written_by in rows:
            try:
                items[place(key)] = Item(key, value, written_by, position)
            except EncodingError as error:
                raise EncodingError(f"{brief(key)}, in row {position}: {error}") from error
        self.plain = not any(type(where) is tuple for where in items)
        self.settled = -1
        self.items = self.readable = items
        self.key_index = None
        self.revision = self.settled = revision
        self._next_position = next_position

    def take_told(self) -> list[KeyChange]:
        """The changes of keys since the last call, in order; the caller owns them."""
        told, self._told = self._told, []
        return told

    def _no_changes(self) -> Changes:
        return Changes(self.applied_index, self.revision, self._next_position, len(self.items), 0, [], {})

    def _next_revision(self) -> int:
        self.revision += 1
        return self.revision

    def _store(self, key: Hashable, encoded: bytes, value: bytes, keeps: bool = False) -> int:
        """Store a value under one key. Returns the revision."""
        if type(key) is tuple:
            self.plain = False
        self.revision = revision = self.revision + 1
        present = self.items.get(key)
        self.items[key] = item = self._item(key, present, encoded, value, revision, keeps)
        if present is None and self.key_index is not None:
            self._note(key, item, True)
        return revision

    def _note(self, key: Hashable, item: Item, present: bool) -> None:
        """Tell the index of keys that a key was added or removed."""
        if self.key_index is not None and not self.key_index.note(key, item.key, present):
            self.key_index = None

    def _item(
        self, key: Hashable, present: Item | None, encoded: bytes, value: bytes, revision: int, keeps: bool = False
    ) -> Item:
        """Make the item that replaces `present`, and note it among the changes. It is permanent, unless it `keeps` the
        deadline and the lease of `present`."""
        if present is None:
            position = self._next_position
            self._next_position += 1
        else:
            encoded, position = present.key, present.position
            if not keeps and self.coordination.leases.mortal:
                self.coordination.leases.detach(position)
        item = Item(encoded, value, revision, position)
        self._changes.rows.append((position, encoded, value, revision))
        self._told.append((revision, "set", key, encoded, value, None if present is None else present.value))
        self._digest.changed.append((position, present, item))
        return item

    def _remove(self, key: Hashable) -> Item | None:
        item = self.items.get(key)
        if item is not None:
            revision = self._next_revision()  # before the change, as everywhere: `moment` goes by it
            del self.items[key]
            self._note(key, item, False)
            self._note_removal(key, item, revision, "delete")
        return item

    def _note_removal(self, key: Hashable, item: Item, revision: int, kind: Literal["delete", "expire"]) -> None:
        self.coordination.leases.detach(item.position)
        self._changes.rows.append((item.position, item.key, None, revision))
        self._digest.changed.append((item.position, item, None))
        self._told.append((revision, kind, key, item.key, None, item.value))

    def _remove_all(self, keys: list[Hashable], expired: bool) -> None:
        """Remove keys that are there, as one change: readers see all of them or none."""
        revision = self._next_revision()
        for key in keys:
            self._note_removal(key, self.items[key], revision, "expire" if expired else "delete")
        self._show(dict.fromkeys(keys), in_place=False)

    def _show(self, pending: dict[Hashable, Item | None], *, in_place: bool) -> None:
        """Have everybody see all of this from here on, and move it to `items`. `in_place`: nothing is removed."""
        self.plain = self.plain and tuple not in map(type, pending)
        self.readable = Overlay(self.items, pending)
        if in_place and self.key_index is None:
            self.items.update(pending)  # type: ignore[arg-type]  # no value is None
            self.readable = self.items
            return
        for key, item in pending.items():
            present = self.items.get(key)
            _put_in(self.items, key, item)
            if self.key_index is not None and present is None and item is not None:
                self._note(key, item, True)
            elif self.key_index is not None and present is not None and item is None:
                self._note(key, present, False)
        self.readable = self.items


def _put_in(items: dict[Hashable, Item], key: Hashable, item: Item | None) -> None:
    """Make this of a key in a map. One that was removed and stored again goes to the end."""
    present = items.get(key)
    if present is not None and (item is None or item.position != present.position):
        del items[key]
    if item is not None:
        items[key] = item

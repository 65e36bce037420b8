"""The replicated map as a pure function of the log: `apply(index, command)` changes it and gives an outcome.

Rules kept here:

1. Deterministic: no clock, no randomness, no I/O. Two machines that applied the same entries are equal.
2. What can't be done gives a result that says so, and depends on the log alone. Whatever else is raised ends the node:
   a command that this release does not know, a codec of the user's that fails here, no memory. No node goes on without
   what the others have applied.
3. Exactly once (thesis 6.3): a batch that was applied before gives its first results again.
4. Each change is also recorded as rows, so that the table on disk can follow entry by entry, and as changes of keys,
   for those who watch.
5. Other threads read at any time, and so do signal handlers and finalizers, which interrupt a thread anywhere: this
   thread while it applies, too. So nothing is locked. A single key changes in one step. What a command stores under
   several keys is complete in `pending` before the first of them is in `items`, and readers look there first.
6. `revision` grows before an entry changes anything that is seen, and `settled` becomes the same when all of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from functools import partial
from operator import attrgetter, call, is_
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import msgspec

from replidict.brief import brief
from replidict.errors import EncodingError, LeaseLost, StorageError
from replidict.machine import commands as cmd
from replidict.machine import coordination
from replidict.machine.codec import Codec, FaithfulCodec, is_portable
from replidict.machine.coordination import Coordination
from replidict.machine.equality import equal, key_at, place, place_of
from replidict.machine.key_index import KeyIndex
from replidict.machine.locks import OtherKind
from replidict.machine.transactions import conflicts, incremented, planned
from replidict.release import LEVEL

_LEVEL_BYTES, _LEVEL = msgspec.msgpack.encode, msgspec.msgpack.Decoder(int)

MAX_SESSIONS = 1024
"""More sessions than this and the one used longest ago ends. A process uses one; counting them, instead of
timing them, needs no clock in the log."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """A stored value, the revision that wrote it, its place in the insertion order, and the key it was first stored
    under: as in `dict`, an equal key of another type (1, True) finds it and does not replace it. Both are encoded."""

    key: bytes
    value: bytes
    revision: int
    position: int


class Session(msgspec.Struct, frozen=True, array_like=True):
    """What must be remembered to answer a retry: the last batch applied, and the results not yet acknowledged."""

    sequence: int
    used: int
    replies: tuple[tuple[int, list[Any]], ...]  # (sequence, results): msgspec takes no union of bytes and str


class Refusal(Enum):
    """Why a batch was surely not applied by this entry."""

    NO_SESSION = "the session is not open (any more)"
    GAP = "an earlier batch of the session is missing"
    FORGOTTEN = "the batch was applied and acknowledged before: its results are no longer kept"


class SessionOpened(NamedTuple):
    """Outcome of `OpenSession`."""

    nonce: bytes
    session: int


class BatchApplied(NamedTuple):
    """Outcome of `Batch`: results in order, or why there are none."""

    session: int
    sequence: int
    results: list[cmd.Result] | Refusal


class LevelRaised(NamedTuple):
    """Outcome of `RaiseLevel`: the cluster's feature level."""

    level: int


Outcome: TypeAlias = SessionOpened | BatchApplied | LevelRaised | Refusal | None

Row: TypeAlias = tuple[int, bytes, bytes | None, int]
"""(position, key, value or None if removed, revision)"""

KeyChange: TypeAlias = tuple[
    int, Literal["set", "delete", "expire", "clear"], Hashable, bytes, bytes | None, bytes | None
]
"""One change of one key, for those who watch: (revision, kind, the place of the key, the key it is stored under, value,
previous value). Those of one command have its revision. "clear" stands for more keys than are told one by one, and for
what was before."""

TELL_AT_MOST = 100_000
"""Keys that a `clear` tells one by one, unless the machine is given another number."""


class Changes(msgspec.Struct):
    """What the entries up to `index` changed: rows in order, sessions by number (None: ended), and the totals then.

    `kept` is what else is to be kept, by name (None: removed), and `kept_count` how much that is in all. `cleared` says
    that everything older than these rows is gone; `bytes` is the length of the commands.
    """

    index: int
    revision: int
    next_position: int
    keys: int
    session_count: int
    rows: list[Row]
    sessions: dict[int, Session | None]
    kept: dict[str, bytes | None] = {}
    kept_count: int = 0
    cleared: bool = False
    bytes: int = 0

    def absorb(self, later: Changes) -> None:
        """Add what the entries after these changed."""
        self.index, self.revision, self.next_position = later.index, later.revision, later.next_position
        self.keys, self.session_count = later.keys, later.session_count
        if later.cleared:
            self.rows, self.cleared = [*later.rows], True
        else:
            self.rows.extend(later.rows)
        self.sessions.update(later.sessions)
        self.kept.update(later.kept)
        self.kept_count = later.kept_count
        self.bytes += later.bytes


class Unreadable(dict[Any, Any]):
    """What readers find where there is nothing to read any more; `refuse` raises why."""

    def __init__(self, refuse: Callable[[], NoReturn]) -> None:
        super().__init__()
        self._refuse = refuse

    def _raise(self, *ignored: object) -> NoReturn:
        self._refuse()

    __getitem__ = __contains__ = __iter__ = __len__ = get = copy = _raise


def _called(*functions: Callable[[], Any]) -> tuple[Any, ...]:
    return tuple(map(call, functions))


class StateMachine:
    """The map, its revision, the open sessions, and the cluster's feature level."""

    def __init__(self, codec: Codec, tell_at_most: int = TELL_AT_MOST) -> None:
        self.items: dict[Hashable, Item] = {}
        self.plain = True
        """Whether all keys stand under themselves in `items`: for the others see `equality`."""
        self.readable = self.items
        """What readers read: `items`, or an `Unreadable`."""
        self.pending: dict[Hashable, Item | None] = {}
        """What a command makes of several keys (None: removed), while it goes to `items` one by one. Another object
        after each of these."""
        self.key_index: KeyIndex | None = None
        """All keys in order, since somebody asked for that."""
        self.revision = self.settled = 0
        self.applied_index = 0
        self.sessions: dict[int, Session] = {}
        self.level = 1
        self.kept: dict[str, bytes] = {}
        """The state beside keys and sessions as named rows, as of the last `take_changes`."""
        self.coordination = Coordination(self._remove_all)
        self._codec = codec
        self._next_position = 1
        self._changes = self._no_changes()
        self._tell_at_most = tell_at_most
        self._told: list[KeyChange] = []
        self._progress = partial(attrgetter("revision", "pending", "readable"), self)

    # -- reading, for any thread ------------------------------------------------------------------------------------

    def find(self, key: Hashable) -> Item | None:
        """What is stored under a key now."""
        where = key if type(key) is str else place_of(key)
        pending = self.pending
        return pending[where] if where in pending else self.readable.get(where)

    def moment(self) -> dict[Hashable, Item]:
        """All that is stored at one moment, in order; the caller owns it."""
        while True:
            readable = self.readable
            try:
                # One call into C for the three, so that nothing comes between: of many keys, a copy takes so long that
                # another thread's turn has come. Only a key that compares itself in Python lets others run meanwhile.
                before, copied, after = _called(self._progress, readable.copy, self._progress)
            except RuntimeError:  # "dictionary changed size": by such a key
                continue
            if before[2] is readable and all(map(is_, before, after)):
                for where, item in before[1].items():
                    _put_in(copied, where, item)
                if self.plain:
                    return copied  # type: ignore[no-any-return]
                return {key_at(where, item.key): item for where, item in copied.items()}

    def count(self) -> int:
        """How many keys there are now."""
        while True:
            pending = self.pending
            count = len(self.moment() if pending else self.readable)
            if self.pending is pending:
                return count

    def end(self, refuse: Callable[[], NoReturn]) -> None:
        """Have every reader get what `refuse` raises from now on."""
        self.readable, self.pending = Unreadable(refuse), {}

    # -- changing ---------------------------------------------------------------------------------------------------

    def load(
        self,
        rows: Iterable[tuple[int, bytes, bytes, int]],
        sessions: Iterable[tuple[int, Session]],
        *,
        index: int,
        revision: int,
        next_position: int,
        kept: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """Become the state of a snapshot. Rows are (position, key, value, revision) in ascending position; `kept` is
        what was in `Changes.kept`.

        Raises `EncodingError` if a key can't be read; the machine is then unchanged.
        """
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
        self.sessions = dict(sorted(sessions, key=lambda pair: pair[1].used))
        self.kept = dict(kept)
        self.level = _LEVEL.decode(self.kept["level"]) if "level" in self.kept else 1
        self.coordination.load(self.kept, lambda: {item.position: key for key, item in self.items.items()})
        self._next_position = next_position
        self.applied_index = index
        self._changes = self._no_changes()
        self._told = []

    def take_told(self) -> list[KeyChange]:
        """The changes of keys since the last call, in order; the caller owns them."""
        told, self._told = self._told, []
        return told

    def take_changes(self) -> Changes:
        """What changed since the last call; the caller owns it."""
        taken = self._changes
        taken.index, taken.revision, taken.next_position = self.applied_index, self.revision, self._next_position
        taken.keys, taken.session_count = len(self.items), len(self.sessions)
        taken.kept.update(self.coordination.take_rows())
        for name, data in taken.kept.items():
            if data is None:
                self.kept.pop(name, None)
            else:
                self.kept[name] = data
        taken.kept_count = len(self.kept)
        self._changes = self._no_changes()
        return taken

    def _no_changes(self) -> Changes:
        return Changes(self.applied_index, self.revision, self._next_position, len(self.items), 0, [], {})

    def apply(self, index: int, command: bytes) -> Outcome:
        """Apply the entry at `index`, the one after `applied_index`.

        Raises `StorageError` if that can't be done here (rule 2): the machine must not be used any more.
        """
        try:
            return self._apply(index, command)
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(
                f"entry {index} of the log could not be applied here: "
                f"{f'{type(error).__name__}: {error}'.removesuffix(': ')}. This node has stopped, so as not to differ "
                "from the others, which may have done it. Find out what is different here (memory, settings, codec), "
                "then open it again: what was acknowledged is there"
            ) from error

    def _apply(self, index: int, command: bytes) -> Outcome:
        outcome: Outcome = None
        match cmd.decode_at(index, command):
            case cmd.Batch() as batch:
                outcome = BatchApplied(batch.session, batch.sequence, self._apply_batch(index, batch))
            case cmd.OpenSession(nonce):
                self._keep_session(index, Session(0, index, ()))
                while len(self.sessions) > MAX_SESSIONS:
                    oldest = next(iter(self.sessions))
                    del self.sessions[oldest]
                    self._changes.sessions[oldest] = None
                outcome = SessionOpened(nonce, index)
            case cmd.RaiseLevel(level):
                outcome = self._raise_level(level)
            case cmd.Tick() as tick:
                self.coordination.tick(tick)
        self.applied_index = index
        self.settled = self.revision
        self._changes.bytes += len(command)
        return outcome

    def _raise_level(self, level: int) -> LevelRaised:
        if level > LEVEL:
            raise StorageError(
                f"the cluster has gone on to feature level {level}, and this release of replidict knows {LEVEL}: "
                "this node has stopped. Upgrade replidict here and open it again; nothing is lost"
            )
        if level > self.level:
            self.level = level
            self._changes.kept["level"] = _LEVEL_BYTES(level)
        return LevelRaised(self.level)

    def _keep_session(self, number: int, session: Session) -> None:
        self.sessions.pop(number, None)
        self.sessions[number] = session  # now last: the dict's order is the order of use
        self._changes.sessions[number] = session

    def _apply_batch(self, index: int, batch: cmd.Batch) -> list[cmd.Result] | Refusal:
        session = self.sessions.get(batch.session)
        if session is None:
            return Refusal.NO_SESSION
        if batch.sequence <= session.sequence:
            return next(
                (results for sequence, results in session.replies if sequence == batch.sequence), Refusal.FORGOTTEN
            )
        if batch.sequence != session.sequence + 1:
            return Refusal.GAP
        results = [self._perform(operation) for operation in batch.operations]
        kept = tuple(reply for reply in session.replies if reply[0] > batch.acknowledged)
        self._keep_session(batch.session, Session(batch.sequence, index, (*kept, (batch.sequence, results))))
        return results

    def _perform(self, operation: cmd.Operation) -> cmd.Result:
        """Every operation reads what it was given before it changes anything: one that is refused changed nothing."""
        try:
            return _PERFORM[type(operation)](self, operation)
        except _Refused as refused:
            return f"EncodingError: {refused}"
        except (LeaseLost, OtherKind) as refused:
            return f"{type(refused).__name__}: {refused}"

    # -- operations -------------------------------------------------------------------------------------------

    def _next_revision(self) -> int:
        self.revision += 1
        return self.revision

    def _store(self, key: Hashable, encoded: bytes, value: bytes, revision: int, *, permanent: bool = True) -> None:
        self.plain = self.plain and type(key) is not tuple
        present = self.items.get(key)
        self.items[key] = item = self._item(key, present, encoded, value, revision, permanent=permanent)
        if present is None and self.key_index is not None:
            self._note(key, item, True)

    def _note(self, key: Hashable, item: Item, present: bool) -> None:
        """A key came or went: tell who keeps them in order."""
        if self.key_index is not None and not self.key_index.note(key, item.key, present):
            self.key_index = None

    def _item(
        self,
        key: Hashable,
        present: Item | None,
        encoded: bytes,
        value: bytes,
        revision: int,
        *,
        permanent: bool = True,
    ) -> Item:
        """What is to be stored in the place of `present`; noted among the changes. `permanent`: the key does not end by
        itself any more, if it was to."""
        if present is None:
            position = self._next_position
            self._next_position += 1
        else:
            encoded, position = present.key, present.position
            if permanent and self.coordination.leases.mortal:
                self.coordination.leases.detach(position)
        self._changes.rows.append((position, encoded, value, revision))
        self._told.append((revision, "set", key, encoded, value, None if present is None else present.value))
        return Item(encoded, value, revision, position)

    def _remove(
        self, key: Hashable, revision: int | None = None, kind: Literal["delete", "expire"] = "delete"
    ) -> Item | None:
        """Without a `revision`, the removal is one of its own."""
        item = self.items.get(key)
        if item is not None:
            if revision is None:
                revision = self._next_revision()  # before the change, as everywhere: `moment` goes by it
            del self.items[key]
            self._note(key, item, False)
            self._gone(item, key, revision, kind)
        return item

    def _remove_all(self, keys: list[Hashable], expired: bool) -> None:
        """Remove keys that are there, as one change: readers see all of them or none."""
        revision = self._next_revision()
        for key in keys:
            self._gone(self.items[key], key, revision, "expire" if expired else "delete")
        self._show(dict.fromkeys(keys), in_place=False)

    def _gone(self, item: Item, key: Hashable, revision: int, kind: Literal["delete", "expire"]) -> None:
        """Note that a key is removed."""
        self.coordination.leases.detach(item.position)
        self._changes.rows.append((item.position, item.key, None, revision))
        self._told.append((revision, kind, key, item.key, None, item.value))

    def _put(self, op: cmd.Put) -> cmd.Result:
        key = _place(op.key)
        revision = self._next_revision()
        self._store(key, op.key, op.value, revision)
        return revision

    def _add(self, op: cmd.Add) -> cmd.Result:
        key = _place(op.key)
        if key in self.items:
            return False
        self._store(key, op.key, op.value, self._next_revision())
        return True

    def _set_default(self, op: cmd.SetDefault) -> cmd.Result:
        key = _place(op.key)
        present = self.items.get(key)
        if present is not None:
            return present.value
        self._store(key, op.key, op.value, self._next_revision())
        return op.value

    def _delete(self, op: cmd.Delete) -> cmd.Result:
        return self._remove(_place(op.key)) is not None

    def _pop(self, op: cmd.Pop) -> cmd.Result:
        item = self._remove(_place(op.key))
        return None if item is None else item.value

    def _pop_item(self, op: cmd.PopItem) -> cmd.Result:
        if not self.items:
            return None
        item = self._remove(next(reversed(self.items)))
        assert item is not None
        return [item.key, item.value]

    def _update(self, op: cmd.Update) -> cmd.Result:
        pairs = [(_place(key), key, value) for key, value in op.items]
        revision = self._next_revision()
        pending: dict[Hashable, Item | None] = {}
        for key, encoded, value in pairs:
            pending[key] = self._item(key, pending.get(key) or self.items.get(key), encoded, value, revision)
        self._show(pending, in_place=True)
        return revision

    def _show(self, pending: dict[Hashable, Item | None], *, in_place: bool) -> None:
        """Have everybody see all of this from here on, and move it to `items`. `in_place`: nothing is removed."""
        self.plain = self.plain and not any(type(key) is tuple for key in pending)
        self.pending = pending
        if in_place and self.key_index is None:
            self.items.update(pending)  # type: ignore[arg-type]  # no value is None
            self.pending = {}
            return
        for key, item in pending.items():
            present = self.items.get(key)
            _put_in(self.items, key, item)
            if self.key_index is not None and present is None and item is not None:
                self._note(key, item, True)
            elif self.key_index is not None and present is not None and item is None:
                self._note(key, present, False)
        self.pending = {}

    def _clear(self, op: cmd.Clear) -> cmd.Result:
        count = len(self.items)
        if count:
            revision = self._next_revision()
            if count > self._tell_at_most:
                self._told = [(revision, "clear", None, b"", None, None)]
            else:
                self._told.extend(
                    (revision, "delete", key, item.key, None, item.value) for key, item in self.items.items()
                )
            self.items.clear()
            self.key_index = None
            self.coordination.leases.detach_all()
            self._changes.rows, self._changes.cleared = [], True
        return count

    def _compare_and_set(self, op: cmd.CompareAndSet) -> cmd.Result:
        key = _place(op.key)
        present = self.items.get(key)
        if present is None or not self._equal(present.value, op.expected):
            return False
        self._store(key, op.key, op.value, self._next_revision())
        return True

    def _equal(self, left: bytes, right: bytes) -> bool:
        codec = self._codec
        if not isinstance(codec, FaithfulCodec):
            return left == right or bool(codec.decode(left) == codec.decode(right))
        try:
            return equal(left, right)
        except EncodingError as error:
            raise _Refused(error) from error

    def _replace(self, op: cmd.Replace) -> cmd.Result:
        key = _place(op.key)
        present = self.items.get(key)
        if present is None or present.revision != op.revision:
            return False
        self._store(key, op.key, op.value, self._next_revision())
        return True

    def _remove_if(self, op: cmd.Remove) -> cmd.Result:
        key = _place(op.key)
        present = self.items.get(key)
        if present is None:
            return False if op.last and self.items else None
        if present.revision != op.revision or (op.last and next(reversed(self.items.values())) is not present):
            return False
        self._remove(key)
        return True

    def _take(self, op: cmd.Take) -> cmd.Result:
        if not self.items:
            return None
        where = next(reversed(self.items)) if op.key is None else _place(op.key)
        present = self.items.get(where)
        if present is None:
            return None
        if not is_portable(present.value):
            return False
        self._remove(where)
        return [present.key, present.value]

    def _increment(self, op: cmd.Increment) -> cmd.Result:
        key = _place(op.key)
        present = self.items.get(key)
        value = incremented(op, None if present is None else present.value, self._codec)
        if isinstance(value, bytes):
            self._store(key, op.key, value, self._next_revision(), permanent=False)
        return value

    def _transact(self, op: cmd.Transact) -> cmd.Result:
        changed = conflicts(op, self.items, _place, self.revision)
        if changed is not None:
            return changed
        steps = planned(op, self.items, _place, self._codec)
        if isinstance(steps, bytes):
            return steps
        if not steps:
            return self.revision
        revision = self._next_revision()
        pending: dict[Hashable, Item | None] = {}
        for key, encoded, value in steps:
            present = pending[key] if key in pending else self.items.get(key)
            if present is None:
                pending.pop(key, None)  # it comes again, behind all others
            if value is not None:
                pending[key] = self._item(key, present, encoded, value, revision)
            elif present is not None:
                pending[key] = None
                self._gone(present, key, revision, "delete")
        self._show(pending, in_place=False)
        return revision

    # -- operations within others, and those of time and turns ----------------------------------------------------

    def _expiring(self, op: cmd.Expiring) -> cmd.Result:
        leases = self.coordination.leases
        if op.lease is not None:
            leases.see_to(op.lease)
        before = self.revision
        result = _PERFORM[type(op.operation)](self, op.operation)
        if self.revision != before:
            key = _place(op.operation.key)
            leases.attach(self.items[key].position, key, op.ttl_ms, op.lease)
        return result

    def _fenced(self, op: cmd.Fenced) -> cmd.Result:
        self.coordination.locks.see_to(op.name, op.token)
        return _PERFORM[type(op.operation)](self, op.operation)

    def _expire(self, op: cmd.Expire) -> cmd.Result:
        key = _place(op.key)
        item = self.items.get(key)
        if item is None:
            return False
        if op.ttl_ms is None:
            self.coordination.leases.detach(item.position)
        else:
            self.coordination.leases.expire(item.position, key, op.ttl_ms)
        return True

    def _coordinate(self, op: cmd.Operation) -> cmd.Result:
        return coordination.PERFORM[type(op)](self.coordination, op)


def _put_in(items: dict[Hashable, Item], key: Hashable, item: Item | None) -> None:
    """Make this of a key in a map. One that was removed and stored again goes to the end."""
    present = items.get(key)
    if present is not None and (item is None or item.position != present.position):
        del items[key]
    if item is not None:
        items[key] = item


class _Refused(Exception):
    """An operation that no machine performs: with the words of its result."""


def _place(key: bytes) -> Hashable:
    try:
        return place(key)
    except EncodingError as error:
        raise _Refused(error) from error


_PERFORM: dict[type[cmd.Operation], Callable[[StateMachine, Any], cmd.Result]] = {
    cmd.Put: StateMachine._put,
    cmd.Add: StateMachine._add,
    cmd.SetDefault: StateMachine._set_default,
    cmd.Delete: StateMachine._delete,
    cmd.Pop: StateMachine._pop,
    cmd.PopItem: StateMachine._pop_item,
    cmd.Update: StateMachine._update,
    cmd.Clear: StateMachine._clear,
    cmd.CompareAndSet: StateMachine._compare_and_set,
    cmd.Replace: StateMachine._replace,
    cmd.Remove: StateMachine._remove_if,
    cmd.Take: StateMachine._take,
    cmd.Increment: StateMachine._increment,
    cmd.Transact: StateMachine._transact,
    cmd.Expiring: StateMachine._expiring,
    cmd.Fenced: StateMachine._fenced,
    cmd.Expire: StateMachine._expire,
    **dict.fromkeys(coordination.PERFORM, StateMachine._coordinate),
}

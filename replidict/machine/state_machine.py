"""The replicated state as a pure function of the log: `apply(index, command)` changes it and returns the outcome.

Rules kept here:

1. Deterministic: no clock, no randomness, no I/O. Two machines that applied the same entries are equal.
2. An operation that can't be done has a result that says so, which depends on the log alone. Any other exception stops
   the node: a command that this release does not know, a user's codec that fails here, no memory. No node goes on
   without what the others have applied.
3. Exactly once (thesis 6.3): a batch that was applied before returns its first results again.
4. Each change is also recorded as rows, so that the table on disk can follow entry by entry, and as changes of keys,
   for watches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import msgspec

from replidict.errors import LeaseLost, StorageError
from replidict.machine import commands as cmd
from replidict.machine import coordination
from replidict.machine.changes import TELL_AT_MOST, Changes, Item, Session
from replidict.machine.codec import Codec, FaithfulCodec, is_portable
from replidict.machine.digest import digest_of
from replidict.machine.equality import Malformed, equal, place
from replidict.machine.key_map import KeyMap
from replidict.machine.locks import OtherKind
from replidict.machine.outcomes import BatchApplied, LevelRaised, Outcome, Refusal, SessionOpened
from replidict.machine.transactions import conflicts, incremented, planned
from replidict.release import LEVEL

_LEVEL_BYTES, _LEVEL = msgspec.msgpack.encode, msgspec.msgpack.Decoder(int)

MAX_SESSIONS = 1024
"""More sessions than this and the one used longest ago ends. A process uses one; counting them, instead of
timing them, needs no clock in the log."""


class StateMachine(KeyMap):
    """The map, its revision, the open sessions, and the cluster's feature level."""

    def __init__(self, codec: Codec, tell_at_most: int = TELL_AT_MOST) -> None:
        super().__init__(tell_at_most)
        self.sessions: dict[int, Session] = {}
        self.level = 1
        self.kept: dict[str, bytes] = {}
        """The state beside keys and sessions as named rows, as of the last `take_changes`."""
        self.digested = (0, b"")
        """The last index at which the digest of the state was made, and that."""
        self._codec = codec

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
        self._load_keys(rows, revision, next_position)
        self.sessions = dict(sorted(sessions, key=lambda pair: pair[1].used))
        self.kept = dict(kept)
        self.level = _LEVEL.decode(self.kept["level"]) if "level" in self.kept else 1
        self.coordination.load(self.kept, lambda: {item.position: key for key, item in self.items.items()})
        self.applied_index = index
        self._changes = self._no_changes()
        self._told = []
        self._digest.load(self.items.values(), self.sessions, self.kept)
        self.digest()

    def take_changes(self) -> Changes:
        """Return the changes since the last call; the caller owns them."""
        taken = self._changes
        taken.index, taken.revision, taken.next_position = self.applied_index, self.revision, self._next_position
        taken.keys, taken.session_count = len(self.items), len(self.sessions)
        if self.coordination.changed:
            taken.kept.update(self.coordination.take_rows())
        taken.digest = partial(self._digest_at, self.applied_index)
        self._digest.follow(taken, self.kept)
        for name, data in taken.kept.items():
            if data is None:
                self.kept.pop(name, None)
            else:
                self.kept[name] = data
        taken.kept_count = len(self.kept)
        self._changes = self._no_changes()
        return taken

    def digest(self) -> bytes:
        """The digest of the state. Its changes must have been taken before."""
        made = digest_of(self._digest.settle(), self.revision, self._next_position)
        self.digested = (self.applied_index, made)
        return made

    def _digest_at(self, index: int) -> bytes:
        return self.digest() if index == self.applied_index else b""

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
        except Malformed as refused:
            return f"EncodingError: {refused}"
        except (LeaseLost, OtherKind) as refused:
            return f"{type(refused).__name__}: {refused}"

    # -- operations -------------------------------------------------------------------------------------------

    def _put(self, op: cmd.Put) -> cmd.Result:
        return self._store(place(op.key), op.key, op.value)

    def _add(self, op: cmd.Add) -> cmd.Result:
        key = place(op.key)
        if key in self.items:
            return False
        self._store(key, op.key, op.value)
        return True

    def _set_default(self, op: cmd.SetDefault) -> cmd.Result:
        key = place(op.key)
        present = self.items.get(key)
        if present is not None:
            return present.value
        self._store(key, op.key, op.value)
        return op.value

    def _delete(self, op: cmd.Delete) -> cmd.Result:
        return self._remove(place(op.key)) is not None

    def _pop(self, op: cmd.Pop) -> cmd.Result:
        item = self._remove(place(op.key))
        return None if item is None else item.value

    def _pop_item(self, op: cmd.PopItem) -> cmd.Result:
        if not self.items:
            return None
        item = self._remove(next(reversed(self.items)))
        assert item is not None
        return [item.key, item.value]

    def _update(self, op: cmd.Update) -> cmd.Result:
        pairs = [(place(key), key, value) for key, value in op.items]
        revision = self._next_revision()
        pending: dict[Hashable, Item | None] = {}
        for key, encoded, value in pairs:
            pending[key] = self._item(key, pending.get(key) or self.items.get(key), encoded, value, revision)
        self._show(pending, in_place=True)
        return revision

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
            self._digest.clear()
        return count

    def _compare_and_set(self, op: cmd.CompareAndSet) -> cmd.Result:
        key = place(op.key)
        present = self.items.get(key)
        if present is None or not self._equal(present.value, op.expected):
            return False
        self._store(key, op.key, op.value)
        return True

    def _equal(self, left: bytes, right: bytes) -> bool:
        codec = self._codec
        if not isinstance(codec, FaithfulCodec):
            return left == right or bool(codec.decode(left) == codec.decode(right))
        return equal(left, right)

    def _replace(self, op: cmd.Replace) -> cmd.Result:
        key = place(op.key)
        present = self.items.get(key)
        if present is None or present.revision != op.revision:
            return False
        self._store(key, op.key, op.value)
        return True

    def _remove_if(self, op: cmd.Remove) -> cmd.Result:
        key = place(op.key)
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
        where = next(reversed(self.items)) if op.key is None else place(op.key)
        present = self.items.get(where)
        if present is None:
            return None
        if not is_portable(present.value):
            return False
        self._remove(where)
        return [present.key, present.value]

    def _increment(self, op: cmd.Increment) -> cmd.Result:
        key = place(op.key)
        present = self.items.get(key)
        value = incremented(op, None if present is None else present.value, self._codec)
        if isinstance(value, bytes):
            self._store(key, op.key, value, keeps=True)
        return value

    def _transact(self, op: cmd.Transact) -> cmd.Result:
        changed = conflicts(op, self.items, place, self.revision)
        if changed is not None:
            return changed
        steps = planned(op, self.items, place, self._codec)
        if isinstance(steps, bytes):
            return steps
        if not steps:
            return self.revision
        leases = self.coordination.leases
        for step in steps:
            if step.expiring is not None and step.expiring.lease is not None:
                leases.see_to(step.expiring.lease)
        revision = self._next_revision()
        pending: dict[Hashable, Item | None] = {}
        for key, encoded, value, expiring, keeps in steps:
            present = pending[key] if key in pending else self.items.get(key)
            if present is None:
                pending.pop(key, None)  # it comes again, behind all others
            if value is not None:
                pending[key] = item = self._item(key, present, encoded, value, revision, keeps)
                if expiring is not None:
                    leases.attach(item.position, key, expiring.ttl_ms, expiring.lease)
            elif present is not None:
                pending[key] = None
                self._note_removal(key, present, revision, "delete")
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
            key = place(op.operation.key)
            leases.attach(self.items[key].position, key, op.ttl_ms, op.lease)
        return result

    def _fenced(self, op: cmd.Fenced) -> cmd.Result:
        self.coordination.locks.see_to(op.name, op.token)
        return _PERFORM[type(op.operation)](self, op.operation)

    def _expire(self, op: cmd.Expire) -> cmd.Result:
        key = place(op.key)
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

"""`Transaction`: the dict as the body of a transaction sees it, at one moment.

Rules kept here:

1. A body never sees two moments. Each read is of one moment with all reads before it, or ends the body at once.
2. What was read is checked again in the log, in the same step in which all writes are made.
3. A key that was only written is not checked, and one that was read as absent must be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, ItemsView, Iterator, KeysView, Mapping, MutableMapping, Reversible
from typing import Any, NoReturn, TypeVar, overload

from typing_extensions import override

from replidict.api.commit import Commit, conflict
from replidict.api.held_lock import Held
from replidict.api.lease import GrantedLease
from replidict.api.modifiers import modifiers_of
from replidict.api.transaction_writes import OwnWrites
from replidict.api.views import Items, Keys, Values
from replidict.brief import brief
from replidict.errors import ReplidictError
from replidict.machine import commands as cmd
from replidict.machine.arithmetic import add
from replidict.machine.changes import Item
from replidict.machine.codec import Codec
from replidict.machine.stored_values import value_of
from replidict.node.call_arguments import encoded_key, encoded_value, pairs_of
from replidict.node.consistent_reads import pairs_in_order, within_a_step
from replidict.node.increments import increment_of
from replidict.node.node import Node
from replidict.node.steps import Steps
from replidict.options import Options

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")
Read = TypeVar("Read")

_ABSENT: Any = object()


class Changed(BaseException):
    """Ends a body that would see two moments. A `BaseException`, so that `except Exception` does not catch it."""


class Transaction(MutableMapping[K, V], Reversible[K]):
    """The dict as one transaction sees it: this node's copy at one moment, with the transaction's own writes.

    `ReplicatedDict.transaction` and `ReplicatedDict.transact` make it, for one thread. It is a `MutableMapping`. Its
    writes are applied when the body has ended, all or none. When the transaction writes, all keys that it read or found
    absent must be unchanged; after `len`, iteration or `scan`, the whole dict must be.
    """

    def __init__(self, node: Node, codec: Codec, options: Options) -> None:
        self._node, self._codec, self._options = node, codec, options
        self._decode = codec.decode
        self._at = -1  # the revision of which all reads are
        self._seen: dict[Hashable, tuple[bytes, Item | None]] = {}
        self._counts = False  # does it depend on the dict as a whole?
        self._copy: Mapping[Hashable, Item] | None = None
        self._own = OwnWrites()
        self._conflict: list[Hashable] | None = None
        self._over = False
        self._revision: int | None = None

    @property
    def revision(self) -> int:
        """The revision of all writes of this transaction; if there were none, the revision at which it read.

        Raises:
            ReplidictError: The transaction is not applied yet, or never was.
        """
        if self._revision is None:
            raise ReplidictError("this transaction has no revision: it has not been applied yet, or never was")
        return self._revision

    @property
    def changed(self) -> list[Hashable]:
        """The keys that others changed after this transaction had read them, as far as it has noticed."""
        return self._conflict or []

    # -- one moment ---------------------------------------------------------------------------------------------------

    def _read(self, read: Callable[[], Read]) -> Read:
        """Return what `read` returns, at the moment of all earlier reads."""
        settled, (found, changed) = within_a_step(self._node.machine, lambda: (read(), self._changed()))
        if changed is not None:
            self._conflict = changed
            raise Changed
        self._at = settled
        return found

    def _must_be_open(self) -> None:
        if self._over:
            raise ReplidictError("this transaction has ended: use the dict itself, or begin another one")

    def _changed(self) -> list[Hashable] | None:
        """The keys that are not as they were read; None if nothing is."""
        machine = self._node.machine
        if machine.revision == machine.settled == self._at:
            return None
        keys = []
        for key, (_, seen) in self._seen.items():
            present = machine.find(key)
            if (None if present is None else present.revision) != (None if seen is None else seen.revision):
                keys.append(key)
        return keys if keys or self._counts else None

    def stale(self) -> bool:
        """Return whether others have changed what was read, as this node's copy says."""
        if self._conflict is None:
            self._conflict = within_a_step(self._node.machine, self._changed)[1]
        return self._conflict is not None

    def _value_of(self, key: Hashable) -> bytes | None:
        """The value of a key, encoded, or None, in the transaction's eyes."""
        self._must_be_open()
        own = self._own.get(key)
        if own is not None:
            return own.value
        if self._copy is not None:
            item = self._copy.get(key)
        else:
            machine = self._node.machine
            encoded = encoded_key(key, self._options)
            item = self._read(lambda: machine.find(key))
            self._seen.setdefault(key, (encoded, item))
        return None if item is None else item.value

    def _whole(self) -> Mapping[Hashable, Item]:
        """A copy of the dict, from which everything is read from now on."""
        self._must_be_open()
        if self._copy is None:
            self._copy = self._read(self._node.machine.moment)
            self._counts = True
        return self._copy

    def _moment(self) -> dict[Any, Any]:
        """All keys, in order, each with what has its value."""
        return self._own.over(self._whole())

    # -- reading ------------------------------------------------------------------------------------------------------

    @override
    def __getitem__(self, key: K) -> V:
        data = self._value_of(key)
        if data is None:
            raise KeyError(key)
        return value_of(self._decode, key, data)  # type: ignore[no-any-return]

    @override
    def __contains__(self, key: object) -> bool:
        return self._value_of(key) is not None

    @override
    def __len__(self) -> int:
        self._must_be_open()
        own, machine = self._own, self._node.machine
        if self._copy is not None:
            return len(self._moment())

        def read() -> int:
            here = sum((mine.value is not None) - (machine.find(key) is not None) for key, mine in own.items())
            return machine.count() + here

        count = self._read(read)
        self._counts = True
        return count

    @override
    def __iter__(self) -> Iterator[K]:
        return iter(self._moment())

    @override
    def __reversed__(self) -> Iterator[K]:
        return iter([*reversed(self._moment())])

    @override
    def keys(self) -> KeysView[K]:
        """Return a view of the keys."""
        return Keys(self)

    @override
    def items(self) -> ItemsView[K, V]:
        """Return a view of the pairs."""
        return Items(self, self._moment, self._decode)

    @override
    def values(self) -> Values[V]:
        """Return a view of the values."""
        return Values(self, self._moment, self._decode)

    def scan(self, prefix: str = "", *, after: str | None = None, limit: int | None = None) -> list[tuple[str, V]]:
        """Return the pairs whose keys are str and begin with `prefix`, in order: see `ReplicatedDict.scan`.

        The transaction then conflicts with every other write. To claim one of many keys, scan before the transaction,
        and check in the transaction that the key is still there.

        Args:
            prefix: The beginning of the keys.
            after: Only keys greater than this one; None: all.
            limit: The largest number of pairs; None: no limit.

        Raises:
            TypeError, ValueError, DecodingError: As `ReplicatedDict.scan`.
            ReplidictError: The transaction has ended.
        """
        self._must_be_open()
        check_page(prefix, after, limit)
        own = {
            key: mine for key, mine in self._own.items()
            if type(key) is str and key.startswith(prefix) and (after is None or key > after)
        }  # fmt: skip
        if self._copy is not None:
            base: list[tuple[str, Any]] = [
                (key, item) for key, item in self._copy.items()
                if type(key) is str and key.startswith(prefix) and (after is None or key > after)
            ]  # fmt: skip
        else:
            wanted = None if limit is None else limit + len(own)
            base = self._read_page(prefix, after, wanted)
        found = {key: item for key, item in base if key not in own}
        found |= {key: mine for key, mine in own.items() if mine.value is not None}
        return [(key, value_of(self._decode, key, found[key].value)) for key in sorted(found)[:limit]]

    def _read_page(self, prefix: str, after: str | None, limit: int | None) -> list[tuple[str, Any]]:
        """A page may take so long that it is read first, and then must be of the moment of what was read before."""
        revision, base = pairs_in_order(self._node.machine, prefix, after, limit)
        if revision != self._at and (self._seen or self._counts):
            self._conflict = self._changed() or []
            raise Changed
        self._at, self._counts = revision, True
        return base

    # -- writing ------------------------------------------------------------------------------------------------------

    def set(self, key: K, value: V, *, ttl: float | None = None, lease: GrantedLease | None = None) -> None:
        """Store a value when the transaction is applied.

        Args:
            key: The key, as for `ReplicatedDict.set`.
            value: The value, as for `ReplicatedDict.set`.
            ttl: Seconds until the key expires, counted from when the transaction is applied; None: no expiry.
            lease: The lease to attach the key to; None: no lease.

        Raises:
            EncodingError: The key or value can't be stored faithfully.
            ValueError: `ttl` is no positive number, or `lease` is no lease.
            ReplidictError: The transaction has ended.
        """
        encoded, data = encoded_key(key, self._options), encoded_value(value, self._codec, self._options)
        self._write(key, modifiers_of(ttl, lease, None).expiring(cmd.Put(encoded, data)), data)

    def _write(self, key: Hashable, operation: cmd.Put | cmd.Increment | cmd.Expiring, data: bytes) -> None:
        self._must_be_open()
        self._own.store(key, operation, data)

    @override
    def __setitem__(self, key: K, value: V) -> None:
        self.set(key, value)

    @override
    def __delitem__(self, key: K) -> None:
        if self._value_of(key) is None:
            raise KeyError(key)
        self._own.remove(key, encoded_key(key, self._options))

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, /, default: V | D) -> V | D: ...
    @override
    def pop(self, key: K, /, default: Any = _ABSENT) -> Any:
        """Return the value of a key, or `default`, and remove the key.

        Args:
            key: The key.
            default: What to return if the key is absent; without it, `KeyError` is raised.

        Raises:
            KeyError: The key is absent and there is no `default`.
            DecodingError, ReplidictError: This machine can't decode the value; the transaction has ended.
        """
        data = self._value_of(key)
        if data is not None:
            value = value_of(self._decode, key, data)
            del self[key]
            return value
        if default is _ABSENT:
            raise KeyError(key)
        return default

    @override
    def popitem(self) -> tuple[K, V]:
        """Return the pair that was inserted last, and remove it. The transaction then depends on the whole dict.

        Raises:
            KeyError: The dict is empty.
            DecodingError, ReplidictError: As `pop`.
        """
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("popitem(): dictionary is empty")

    @override
    def setdefault(self, key: K, default: Any = None) -> Any:
        """Return the value of a key, after storing `default` if the key is absent.

        Args:
            key: The key.
            default: The value to store.

        Raises:
            EncodingError, DecodingError, ReplidictError: As `set` and `pop`.
        """
        if key not in self:
            self.set(key, default)
        return self[key]

    @override
    def update(self, other: Any = (), /, **values: Any) -> None:
        """Store many values: see `ReplicatedDict.update`.

        Args:
            other: A mapping, or pairs of keys and values.
            values: More pairs, whose keys are str.

        Raises:
            EncodingError: A key or value can't be stored; those before it are in the transaction.
            ReplidictError: The transaction has ended.
        """
        for key, value in pairs_of(other, values):
            self.set(key, value)

    @override
    def clear(self) -> None:
        """Remove all keys. The transaction then depends on the whole dict.

        Raises:
            ReplidictError: The transaction has ended.
        """
        for key in list(self):
            del self[key]

    def increment(self, key: K, by: Any = 1, *, default: Any = 0) -> Any:
        """Add to a number, and return the sum: see `ReplicatedDict.increment`.

        Args:
            key: The key.
            by: The number to add.
            default: The number that an absent key counts as.

        Raises:
            TypeError, OverflowError, EncodingError: As `ReplicatedDict.increment`.
            ReplidictError: The transaction has ended.
        """
        operation = increment_of(key, by, default, self._options)
        data = self._value_of(key)
        present = default if data is None else value_of(self._decode, key, data)
        try:
            total = add(present, by)
        except (TypeError, OverflowError) as error:
            raise type(error)(f"the value of {brief(key)} can't be incremented: {error}") from error
        self._write(key, operation, encoded_value(total, self._codec, self._options))
        return total

    # -- the end ------------------------------------------------------------------------------------------------------

    def committing(self, seconds: float, fence: Held | None) -> Steps[None]:
        """Return the steps that apply the transaction; the dict calls this when the body has ended.

        Args:
            seconds: How long to wait for a majority.
            fence: A lock that must still be held; None: no condition.

        Raises:
            TransactionConflict: Others changed what was read. Further errors are those of `ReplicatedDict.transaction`.
        """
        if self._conflict is not None or (self._own and self.stale()):
            self._give_up()
        self._over = True
        if not self._own:
            self._revision = self._node.machine.settled if self._at < 0 else self._at
            return
        self._revision = yield from self.prepared().steps(seconds, fence)

    def prepared(self) -> Commit:
        """Return all that was read and written as one command; the dict calls this when the body has ended."""
        commit = Commit(self._node, self._codec, self._options)
        commit.checks = [(data, None if item is None else item.revision) for data, item in self._seen.values()]
        commit.whole = self._at if self._counts else None
        commit.writes = self._own.operations()
        return commit

    def _give_up(self) -> NoReturn:
        self._over = True
        raise conflict(self._conflict or [])


def check_page(prefix: object, after: object, limit: object) -> None:
    """Raises `TypeError` or `ValueError` unless these can say which keys are wanted."""
    if not isinstance(prefix, str) or not (after is None or isinstance(after, str)):
        raise TypeError(f"prefix={brief(prefix)}, after={brief(after)}: must be str, since only str keys are scanned")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise ValueError(f"limit={brief(limit)}: must be a number of keys, or None for all")

"""The methods of `ReplicatedDict` on several keys at once: transactions, increments, and pages of keys in order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from time import sleep
from typing import Any, Generic, TypeVar

from replidict.api.attempts import Attempts, Body, check_plain
from replidict.api.commit import Commit, conflict
from replidict.api.held_lock import Held
from replidict.api.modifiers import fence_of
from replidict.api.transaction_view import Transaction, check_page
from replidict.errors import TransactionConflict
from replidict.machine.codec import Codec
from replidict.machine.stored_values import value_of
from replidict.node.blocking_calls import make_current
from replidict.node.consistent_reads import keys_in_order, pairs_in_order
from replidict.node.steps import Steps
from replidict.options import Options
from replidict.server.operations import Operations
from replidict.server.shared_node import Opened

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Returned = TypeVar("Returned")
Result = TypeVar("Result")


class Transactions(Generic[K, V]):
    """The methods of `ReplicatedDict` on several keys at once."""

    _host: Opened
    _codec: Codec
    _options: Options
    _decode: Callable[[bytes], Any]

    _operations: Operations[K, V]

    def _run(self, steps: Steps[Result]) -> Result:
        raise NotImplementedError

    def _seconds(self, timeout: float | None) -> float:
        raise NotImplementedError

    @contextmanager
    def transaction(
        self, *, linearizable: bool = False, fence: Held | None = None, timeout: float | None = None
    ) -> Iterator[Transaction[K, V]]:
        """Read and write several keys as one command: at the end of the block all its writes are applied, or none.

        The body reads this node's copy at one moment, and its own writes. What it read is compared again when the
        command is applied. A transaction that wrote nothing sends no command. A body that raises writes nothing. The
        body runs once: `transact` runs it again after a conflict.

        Args:
            linearizable: Include every write that returned on any node before this call.
            fence: A lock that must still be held when the command is applied; None: no condition.
            timeout: Seconds to wait for the writes, and before that for what is `linearizable`; None: the dict's
                timeout.

        Returns:
            A context manager, which gives the `Transaction`, a mapping.

        Raises:
            TransactionConflict: At the end of the block: others changed what the body had read, and nothing was
                written.
            LockLost: The lock of `fence` is not held any more; nothing was written.
            LeaseLost: A lease that a key was to be attached to has ended; nothing was written.
            ValueError: `fence` is no lock that was held.
            EncodingError: All that it read and wrote is too large for one command; nothing was written.
            ReadTimeout: No majority could be reached in time for `linearizable`.
            NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `set`.

        Example:
            >>> d.update(alice=50, bob=0)
            >>> with d.transaction() as t:
            ...     t["alice"] -= 10
            ...     t["bob"] += 10
            >>> d["alice"], d["bob"], t.revision
            (40, 10, 2)
        """
        seconds = self._seconds(timeout)
        fence_of(fence)
        if linearizable:
            make_current(self._host.node, seconds)
        t: Transaction[K, V] = Transaction(self._host.node, self._codec, self._options)
        with Body(t) as body:
            yield t
        if body.error is not None:
            raise conflict(t.changed) from body.error
        self._run(t.committing(seconds, fence))

    def transact(
        self,
        function: Callable[..., Returned],
        *args: Any,
        attempts: int | None = None,
        fence: Held | None = None,
        timeout: float | None = None,
    ) -> Returned:
        """Call `function(t, *args)` as one transaction, and call it again when others have changed what it read.

        There is a growing pause between the calls. The function may run several times, so it must change nothing but
        `t`; its writes are applied once. An error that it raises ends the call, unless what it read has changed
        meanwhile: then it runs again.

        Args:
            function: Called with a `Transaction` and `args`.
            args: Further arguments of `function`.
            attempts: The largest number of calls; None: as many as the timeout allows.
            fence: A lock that must still be held when the command is applied; None: no condition.
            timeout: Seconds for all attempts together; None: the dict's timeout.

        Returns:
            What the function returned.

        Raises:
            TransactionConflict: Others changed what it read, in each attempt; nothing was written.
            LockLost, LeaseLost: The lock of `fence`, or a lease, has been lost; nothing was written.
            ValueError: `fence` is no lock that was held, or `attempts` is no positive number.
            EncodingError, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As `transaction`.

        Example:
            >>> def transfer(t, source, target, amount):
            ...     if t[source] < amount:
            ...         raise ValueError("not enough")
            ...     t[source] -= amount
            ...     t[target] += amount
            >>> d.update(alice=50, bob=0)
            >>> d.transact(transfer, "alice", "bob", 10)
            >>> d["alice"], d["bob"]
            (40, 10)
        """
        tries = Attempts(self._host.node, self._seconds(timeout), attempts)
        fence_of(fence)
        check_plain(function)
        while True:
            t: Transaction[K, V] = Transaction(self._host.node, self._codec, self._options)
            with Body(t) as body:
                result = function(t, *args)
            if body.error is None:
                try:
                    self._run(t.committing(tries.seconds(), fence))
                    return result
                except TransactionConflict as error:
                    keys = error.keys
            else:
                keys = tuple(t.changed)
            body.error = None  # its traceback refers to all this
            sleep(tries.pause(keys))

    def increment(
        self,
        key: K,
        by: int | float | Decimal = 1,
        *,
        default: int | float | Decimal = 0,
        timeout: float | None = None,
    ) -> int | float | Decimal:
        """Add to the number under a key, as one command: exact for any number of threads and nodes.

        An int and a float give a float, an int and a Decimal give a Decimal, as in Python. A Decimal sum is exact, up
        to 600 digits, whatever the decimal context. With a `codec=` of your own, every node decodes and encodes by it.

        Args:
            key: The key, as for `set`.
            by: The number to add.
            default: The number that an absent key counts as.
            timeout: Seconds to wait for a majority; None: the dict's timeout.

        Returns:
            The new value.

        Raises:
            TypeError: The value, `by` or `default` is no such number, or a float meets a Decimal; nothing was changed.
            OverflowError: The sum has too many digits, or is too large for a float; nothing was changed.
            NotCommitted, OutcomeUnknown, EncodingError, ClosedError, StorageError: As `set`.

        Example:
            >>> d.increment("tickets"), d.increment("tickets", by=2)
            (1, 3)
        """
        return self._run(self._operations.increment(key, by, default, self._seconds(timeout)))

    def scan(self, prefix: str = "", *, after: str | None = None, limit: int | None = None) -> list[tuple[str, V]]:
        """Return the pairs whose keys are str and begin with `prefix`, in order of code points, at one moment.

        It reads this node's copy. The first call sorts all keys; they are kept in order from then on.

        Args:
            prefix: The beginning of the keys; the empty str: all keys that are str.
            after: Only keys greater than this one, which is the last key of the page before; None: all.
            limit: The largest number of pairs; None: no limit.

        Returns:
            A list of keys and values.

        Raises:
            TypeError: `prefix` or `after` is no str.
            ValueError: `limit` is no number of keys.
            DecodingError, ClosedError, StorageError: As `get`.

        Example:
            >>> d.update({"user/1": "alice", "user/2": "bob", "user/3": "carol"})
            >>> page = d.scan("user/", limit=2)
            >>> page
            [('user/1', 'alice'), ('user/2', 'bob')]
            >>> d.scan("user/", after=page[-1][0], limit=2)
            [('user/3', 'carol')]
        """
        check_page(prefix, after, limit)
        _, pairs = pairs_in_order(self._host.node.machine, prefix, after, limit)
        return [(key, value_of(self._decode, key, item.value)) for key, item in pairs]


def texts_in_order(d: Transactions[Any, Any], prefix: str, after: str | None, limit: int) -> list[str]:
    """The first keys of a dict that are texts and begin so, behind `after`, without their values."""
    return keys_in_order(d._host.node.machine, prefix, after, limit)[0]


def commit_on(d: Transactions[Any, Any]) -> Commit:
    """Checks and writes for a dict, to be decided in the log without reading this node's copy."""
    return Commit(d._host.node, d._codec, d._options)

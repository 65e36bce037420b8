"""What a dict does with several keys at once: transactions, increments, and pages of keys in order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from time import sleep
from typing import Any, Generic, TypeVar

from replidict.api.attempts import Attempts, Body, check_plain
from replidict.api.commit import Commit, conflict
from replidict.api.lock import Held
from replidict.api.operations import Operations, check_fence
from replidict.api.transaction_view import Transaction, check_page
from replidict.errors import TransactionConflict
from replidict.machine.codec import Codec
from replidict.machine.values import value_of
from replidict.node.blocking_calls import make_current
from replidict.node.moments import keys_in_order, pairs_in_order
from replidict.node.steps import Steps
from replidict.options import Options
from replidict.server.shared_node import Opened

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Returned = TypeVar("Returned")
Result = TypeVar("Result")


class Transactions(Generic[K, V]):
    """The part of `ReplicatedDict` that is about several keys at once."""

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
        """Read and write several keys as one step: all that the body writes is written when it ends, or nothing.

        The body reads this node's copy, as it is at one moment, with its own writes. When it ends, all that it read is
        checked again in the log; a transaction that wrote nothing sends nothing. A body that raises writes nothing.
        It runs once: see `transact` for one that runs again after a conflict.

        Args:
            linearizable: Read what includes every write that returned anywhere before the call.
            fence: Write only if this lock is still held, as the log says.
            timeout: Seconds that the writes may take, and before them the wait for what is `linearizable`; by default
                that of this dict.

        Returns:
            A context manager, which gives the `Transaction`, a mapping.

        Raises:
            TransactionConflict: On leaving: what the body had read was changed by others, and nothing was written.
            LockLost: The lock of `fence` is not held any more; nothing was written.
            LeaseLost: A lease that something was to end with has ended; nothing was written.
            ValueError: `fence` is no lock that was held.
            EncodingError: All that it read and wrote is too large for one command.
            NotCommitted, OutcomeUnknown, ReadTimeout, ClosedError, StorageError: As other writes and reads do.

        Example:
            with d.transaction() as t:
                t["alice"] -= 10
                t["bob"] += 10
        """
        seconds = self._seconds(timeout)
        check_fence(fence)
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
        """Call `function(t, *args)` as one transaction, and again after a pause when others have changed what it read.

        It must not have effects but on `t`, since it may run several times; its writes are applied once. An error that
        it raises ends this call, unless what it had read is not current any more: then it runs again.

        Args:
            function: Gets a `Transaction`, as `transaction` gives it, and `args`.
            args: What it gets behind that.
            attempts: How often it is called at most; by default as often as there is time.
            fence: Write only if this lock is still held, as the log says.
            timeout: Seconds that all this may take; by default that of this dict.

        Returns:
            What the function returns.

        Raises:
            TransactionConflict: What it read was changed by others each time; nothing was written.
            LockLost, LeaseLost: The lock of `fence`, or a lease, has been lost: it is not called again, and nothing was
                written.
            ValueError: `fence` is no lock that was held, or `attempts` is no number of calls.
            EncodingError, NotCommitted, OutcomeUnknown, ClosedError, StorageError: As for `transaction`.

        Example:
            def transfer(t, source, target, amount):
                if t[source] < amount:
                    raise ValueError("not enough")
                t[source] -= amount
                t[target] += amount

            d.transact(transfer, "alice", "bob", 10)
        """
        tries = Attempts(self._host.node, self._seconds(timeout), attempts)
        check_fence(fence)
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
        """Add to the number under a key, as one command: exact from any number of threads and nodes.

        An int and a float give a float, an int and a Decimal a Decimal, as in Python; a Decimal sum is exact, up to
        600 digits, whatever the decimal context. A codec of your own encodes and decodes it on every node.

        Args:
            key: As in `set`.
            by: What is added: an int, float or Decimal.
            default: What an absent key counts as.
            timeout: Seconds; by default that of this dict.

        Returns:
            The new value.

        Raises:
            TypeError: The value, `by` or `default` is no such number, or they are a float and a Decimal; nothing was
                changed.
            OverflowError: The sum can't be kept: it has too many digits, or no float is so large; nothing was changed.
            NotCommitted, OutcomeUnknown, EncodingError, ClosedError, StorageError: As for `set`.

        Example:
            ticket = d.increment("tickets")
        """
        return self._run(self._operations.increment(key, by, default, self._seconds(timeout)))

    def scan(self, prefix: str = "", *, after: str | None = None, limit: int | None = None) -> list[tuple[str, V]]:
        """The pairs whose keys are texts that begin with `prefix`, in order of their code points, at one moment.

        Of this node's copy. The first call sorts all keys; they are kept in order from then on.

        Args:
            prefix: How the keys begin; all that are texts, if it is empty.
            after: Only keys behind this one: the last of the page before.
            limit: At most so many.

        Returns:
            Keys and values.

        Raises:
            TypeError: `prefix` or `after` is no text.
            ValueError: `limit` is no number of keys.
            ClosedError, StorageError: As for reading.

        Example:
            page = d.scan("user/", limit=100)
            while page:
                ...
                page = d.scan("user/", after=page[-1][0], limit=100)
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

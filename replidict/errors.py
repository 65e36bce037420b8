"""The exceptions of this package.

    ReplidictError
    +-- NotCommitted                      the write was surely not applied
    |   +-- RemovedError (ClosedError)    this node is no member any more, or its cluster goes on elsewhere
    |   +-- TransactionConflict           what a transaction had read was changed by others before it was done
    |   +-- LeaseLost                     the lease has ended: what hung on it is gone, or goes to others
    |       +-- LockLost                  the lock is held no more, and may be another's
    +-- LockTimeout    (TimeoutError)     a lock was not obtained in time
    +-- OutcomeUnknown (TimeoutError)     the write may or may not be applied, now or later
    +-- ReadTimeout    (TimeoutError)     a linearizable or bounded read could not be served in time
    +-- ClosedError    (ValueError)       the dict is closed, or belongs to the process this one was forked from
    +-- StorageError                      the disk failed, is full, in use, or holds something wrong
    +-- HistoryLost    (LookupError)      a watch is further behind than this node can tell
    +-- EncodingError  (TypeError)        a key or value that can't be kept faithfully
    |   +-- DecodingError                 a value that is stored, and can't be decoded on this machine
    +-- SecurityError                     a refused configuration or handshake

Definitely-not (`NotCommitted`) and maybe (`OutcomeUnknown`) are siblings on purpose: a program that
catches one must not catch the other by accident.
"""

from typing import Any, NoReturn

from typing_extensions import override


class ReplidictError(Exception):
    """Base of all errors that replidict raises; catch it to catch them all."""


class NotCommitted(ReplidictError):
    """The write was not applied and never will be, for want of a leader for instance. It is safe to call again."""


class TransactionConflict(NotCommitted):
    """Others changed what a transaction had read; nothing was written. Run it again, or use `ReplicatedDict.transact`.

    Attributes:
        keys: The keys that were changed; empty if the transaction depends on the whole dict, by its length for
            instance, and other keys were changed.
    """

    def __init__(self, text: str, keys: tuple[Any, ...] = ()) -> None:
        super().__init__(text, keys)
        self.keys = keys

    def __str__(self) -> str:
        return str(self.args[0])


class OutcomeUnknown(ReplidictError, TimeoutError):
    """The time was over: the write may or may not be applied, now or later. Read the value before you write again."""


class ReadTimeout(ReplidictError, TimeoutError):
    """A linearizable or bounded read found no majority in time. Call again, or read this node's copy by `get`."""


class ClosedError(ReplidictError, ValueError):
    """The dict is closed, or was opened by the process from which this one was forked. Open another one."""


class RemovedError(NotCommitted, ClosedError):
    """This node was removed from its cluster, or its cluster was recovered without it; it has stopped.

    Use the nodes that remain. To bring this node back, give it an empty directory, and open it with `join=`.
    """


class LeaseLost(NotCommitted):
    """The lease has ended, or may have ended: it was revoked, or was not renewed in time. Grant another one."""


class LockLost(LeaseLost):
    """The lock is not held any more, or may not be: another process may hold it. A write with `fence=` was not applied.

    Stop what needs the lock, and acquire it again.
    """


class LockTimeout(ReplidictError, TimeoutError):
    """The lock was not acquired in time: others hold it, or no majority could be reached. It is not held; try again."""


class StorageError(ReplidictError):
    """The node's directory can't be used: I/O error, full disk, corruption, another format, or in use elsewhere.

    An open node that raises it has stopped: it acknowledges nothing, does not vote and serves no reads. Mend the disk
    and open the directory again, or remove the member and add an empty one in its place.
    """


class HistoryLost(ReplidictError, LookupError):
    """A watch wants changes that this node no longer remembers. Open it with `snapshot=True`, or `after=error.oldest`.

    Attributes:
        oldest: The revision after which this node remembers every change: `after=oldest` works.
        current: This node's revision.
    """

    def __init__(self, text: str, oldest: int = 0, current: int = 0) -> None:
        super().__init__(text, oldest, current)
        self.oldest, self.current = oldest, current

    @override
    def __str__(self) -> str:
        return str(self.args[0])


class EncodingError(ReplidictError, TypeError):
    """A key or value can't be stored faithfully, because of its type, size or depth; nothing was changed.

    Convert it to one of the types that `replidict.machine.codec` lists, or split it.
    """


class DecodingError(EncodingError):
    """A stored value can't be decoded on this machine: it lacks time zone data, for instance, or `codec=` has a fault.

    Nothing was changed, unless the text says that the value was removed. Mend the machine, or decode `data` on another
    one.

    Attributes:
        key: The key of the value.
        data: The bytes of the value, as they are stored.
    """

    def __init__(self, text: str, key: object = None, data: bytes = b"") -> None:
        super().__init__(text)
        self.key, self.data = key, data


class SecurityError(ReplidictError):
    """The configuration would let in unauthenticated connections, or a peer or client failed the handshake.

    Give `secret=` or `tls=`, the same on all nodes; the text says what is missing.
    """


def removed(address: str) -> RemovedError:
    """The error of a node that is no longer a member."""
    return RemovedError(
        f"{address} was removed from its cluster: it has stopped, and its directory can no longer be used. Use "
        "the remaining nodes; to bring this one back, give it an empty directory and join="
    )


def waits_for_itself(kind: type[ReplidictError], what: str) -> ReplidictError:
    """The error for a call in a node's thread that would wait for this node, or for another one that may need it."""
    return kind(
        f"{what}: this was called in the thread of a node, which can't wait for itself, nor for others that need it. A "
        "codec, a finalizer (__del__) or the callback of a weak reference may run there: there it can read this node's "
        "own copy, call submit(), or hand the work to another thread"
    )


def raise_anew(error: ReplidictError) -> NoReturn:
    """Raise an error that several threads may get: each its own, so that tracebacks do not mix, and do not grow."""
    raise type(error)(*error.args) from error

"""What can go wrong, as one tree.

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
    """Base of every error that replidict raises on its own account."""


class NotCommitted(ReplidictError):
    """The write was surely not applied and never will be: it is safe to try again."""


class TransactionConflict(NotCommitted):
    """What a transaction had read was changed by others before it was done: nothing was written.

    Attributes:
        keys: The keys that had changed; none, if the transaction depends on the whole dict, by its length for instance,
            and other keys have.
    """

    def __init__(self, text: str, keys: tuple[Any, ...] = ()) -> None:
        super().__init__(text, keys)
        self.keys = keys

    def __str__(self) -> str:
        return str(self.args[0])


class OutcomeUnknown(ReplidictError, TimeoutError):
    """The deadline passed first: the write may or may not be applied. Read before trying again."""


class ReadTimeout(ReplidictError, TimeoutError):
    """A linearizable or bounded read could not be served before its deadline: no majority was reached."""


class ClosedError(ReplidictError, ValueError):
    """The dict was closed, or was opened by the process from which this one was forked."""


class RemovedError(NotCommitted, ClosedError):
    """This node was removed from its cluster, or that was recovered without it: it has stopped, and its copy is served
    no more."""


class LeaseLost(NotCommitted):
    """The lease has ended: it was given back, was not renewed in time, or may not have been."""


class LockLost(LeaseLost):
    """The lock is not held any more, or may not be, and may be another's: what was fenced with it was not applied."""


class LockTimeout(ReplidictError, TimeoutError):
    """The lock was not obtained in time: others have it, or no majority could be reached. It is not held."""


class StorageError(ReplidictError):
    """The node's file can't be used: I/O error, full disk, corruption, another format, or in use elsewhere.

    The node that raised it has stopped: it acknowledges nothing, votes no more and serves no reads.
    """


class HistoryLost(ReplidictError, LookupError):
    """A watch wants changes that this node can't tell any more; reading goes on with a snapshot, or `after=oldest`.

    Attributes:
        oldest: The revision behind which this node can tell every change: `after=oldest` opens.
        current: This node's revision.
    """

    def __init__(self, text: str, oldest: int = 0, current: int = 0) -> None:
        super().__init__(text, oldest, current)
        self.oldest, self.current = oldest, current

    @override
    def __str__(self) -> str:
        return str(self.args[0])


class EncodingError(ReplidictError, TypeError):
    """A key or value that can't be kept faithfully (its type, its size or its depth); nothing was changed."""


class DecodingError(EncodingError):
    """A stored value that can't be decoded on this machine: for want of time zone data, say, or by a fault of `codec=`.

    Unless its text says that the value was removed, nothing was changed. `key` is the value's key, and `data` are its
    bytes as they are stored, which a machine that can decode them takes.
    """

    def __init__(self, text: str, key: object = None, data: bytes = b"") -> None:
        super().__init__(text)
        self.key, self.data = key, data


class SecurityError(ReplidictError):
    """A configuration or a handshake that would let in a peer nobody authenticated."""


def removed(address: str) -> RemovedError:
    """What a node raises, and goes on raising, that is no member any more."""
    return RemovedError(
        f"{address} was removed from its cluster: it has stopped, and its directory is of no use any more. Use the "
        "nodes that are left; to bring this one back, give it an empty directory and join="
    )


def waits_for_itself(kind: type[ReplidictError], what: str) -> ReplidictError:
    """What is raised when a node's thread calls something that waits for this node, or for another that may need it."""
    return kind(
        f"{what}: this was called in the thread of a node, which can't wait for itself, nor for others that need it. A "
        "codec, a finalizer (__del__) or the callback of a weak reference may run there: there it can read this node's "
        "own copy, call submit(), or hand the work to another thread"
    )


def raise_anew(error: ReplidictError) -> NoReturn:
    """Raise an error that several threads may get: each its own, so that tracebacks do not mix, and do not grow."""
    raise type(error)(*error.args) from error

"""A dict that survives the loss of the machine it runs on."""

from replidict import aio as aio
from replidict.api.held_lock import Held
from replidict.api.leadership import Leadership
from replidict.api.lease import Lease
from replidict.api.lock import Lock, Semaphore
from replidict.api.replicated_dict import ReplicatedDict
from replidict.api.transaction_view import Transaction
from replidict.api.views import Versioned
from replidict.api.watch import Watch
from replidict.api.watched_changes import Change, Event
from replidict.errors import (
    ClosedError,
    DecodingError,
    EncodingError,
    HistoryLost,
    LeaseLost,
    LockLost,
    LockTimeout,
    NotCommitted,
    OutcomeUnknown,
    ReadTimeout,
    RemovedError,
    ReplidictError,
    SecurityError,
    StorageError,
    TransactionConflict,
)
from replidict.machine.codec import Codec
from replidict.node.online_backup import Backup
from replidict.options import Options
from replidict.release import __version__
from replidict.security import TLS
from replidict.status import LockInfo, Member, Status

__all__ = [
    "Backup",
    "Change",
    "ClosedError",
    "Codec",
    "DecodingError",
    "EncodingError",
    "Event",
    "HistoryLost",
    "Held",
    "Leadership",
    "Lease",
    "LeaseLost",
    "Lock",
    "LockInfo",
    "LockLost",
    "LockTimeout",
    "Member",
    "NotCommitted",
    "Options",
    "OutcomeUnknown",
    "ReadTimeout",
    "RemovedError",
    "ReplicatedDict",
    "ReplidictError",
    "SecurityError",
    "Semaphore",
    "Status",
    "StorageError",
    "TLS",
    "Transaction",
    "TransactionConflict",
    "Versioned",
    "Watch",
    "__version__",
]

"""A dict that survives the loss of the machine it runs on."""

from replidict.codec import Codec
from replidict.errors import (
    ClosedError,
    EncodingError,
    NotCommitted,
    OutcomeUnknown,
    ReadTimeout,
    ReplidictError,
    SecurityError,
    StorageError,
)
from replidict.options import Options
from replidict.replicated_dict import ReplicatedDict, Versioned
from replidict.security import TLS
from replidict.status import Status

__all__ = [
    "ClosedError",
    "Codec",
    "EncodingError",
    "NotCommitted",
    "Options",
    "OutcomeUnknown",
    "ReadTimeout",
    "ReplicatedDict",
    "ReplidictError",
    "SecurityError",
    "Status",
    "StorageError",
    "TLS",
    "Versioned",
]

"""The exit statuses of the command. Scripts rely on these numbers: their meaning never changes.

0  done
1  not done: there is no such key, a condition did not hold, it was refused, or it failed
2  the command line makes no sense
3  surely not done: no leader could be reached, or another change was under way; try again
4  may or may not be done, now or later: look before trying again
5  the node's disk or file: damaged, full, or in use
6  no answer in time: the node can't be reached, or a read could not be made sure
7  not let in: the secret or the certificates do not fit, or there is no protection where some is needed
8  not done, here and for ever: the node is no member of its cluster any more, or that goes on elsewhere; do not start
   it again
130  interrupted (Ctrl-C) before a node was asked to change something; afterwards it is 4
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from replidict.client.connection import UnreachableError
from replidict.errors import (
    NotCommitted,
    OutcomeUnknown,
    ReadTimeout,
    RemovedError,
    ReplidictError,
    SecurityError,
    StorageError,
)

NOT_DONE = 1
NO_ANSWER = 6
INTERRUPTED = 130

_STATUS: list[tuple[type[ReplidictError], int]] = [
    (RemovedError, 8),  # a NotCommitted as well, but trying again is in vain
    (NotCommitted, 3),
    (OutcomeUnknown, 4),
    (StorageError, 5),
    (ReadTimeout, NO_ANSWER),
    (UnreachableError, NO_ANSWER),
    (SecurityError, 7),
]


class Failure(click.ClickException):
    """Ends the command with a message and an exit status."""

    def __init__(self, message: str, exit_code: int = NOT_DONE) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # meant to be overridden: click's own exceptions do


@contextmanager
def told() -> Iterator[None]:
    """Turn errors in this block into messages for the user instead of tracebacks."""
    try:
        yield
    except ReplidictError as error:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), NOT_DONE)
        raise Failure(str(error), status) from error
    except FileExistsError as error:
        raise Failure(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except KeyboardInterrupt as error:
        raise Failure("interrupted", INTERRUPTED) from error
    except ValueError as error:  # of an argument, as the library says it
        raise click.UsageError(str(error)) from error

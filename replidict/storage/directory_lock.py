"""The lock of a node's directory: one process has it, until it ends or releases it.

Rules kept here:

1. What is locked is the directory itself, and the file `lock` in it, which releases before this one go by. The first
   can't be removed without the data; the second is at times, by whoever takes it for stale.
2. A lock on a file counts only while that file has its name: this is looked at after locking, and from time to time.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from replidict.errors import StorageError
from replidict.logging_thread import Logger

logger = Logger(__name__)

NAME = "lock"
NEVER = f"Never remove `{NAME}`: it is not stale, the system itself lets go of it when a process ends"


class DirectoryLock:
    """A lock that this process holds, until it is released."""

    def __init__(self, directory: Path) -> None:
        """Take it. Raises `BlockingIOError` when another holds it, and other `OSError`."""
        self._file = directory / NAME
        self._held: list[int] = []
        self._taken_over = False
        try:
            self._hold(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), only_if_possible=True)
            while not self._is_in_place():
                while len(self._held) > 1:
                    os.close(self._held.pop())
                self._hold(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except BaseException:
            self.release()
            raise

    def _hold(self, descriptor: int, *, only_if_possible: bool = False) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not only_if_possible or isinstance(error, BlockingIOError):
                os.close(descriptor)
                raise
            # Some network file systems lock no directories.
        self._held.append(descriptor)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._held[-1]), self._file.stat())
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """See that the file is there: if it was removed, make and lock it anew.

        Raises `StorageError` when another process has locked the one that is in its place.
        """
        if not self._held or self._is_in_place():
            return
        try:
            self._hold(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except BlockingIOError as error:
            if not self._taken_over:  # it may be about to be refused, because the directory is locked as well
                self._taken_over = True
                return
            raise StorageError(
                f"{self._file} was removed while this node ran, and another process has made and locked it anew: two "
                f"processes use one directory. This one has stopped. {NEVER}. Start one of the two again, alone"
            ) from error
        except OSError as error:
            logger.warning("%s was removed and can't be made anew: %s. %s", self._file, error, NEVER)
            return
        self._taken_over = False
        os.close(self._held.pop(1))
        logger.warning("%s was removed while this node ran; it is made and locked anew. %s", self._file, NEVER)

    def release(self) -> None:
        """Let another process have it. Idempotent."""
        while self._held:
            os.close(self._held.pop())

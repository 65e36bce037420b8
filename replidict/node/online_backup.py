"""Makes a backup of a running node: its state at one moment, in a file, while writes go on.

Rules kept here:

1. The state table trails the log, so the node's thread brings it up to date first: a backup includes every write that
   was acknowledged on this node before.
2. After that, the node's file is only read, in one transaction of another connection, which neither writes nor
   checkpoints. Before the node closes its file, all readers are told to give up, and waited for.
3. A file appears under its name only when it is complete: made under another name beside it, synced, checked row by
   row.
4. A problem with the target never stops the node, and a backup on the node's own disk leaves room for the node. Only a
   corrupt row of the node's own file stops it.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident

from replidict.errors import ReplidictError, StorageError, raise_anew
from replidict.node.raft_node import RaftNode
from replidict.storage import records, snapshot
from replidict.storage.atomic_file import new_file
from replidict.storage.directory import sync
from replidict.storage.snapshot import LookUp, Snapshot

ROOM = 16 * 1024 * 1024
"""Bytes that a backup leaves free on the node's own disk: a node whose disk is full stops."""

READERS_PAUSE = 0.001  # seconds between two looks whether those who read have given up

SYNC_BYTES = 8 * 1024 * 1024
"""What is written goes to the disk in pieces of about this size: the node's own syncs wait behind them."""


@dataclass(frozen=True)
class Backup:
    """A backup made by `ReplicatedDict.backup`: a file for `ReplicatedDict.restore`."""

    path: Path
    """The file."""

    revision: int
    """The revision of the last change that it holds; it holds exactly those up to it."""

    index: int
    """The index of the last log entry that it includes."""

    keys: int
    """The number of keys that it holds."""

    size: int
    """The size of the file, in bytes."""


class Backups:
    """Makes the backups of a node. All methods are for any thread."""

    def __init__(self, node: RaftNode, directory: Path) -> None:
        """`directory` is the node's own."""
        self._node = node
        self._directory = directory
        self._readers: dict[object, int] = {}  # who reads the node's file, and the number of its thread
        self._ended: ReplidictError | None = None

    @property
    def revision(self) -> int:
        """Of the last change that a backup made now would have, at least."""
        return self._node.machine.revision

    def make(self, path: str | os.PathLike[str]) -> Backup:
        """Write a backup to a file that does not exist yet.

        Raises `FileExistsError`, `ReplidictError` (it can't be written there), and what has ended the node.
        """
        try:
            with new_file(path) as (temporary, target):
                made = self.write(temporary, target)
        except FileExistsError:
            raise
        except OSError as error:
            raise not_made(Path(path), error) from error
        return Backup(target, made.revision, made.index, made.keys, made.size)

    def write(self, temporary: Path, target: Path, wanted: LookUp = snapshot.nothing) -> Snapshot:
        """Write a backup under a temporary name, durable and checked. Raises as `make`, naming `target`.

        `wanted` is called again and again meanwhile; what it raises ends it.
        """
        node = self._node
        node.call_and_wait(node.store.flush)
        identity = node.store.identity
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        origin = records.Origin(identity.cluster_id, identity.node_id, identity.address, now)
        try:
            look_up = self._look_up_for(temporary, wanted)
            with self._reading():
                snapshot.copy(f"{node.store.uri}?mode=ro", temporary, origin, look_up=look_up)
            sync(temporary)
            return snapshot.check(temporary, look_up)
        except _EndedError:
            assert self._ended is not None
            raise_anew(self._ended)
        except (StorageError, *records.FAILURES) as error:
            if isinstance(error, StorageError) or records.is_damage(error):
                self._end_if_damaged()
            raise not_made(target, error) from error

    def _look_up_for(self, temporary: Path, wanted: LookUp) -> LookUp:
        """Checks made while a backup is written: the node may end, and its disk must not fill up."""
        directory = temporary.parent
        on_own_disk = directory.stat().st_dev == self._directory.stat().st_dev
        synced = 0
        if on_own_disk:
            with self._reading(), closing(self._connect()) as db:
                _see_to_room(directory, snapshot.used_bytes(db))

        def look_up() -> None:
            nonlocal synced
            if self._ended is not None:
                raise _EndedError
            wanted()
            written = temporary.stat().st_size
            if written - synced >= SYNC_BYTES:
                synced = written
                sync(temporary)
            if on_own_disk:
                _see_to_room(directory, 0)

        return look_up

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._node.store.uri}?mode=ro", uri=True)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Hold on to the node's file."""
        me = object()
        self._readers[me] = get_ident()
        try:
            if self._ended is not None:  # looked for after it was noted, as `end` does it before
                raise _EndedError
            yield
        finally:
            del self._readers[me]

    def reads_here(self) -> bool:
        """Whether the calling thread is in the middle of a backup, interrupted by a signal handler or a finalizer."""
        return get_ident() in tuple(self._readers.values())

    def _end_if_damaged(self) -> None:
        """A copy is not as it should be: if the node's own file is not either, end the node, and say so."""
        store = self._node.store
        try:
            with self._reading():
                snapshot.check_source(f"{store.uri}?mode=ro", store.name)
        except StorageError as error:
            damage = error

            def end() -> None:
                raise damage

            self._node.call(end)
            raise

    def end(self, reason: ReplidictError) -> None:
        """The node is about to close its file: tell its readers to give up, and wait until they have."""
        self._ended = reason
        while self._readers:
            time.sleep(READERS_PAUSE)


class _EndedError(Exception):
    """The node has ended while the backup was made."""


def _see_to_room(directory: Path, needed: int) -> None:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + ROOM:
        raise OSError(
            errno.ENOSPC,
            f"{free >> 20} MiB are free, it takes {needed >> 20} MiB, and the node needs {ROOM >> 20} MiB to go on",
        )


def not_made(target: Path, error: BaseException) -> ReplidictError:
    """The error for a backup whose target can't be written."""
    return ReplidictError(f"{target}: no backup was made: {error}. The node goes on")

"""Automatic snapshots: backups that a node makes in its own directory from time to time.

Rules kept here:

1. Every minute or two it looks whether something was written since the newest snapshot. If so, and that one is half an
   hour old, or there is none, it takes another. The age is that of the file, so restarts do not matter.
2. The newest `snapshot_retain` stay. One is deleted only when another is there in its place.
3. Nothing that goes wrong with them ends the node: it is logged, once until it goes well again, and tried again half an
   hour later.
"""

from __future__ import annotations

import datetime as dt
import random
import re
import time
from pathlib import Path

from replidict.errors import ReplidictError
from replidict.latch import Latch
from replidict.logging_thread import Logger
from replidict.monotonic_clock import clock
from replidict.node.online_backup import Backups, not_made
from replidict.own_threads import OWN_THREADS, OwnThread
from replidict.storage.directory import remove, sync

logger = Logger(__name__)

DIRECTORY = "snapshots"
EVERY = 1800.0  # seconds
LOOK_EVERY = 60.0  # seconds; and up to as many again, so that the nodes of a cluster do not all begin at once
UNFINISHED = "unfinished"

_NAME = re.compile(r"(\d{12,})-\d{8}T\d{6}Z\.db")


class Automatic:
    """The thread that makes the snapshots of one node."""

    def __init__(self, backups: Backups, directory: Path, retain: int) -> None:
        """`directory` is the node's own. Removes the files that a killed process left behind."""
        self._backups = backups
        self._directory = directory / DIRECTORY
        self._retain = retain
        self._stopping = Latch()
        self._not_before = float("-inf")
        self._complained = False
        remove(self._directory / UNFINISHED)
        self._thread = OwnThread(self._run, f"{OWN_THREADS}snapshots")

    def start(self) -> None:
        """Begin, if any are to be kept."""
        if self._retain:
            self._thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until it has ended, after `stop`; not from within."""
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY * (1 + random.random())):
            if clock() >= self._not_before and self._due():
                self._take()

    def _kept(self) -> list[tuple[int, Path]]:
        """The snapshots there are, by revision."""
        try:
            found = [(_NAME.fullmatch(path.name), path) for path in self._directory.iterdir()]
        except OSError:
            return []
        return sorted((int(match[1]), path) for match, path in found if match)

    def _due(self) -> bool:
        kept = self._kept()
        if not kept:
            return self._backups.revision > 0
        revision, newest = kept[-1]
        try:
            age = time.time() - newest.stat().st_mtime
        except OSError:
            return False
        return self._backups.revision != revision and not 0 <= age < EVERY

    def _take(self) -> None:
        unfinished = self._directory / UNFINISHED
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            made = self._backups.write(unfinished, self._directory)
            now = dt.datetime.now(dt.UTC)
            kept = unfinished.rename(self._directory / f"{made.revision:012d}-{now:%Y%m%dT%H%M%SZ}.db")
            sync(self._directory)
        except (OSError, ReplidictError) as error:
            remove(unfinished)
            self._not_before = clock() + EVERY
            if not self._stopping.is_set and not self._complained:
                self._complained = True
                logger.warning("%s", error if isinstance(error, ReplidictError) else not_made(self._directory, error))
            return
        self._complained = False
        logger.info("%s: kept a snapshot of revision %d", kept, made.revision)
        for _, path in self._kept()[: -self._retain]:
            remove(path)

"""Whatever is raised while something is written ends the store, and nothing acknowledged is lost (promises 1 and 8)."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import encode_key
from replidict.storage import directory, snapshot, state_table
from replidict.storage.inspection import inspect
from tests.storage_support import Rig, put

ERRORS: dict[str, Callable[[], BaseException]] = {
    "no memory": MemoryError,
    "I/O error": lambda: sqlite3.OperationalError("disk I/O error"),
    "too large": lambda: OverflowError("BLOB longer than INT_MAX bytes"),
    "no space": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "recursion": RecursionError,
    "Ctrl-C": KeyboardInterrupt,
    "exit": lambda: SystemExit("bad"),
}
WHEN = ("before", "after", "rolled back")
"""The statement is not done; it is, and fails all the same; or SQLite has undone the transaction, as without memory."""


IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Hundreds of files are made here, and none has to outlive the test."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory in memory with the file of a new node in it, whose write-ahead logs are not made long beforehand."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "presize", lambda *_: None)
        Rig(Path(made) / "new").close()
        yield Path(made)


class Interrupted:
    """A connection on which the statement of a chosen number raises something."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.count = 0
        self.at: int | None = None
        self.error: Callable[[], BaseException] = MemoryError
        self.when = "before"
        self.struck: str | None = None

    def arm(self, at: int, error: Callable[[], BaseException], when: str) -> None:
        self.count, self.at, self.error, self.when = 0, at, error, when

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self.count += 1
        assert self.struck is None or sql.startswith("DETACH"), f"{sql} after {self.struck} has failed"
        if self.count != self.at:
            return self._connection.execute(sql, *args)
        self.struck = sql
        if self.when == "after":
            self._connection.execute(sql, *args)
        if self.when == "rolled back" and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        raise self.error()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def cases(kind: str, statements: int) -> Iterator[tuple[int, str]]:
    """Every statement, in every way without memory, and in turns with the other errors."""
    for number in range(1, statements + 1):
        yield from ((number, when) for when in (WHEN if kind == "no memory" else [WHEN[number % 3]]))


@contextmanager
def small_steps() -> Iterator[None]:
    """The state table moves beside every commit, in steps of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_table, "GATHER_ENTRIES", 4)
        patch.setattr(state_table, "WHOLE_BYTES", 0)
        patch.setattr(state_table, "STEP_PAGES", 1)
        patch.setattr(state_table, "STEP_BYTES", 1)
        yield


def opened(path: Path) -> tuple[Rig, Interrupted]:
    seen: list[Interrupted] = []
    shutil.copytree(path.parent / "new", path)

    def wrap(connection: sqlite3.Connection) -> Interrupted:
        seen.append(Interrupted(connection))
        return seen[0]

    return Rig(path, wrap=wrap, log_retain=3), seen[0]


def work(rig: Rig, acknowledged: dict[str, Any]) -> None:
    """Writes of every kind; what a return acknowledges is noted."""
    for number in range(12):
        rig.put(f"k{number % 5}", number)
        acknowledged[f"k{number % 5}"] = number
    rig.perform(cmd.Delete(encode_key("k1")), put("k2", "both"))
    acknowledged.pop("k1")
    acknowledged["k2"] = "both"
    rig.perform(cmd.Clear(), put("k9", "anew"))
    acknowledged.clear()
    acknowledged["k9"] = "anew"
    rig.put("k0", "last")
    acknowledged["k0"] = "last"


def statements(path: Path) -> int:
    """How many statements there are from the first write to the end of `close`."""
    with small_steps():
        rig, connection = opened(path)
        connection.arm(-1, MemoryError, "before")
        work(rig, {})
        rig.close()
        return connection.count


def after(path: Path) -> dict[Any, Any]:
    """What a node that opens the file has, which `inspect` calls whole."""
    found = inspect(path)
    assert found.damage is None
    rig = Rig(path)
    try:
        return rig.content()
    finally:
        rig.close()


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_at_any_statement(base: Path, kind: str) -> None:
    """Whatever any statement of a store raises: it does nothing more, neither then nor when it is closed, and the file
    opens again with every acknowledged write, no older value in its place (promises 1 and 8)."""
    total = statements(base / "whole")
    assert total > 60
    for number, when in cases(kind, total):
        path = base / str(number)
        acknowledged: dict[str, Any] = {}
        with small_steps():
            rig, connection = opened(path)
            connection.arm(number, ERRORS[kind], when)
            told = True
            try:
                work(rig, acknowledged)
            except (StorageError, KeyboardInterrupt, SystemExit) as raised:
                told = isinstance(raised, StorageError)
                with pytest.raises(StorageError, match=r"has stopped|damaged"):
                    rig.store.commit()
                with pytest.raises(StorageError, match=r"has stopped|damaged"):
                    rig.store.flush()
            try:
                rig.close()
            except (KeyboardInterrupt, SystemExit):
                rig.close_files()
            assert connection.struck is not None
            assert told or kind in ("Ctrl-C", "exit")
        found = after(path)
        shutil.rmtree(path)
        missing = {key: found.get(key) for key, value in acknowledged.items() if found.get(key) != value}
        if missing:  # only what the unacknowledged command after it put in its place
            assert connection.struck.startswith("COMMIT") and when == "after", (connection.struck, missing)


def test_a_failure_beside_a_commit_takes_nothing_from_the_table(base: Path) -> None:
    """What the state table had taken into a transaction that failed is still among what it holds."""
    path = base / "node"
    with small_steps():
        rig, connection = opened(path)
        for number in range(20):
            rig.put(f"k{number}", number)
        held = [changes.index for _, changes in rig.store.table._gathered]
        rig.append(put("one more", 1))
        connection.arm(4, MemoryError, "rolled back")
        with pytest.raises(StorageError):
            rig.store.commit()
        assert connection.struck is not None and connection.struck != "COMMIT"
        assert [changes.index for _, changes in rig.store.table._gathered] == held
        rig.close()
    assert after(path) == {f"k{number}": number for number in range(20)}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_at_any_statement_of_an_install(base: Path, kind: str) -> None:
    """A snapshot that is being installed is there as a whole or not at all, whatever is raised in between."""
    source = Rig(base / "source")
    for number in range(30):
        source.put(f"new{number}", number)
    source.store.flush()
    taken = snapshot.create(source.store.uri, base / "snapshot")
    source.close()
    new = {f"new{number}": number for number in range(30)}
    for number, when in cases(kind, 20):
        path = base / "node"
        rig, connection = opened(path)
        rig.put("old", 1)
        connection.arm(number, ERRORS[kind], when)
        try:
            rig.store.install(f"{taken.path.as_uri()}?mode=ro")
        except (StorageError, KeyboardInterrupt, SystemExit):
            pass
        at = connection.struck
        connection.at = None
        rig.close()
        assert after(path) in ({"old": 1}, new), at
        shutil.rmtree(path)
    assert at is None, "there are more statements than were tried"


def test_a_failed_store_is_closed_without_a_write(base: Path) -> None:
    """A node that ends in the midst of something has nothing more written, and what was acknowledged is there."""
    path = base / "node"
    rig, connection = opened(path)
    rig.put("k", 1)
    rig.append(put("k", 2))
    rig.store.fail(StorageError("the node has stopped"))
    connection.struck = "what ended the node"  # from here on it refuses every statement
    rig.close()
    assert after(path) == {"k": 1}

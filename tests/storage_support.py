"""A store with a state machine over it, driven by hand: what a node does with its disk, without the node."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replidict.errors import StorageError
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, encode_key
from replidict.machine.outcomes import BatchApplied
from replidict.machine.state_machine import StateMachine
from replidict.protocol.log_entry import Entry
from replidict.storage.directory import FILE_NAME, Directory, connect, founded_by
from replidict.storage.high_water_mark import HighWaterMark
from replidict.storage.store import Store

encode = DEFAULT_CODEC.encode
WAL = f"{FILE_NAME}-wal"
FRAME = 24 + 4096  # bytes of a frame in the write-ahead log


class Rig:
    """One node's disk and state. Every entry counts as committed as soon as it is durable."""

    def __init__(
        self,
        path: Path,
        *,
        log_retain: int = 0,
        founders: Sequence[str] = ("local",),
        wrap: Callable[[sqlite3.Connection], Any] | None = None,
    ) -> None:
        self.directory = Directory(path)
        self.mark: HighWaterMark | None = None
        try:
            self.directory.found(founders[0], lambda: founded_by(founders))
            self.connection = connect(self.directory.file, "fsync")
            try:
                self.mark = HighWaterMark(path / "mark")
                self.store = Store(
                    wrap(self.connection) if wrap else self.connection,
                    self.directory.file.absolute().as_uri(),
                    log_retain=log_retain,
                    mark=self.mark,
                )
                self.machine = StateMachine(DEFAULT_CODEC)
                self.store.load_into(self.machine)
                self.replayed = self.log.last_index - self.store.applied.index
                self.apply(self.log.entries_from(self.store.applied.index + 1, 1 << 62))
            except BaseException:
                self.connection.close()
                raise
        except BaseException:
            self.close_files()
            raise
        self._session = self._sequence = 0

    @property
    def log(self) -> Any:
        return self.store.log

    @property
    def file(self) -> Path:
        return self.directory.file

    def close_files(self) -> None:
        if self.mark is not None:
            self.mark.close()
        self.directory.close()

    def close(self) -> None:
        self.store.close()
        self.close_files()

    def crash(self) -> None:
        """Let go of the files without anything being written."""
        self.connection.close()
        self.close_files()

    def append(self, *operations: cmd.Operation, term: int = 1) -> list[Entry]:
        """Add an entry to the log, not yet durable."""
        if term > self.store.term:
            self.store.set_vote(term, None)
        entries = []
        if not self._session:
            self._session = self.log.last_index + 1
            entries.append(Entry(self._session, term, cmd.encode(cmd.OpenSession(b"nonce of the rig"))))
        self._sequence += 1
        batch = cmd.Batch(self._session, self._sequence, self._sequence - 1, list(operations))
        entries.append(Entry(self.log.last_index + 1 + len(entries), term, cmd.encode(batch)))
        self.log.append(entries)
        return entries

    def apply(self, entries: list[Entry]) -> None:
        for entry in entries:
            outcome = self.machine.apply(entry.index, entry.command)
            assert not isinstance(outcome, BatchApplied) or isinstance(outcome.results, list), outcome
            self.store.record(entry.term, self.machine.take_changes())

    def perform(self, *operations: cmd.Operation, term: int = 1) -> None:
        """Append, commit and apply: what was acknowledged when this returns."""
        entries = self.append(*operations, term=term)
        self.store.commit()
        self.apply(entries)

    def put(self, key: str, value: Any) -> None:
        self.perform(cmd.Put(encode_key(key), encode(value)))

    def put_many(self, key: str, count: int, value: Any = 0) -> list[Entry]:
        """So many entries in one commit, then applied one by one."""
        entries = [entry for _ in range(count) for entry in self.append(put(key, value))]
        self.store.commit()
        self.apply(entries)
        return entries

    def wal(self) -> bytes:
        """The write-ahead log as it is now."""
        return Path(f"{self.file}-wal").read_bytes()

    def content(self) -> dict[Any, Any]:
        return {key: DEFAULT_CODEC.decode(item.value) for key, item in self.machine.items.items()}

    def everything(self) -> tuple[Any, ...]:
        """All that must not change by itself."""
        entries = self.log.entries_from(self.log.start.index + 1, 1 << 62)
        while entries and entries[-1].index < self.log.last_index:
            entries += self.log.entries_from(entries[-1].index + 1, 1 << 62)
        items = [(key, item.value, item.revision, item.position) for key, item in self.machine.items.items()]
        vote = (self.store.term, self.store.voted_for)
        return (
            items,
            dict(self.machine.sessions),
            vote,
            self.store.members,
            self.log.last_index,
            self.log.last_term,
            entries,
        )


@contextmanager
def rig(path: Path, **arguments: Any) -> Iterator[Rig]:
    """A rig, closed at the end."""
    opened = Rig(path, **arguments)
    try:
        yield opened
    finally:
        opened.close()


def put(key: str, value: Any) -> cmd.Put:
    return cmd.Put(encode_key(key), encode(value))


def image(source: Path, target: Path, *, mark: bool = True) -> Path:
    """What is on disk at this moment: the file, its write-ahead log and the mark, in a directory of their own."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (FILE_NAME, f"{FILE_NAME}-wal", *(["mark"] if mark else [])):
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target


class Failing:
    """A connection on which a chosen statement fails, as it does when the disk does."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.statements: list[str] = []
        self.fails: str | None = None

    def _see(self, sql: str) -> None:
        self.statements.append(sql.split("(")[0].strip())
        if self.fails is not None and sql.startswith(self.fails):
            raise sqlite3.OperationalError("disk I/O error")

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._see(sql)
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def verdict(path: Path, expected: tuple[Any, ...]) -> str:
    """Open a node: "whole" if all is there, else the reason why it was refused, which must say where and what to do."""
    try:
        opened = Rig(path, log_retain=100)
    except StorageError as error:
        text = str(error)
        assert str(path / FILE_NAME) in text, f"does not name the file: {text}"
        assert "remove it from the cluster" in text, f"does not say what to do: {text}"
        return text
    try:
        found = opened.everything()
    except StorageError as error:
        return str(error)
    finally:
        opened.close()
    assert found == expected, "it was opened, but something is missing or different"
    return "whole"


def written(wal: bytes) -> bytes:
    """The log without the zeros behind it: its header, and the frames that belong to it."""
    end = 32
    while wal[16:24] != bytes(8) and wal[end + 8 : end + 16] == wal[16:24]:
        end += FRAME
    return wal[:end]


def flip(file: Path, offset: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1 << bit]))


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A disk of its own, mounted at the path."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)

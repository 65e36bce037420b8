"""A node's directory: its lock and its SQLite file, and how they are opened.

Rules kept here:

1. One process uses a directory at a time (`directory_lock`), and every file in it is its user's alone.
2. A file is born whole: made under another name, synced, then renamed. An empty or missing file beside a write-ahead
   log is therefore damage, never a beginning.
3. Exactly one connection writes to the file or checkpoints it (SQLite up to 3.51.2 can damage a log that two reset).
4. What SQLite was asked for is read back: a journal mode or sync level that did not take is an error.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
import struct
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from replidict.errors import RemovedError, StorageError
from replidict.storage import file_format, records
from replidict.storage.directory_lock import DirectoryLock
from replidict.storage.wal import check_wal, frames_before_checkpoint, longest, presize

FILE_NAME = "replidict.db"
SUPERSEDED = "superseded"
"""There if a node may not be opened any more: it says why. See `supersede`."""

DIVERGED = "diverged"
"""There if its state is not that of the other members: it says so. See `leave_note`."""

UNSYNCED = "unsynced"
"""There while the write-ahead log is that of a node with `durability="process"`: a power cut may have torn more of it
than the last transaction."""

_ID = re.compile(b"[0-9a-f]{32}")


class Beginning(NamedTuple):
    """The initial content of a new node's file: its cluster, its identity, and the members it knows."""

    cluster_id: str
    node_id: str
    members: records.Members


def founded_by(voters: Iterable[str]) -> Beginning:
    """A founding member of a cluster.

    All founders derive the same cluster id from the founding list: a node of another cluster has another one.
    """
    founders = sorted(voters)
    cluster_id = uuid.uuid5(uuid.NAMESPACE_OID, "replidict " + " ".join(founders)).hex
    return Beginning(cluster_id, uuid.uuid4().hex, records.Members(0, founders, []))


class Directory:
    """The locked directory of one node. `close` releases the lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the directory if need be, and lock it. Raises `StorageError`."""
        try:
            given = Path(path)
        except TypeError as error:
            raise ValueError(f"path={path!r}: must be the path of a directory") from error
        if not os.fspath(path):
            raise ValueError("path='': must be the path of a directory for this node alone")
        try:
            self.path = given.absolute()  # the program may change its working directory
            if self.path.exists() and not self.path.is_dir():
                raise StorageError(f"{self.path} is not a directory: give the path of a directory for this node alone")
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DirectoryLock(self.path)
        except BlockingIOError as error:
            raise in_use(self.path) from error
        except OSError as error:
            raise StorageError(f"{given}: can't be used as a node's directory: {error}") from error

    @property
    def file(self) -> Path:
        """The node's SQLite file."""
        return self.path / FILE_NAME

    @property
    def mark(self) -> Path:
        """The file of `high_water_mark`."""
        return self.path / "mark"

    @property
    def superseded(self) -> Path:
        """See `SUPERSEDED`."""
        return self.path / SUPERSEDED

    def close(self) -> None:
        """Let another process use the directory."""
        self._lock.release()

    def check_lock(self) -> None:
        """See that no other process can have come in. Raises `StorageError`."""
        self._lock.check()

    def new_identity(self) -> str:
        """An identity for a node that is about to join: the same again if it is interrupted and tries once more,
        since the cluster may have let it in under that one already. Raises `StorageError`."""
        reserved = self.path / "joining"
        try:
            try:
                if _ID.fullmatch(known := reserved.read_bytes()):  # else it was being written when the power went
                    return known.decode()
            except FileNotFoundError:
                pass
            node_id = uuid.uuid4().hex
            write_private(reserved, node_id)
            sync(reserved)
            sync(self.path)
            return node_id
        except OSError as error:
            raise StorageError(f"{reserved}: could not be made: {error}") from error

    def found(
        self, address: str, begin: Callable[[], Beginning], fill: Callable[[sqlite3.Connection], None] | None = None
    ) -> bool:
        """Make the node's file, if there is none yet; returns whether it did. `fill` puts more in it than a beginning.

        Raises `StorageError`, and `RemovedError` if it is superseded.
        """
        file = self.file
        wal = Path(f"{file}-wal")
        if self.superseded.exists():
            raise RemovedError(f"{self.path} must not be opened any more. {read_note(self.superseded)}")
        if (diverged := self.path / DIVERGED).exists():
            raise StorageError(f"{self.path} must not be opened any more. {read_note(diverged)}")
        if file.exists():
            return False
        for left in (wal, self.mark):
            if left.exists():
                raise StorageError(
                    f"{file} is missing, but {left.name} is there: the node's data was removed in part. Put the file "
                    f"back; if it is lost: {records.CURE}"
                )
        from replidict.storage import schema  # late: see there

        beginning = begin()
        born = self.path / f"{FILE_NAME}.new"
        try:
            make_private(born)
            with closing(sqlite3.connect(born, isolation_level=None)) as db:
                # A file nobody reads until it is whole needs no journal.
                db.execute("PRAGMA journal_mode = OFF")
                db.execute("PRAGMA synchronous = OFF")
                schema.create(db)
                write_founding_facts(db, address, beginning)
                if fill is not None:
                    fill(db)
            sync(born)
            born.rename(file)
            (self.path / "joining").unlink(missing_ok=True)
            sync(self.path)
            return True
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{file}: could not be made: {error}") from error
        finally:
            remove(born)


class InUseError(StorageError):
    """Another process, or another dict of this one, holds the lock of a directory."""


def in_use(path: Path) -> InUseError:
    """The error for a directory whose lock another process holds."""
    return InUseError(
        f"{path} is in use by another process or another ReplicatedDict: "
        "close that one first, or give this node a directory of its own"
    )


def member_of(path: Path) -> str | None:
    """The address of the node in a directory; None if it has none yet, or can't be read now. For processes without the
    lock: nothing is changed."""
    file = path / FILE_NAME
    if not file.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as db:
            (data,) = db.execute("SELECT data FROM fact WHERE name = 'identity'").fetchone()
            return msgspec.msgpack.decode(data, type=records.Identity).address
    except (sqlite3.Error, TypeError, msgspec.MsgspecError):
        return None


def read_note(path: Path) -> str:
    """A text that was left in a directory, for people."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return f"{path} says why"


def supersede(directory: Path, old: str, new: str, founder: str, at: str) -> str:
    """Have the node in this directory, of the cluster `old`, never be opened again: `founder` has made `new` of what
    was left of it. Returns the words. Raises `StorageError`."""
    text = (
        f"Its cluster {old} lost its quorum and goes on as {new}, founded by {founder} on {at}: to bring this node "
        "back, give it an empty directory and have it join that one."
    )
    _leave(directory / SUPERSEDED, text)
    return text


def leave_note(directory: Path, text: str) -> None:
    """Have the node in this directory never be opened again, because its state has diverged. Raises `StorageError`."""
    _leave(directory / DIVERGED, text)


def _leave(note: Path, text: str) -> None:
    made = note.with_suffix(".new")
    try:
        write_private(made, f"{text}\n")
        sync(made)
        made.rename(note)
        sync(note.parent)
    except OSError as error:
        raise StorageError(f"{note}: could not be written: {error}") from error
    finally:
        remove(made)


def write_founding_facts(db: sqlite3.Connection, address: str, beginning: Beginning) -> None:
    """Write the node's identity and its cluster."""
    facts = {
        "identity": records.Identity(beginning.cluster_id, beginning.node_id, address),
        "vote": records.Vote(),
        "applied": records.Applied(),
        "log_start": records.LogStart(),
        "members": beginning.members,
        "pins": records.Pins({}),
    }
    put_facts(db, facts)


def put_facts(db: sqlite3.Connection, facts: Mapping[str, object]) -> None:
    """Write single facts, by name."""
    for name, fact in facts.items():
        data = msgspec.msgpack.encode(fact)
        db.execute(records.PUT_FACT, (name, data, records.fact_crc(name, data)))


def private(path: str, flags: int) -> int:
    """An opener, for `open`, of files that other users may neither read nor write."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def make_private(path: Path) -> None:
    """Make a file, or empty it, that other users may neither read nor write."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def write_private(path: Path, text: str) -> None:
    """Write a text to such a file."""
    make_private(path)
    path.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file that is of no use, if it is there and that is possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a directory, on disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # there `fsync` leaves it to the disk's cache
                return
            except OSError:
                pass  # not all file systems know it; SQLite, too, does with `fsync` then
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


DYING = 1.0
"""Seconds in which a killed process lets go of the file: the system closes what it had open one after the other, the
directory's lock first, perhaps."""


def connect(file: Path, durability: Literal["fsync", "process"]) -> sqlite3.Connection:
    """Open and check a node's file. The connection is in autocommit mode. Raises `StorageError`."""
    check_outside(file, synced=durability == "fsync" and not is_unsynced(file.parent))
    with _refusing(file):
        if Path(f"{file}-wal").exists():  # a newer release may have been killed before the version was in the file
            # Only to read: closing a connection that may write would tidy up a file that is not ours to touch.
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=DYING)) as reader:
                check_version(reader, file)
    with _refusing(file), ExitStack() as unless_whole:
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw&psow=1", uri=True, isolation_level=None,
                             timeout=DYING, check_same_thread=False)  # fmt: skip
        unless_whole.callback(db.close)
        synchronous = 2 if durability == "fsync" else 1
        pragmas = [("journal_mode", "WAL", "wal"), ("synchronous", synchronous, synchronous)]
        if sys.platform == "darwin":
            pragmas += [("fullfsync", 1, 1), ("checkpoint_fullfsync", 1, 1)]
        for pragma, value, expected in pragmas:
            db.execute(f"PRAGMA {pragma} = {value}")
            (actual,) = db.execute(f"PRAGMA {pragma}").fetchone()
            if actual != expected:
                what = f"{pragma} is {actual!r} instead of {expected!r}: its file system can't keep data safe"
                raise _refusal(file, what)
        # What a statement of many rows may have to undo stays in memory, not in a file under /var/tmp: no statement
        # overwrites much, but that of a snapshot, which undoes nothing. And what is deleted is not overwritten with
        # zeros, as some builds of SQLite do: large values would write half as much again.
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA secure_delete = OFF")
        check_inside(db, file)
        # Each run begins with an empty write-ahead log, so that at most its last transaction can ever be torn.
        (busy, _, _) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise _refusal(file, "another program is using it")
        (rows,) = db.execute("SELECT count(*) FROM state").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        frames = frames_before_checkpoint(rows)
        db.execute(f"PRAGMA wal_autocheckpoint = {frames}")
        db.execute(f"PRAGMA journal_size_limit = {longest(page_bytes)}")
        if durability == "fsync":
            presize(file, frames, page_bytes)
            remove(file.parent / UNSYNCED)
        else:
            (file.parent / UNSYNCED).touch(mode=0o600)
        sync(file.parent)  # the write-ahead log was just made: its name must last as long as what is written to it
        db.execute("PRAGMA busy_timeout = 0")
        unless_whole.pop_all()
    return db


def is_unsynced(directory: Path) -> bool:
    """Whether the node in this directory ran with `durability="process"` last."""
    return (directory / UNSYNCED).exists()


def check_outside(file: Path, *, synced: bool) -> None:
    """Check a node's file without SQLite, which would change it by opening it. Raises `StorageError`.

    `synced`: each commit to the write-ahead log was synced, so that a power cut can explain a torn end and no more.
    """
    with _refusing(file):
        with file.open("rb") as raw:
            header = raw.read(100)
        if header[:16] != b"SQLite format 3\0":
            raise _refusal(file, "it is not a SQLite file")
        if synced and (damage := check_wal(file)):
            raise _refusal(file, damage)
        # Both were written before the file had its name, and stand in its header (sqlite.org/fileformat2.html, 1.3).
        version, _, application_id = struct.unpack_from(">3I", header.ljust(100, b"\0"), 60)
        if application_id != records.APPLICATION_ID:
            raise _refusal(file, "it is a SQLite file of another program")
        _check_number(version, file)


def check_version(db: sqlite3.Connection, file: Path) -> None:
    """Check the format with SQLite, which reads the write-ahead log, too. Raises `StorageError`."""
    with _refusing(file):
        _check_number(db.execute("PRAGMA user_version").fetchone()[0], file)


def _check_number(version: int, file: Path) -> None:
    if version > file_format.LATEST:
        newer = (
            f"a newer release of replidict wrote it (format {version}, known: up to {file_format.LATEST}). Nothing was "
            "changed: upgrade replidict, and open it again"
        )
        raise _refusal(file, newer)
    if version < file_format.FIRST:
        raise _refusal(file, f"its format number is {version}, which no release wrote")


def check_inside(db: sqlite3.Connection, file: Path) -> None:
    """Have SQLite check the pages of a node's file. Raises `StorageError`."""
    with _refusing(file):
        # quick_check does not compare an index with its table; only `fact` has one, and it is small.
        for check in ("quick_check(1)", "integrity_check(fact)"):
            (verdict,) = db.execute(f"PRAGMA {check}").fetchone()
            if verdict != "ok":
                raise _refusal(file, f"it is damaged: {verdict}")


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    try:
        yield
    except records.FAILURES as error:
        if records.is_damage(error):
            raise _refusal(file, f"can't be opened: {error}") from error
        raise StorageError(f"{file}: can't be opened: {error}. {records.DISK_CURE}") from error


def _refusal(file: Path, what: str) -> StorageError:
    return StorageError(f"{file}: {what}. This node will not use it. If the file is damaged: {records.CURE}")

"""Snapshots: the state at one applied index, as a SQLite file of its own (Raft 7, thesis 5).

Rules kept here:

1. One read transaction sees one moment; the writer goes on meanwhile, and is never waited for.
2. A snapshot is checked, row by row, both where it is made and where it is to be installed: damage never spreads.
3. Whoever reads many rows lets others run in between: the node's thread shares the interpreter with it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from replidict.errors import ReplidictError, StorageError
from replidict.machine import digest
from replidict.machine.changes import Session
from replidict.storage import file_format, records
from replidict.storage.directory import make_private, remove
from replidict.storage.loading import differs
from replidict.storage.whole_rows import state_rows

LookUp: TypeAlias = Callable[[], None]
"""Called again and again while a snapshot is made or checked; what it raises ends that."""

CHECK_ROWS = 256
"""So many rows are checked at a time: a fraction of a millisecond."""

COPY_BYTES = 4 * 1024 * 1024
"""SQLite copies rows on its own, without the interpreter; it looks up after about so much, or a thousand rows."""

STEPS_A_ROW = 5
"""What SQLite needs to copy one, in steps of its virtual machine."""

PAUSE = 0.0005
"""Seconds for which others have the interpreter to themselves."""


def nothing() -> None:
    """Go on in any case."""


@dataclass(frozen=True)
class Snapshot:
    """A checked snapshot file, the log entry it represents, and its content. Only a backup has an `origin`."""

    path: Path
    index: int
    term: int
    size: int
    sha256: bytes
    revision: int
    keys: int
    format: int
    origin: records.Origin | None


def create(source_uri: str, target: Path, look_up: LookUp = nothing) -> Snapshot:
    """Copy the state out of a node's file, and check it; safe in any thread.

    Raises `StorageError` when that file is damaged; other `ReplidictError`, and leaves nothing behind, when the
    snapshot can't be written.
    """
    try:
        copy(source_uri, target, look_up=look_up)
        return check(target, look_up)
    except (StorageError, *records.FAILURES) as error:
        remove(target)
        if isinstance(error, StorageError) or records.is_damage(error):
            check_source(source_uri, source_uri)
        raise ReplidictError(f"{target}: could not take a snapshot: {error}") from error


def check_source(uri: str, name: str) -> None:
    """A snapshot of a node's file, called `name`, is damaged: raise `StorageError` if the file is damaged, too."""
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            (data,) = db.execute("SELECT data FROM fact WHERE name = 'applied'").fetchone()
            applied = msgspec.msgpack.decode(data, type=records.Applied)
            _, digested = check_rows(db, Path(name), nothing, applied)
            if (difference := differs(applied, digested)) is not None:
                raise _damaged(Path(name), difference)
    except (StorageError, *records.FAILURES) as error:
        if isinstance(error, StorageError) or records.is_damage(error):
            raise StorageError(f"{error}. This node has stopped, and will not use the file: {records.CURE}") from error


def copy(source_uri: str, target: Path, origin: records.Origin | None = None, *, look_up: LookUp = nothing) -> None:
    """Copy the state out of a node's file into one that is made, or emptied; not synced, not checked.

    Raises one of `records.FAILURES`; safe in any thread.
    """
    make_private(target)
    with closing(sqlite3.connect(target.absolute().as_uri(), uri=True, isolation_level=None)) as db:
        # A file nobody reads until it is whole needs no journal.
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute(f"PRAGMA application_id = {records.APPLICATION_ID}")
        db.execute("ATTACH ? AS source", (source_uri,))
        db.execute("BEGIN")  # of the source, too: it may go on to another format meanwhile
        number = file_format.read(db, "source")
        db.execute(f"PRAGMA user_version = {min(number, file_format.SHARED)}")
        # As they are there, and nothing else: two snapshots of one state are the same bytes.
        tables = ["state", "session", *(["kept"] if file_format.has_kept(number) else [])]
        laid_out = f"name IN ('fact', {', '.join(map(repr, tables))})"
        schema = f"SELECT sql FROM source.sqlite_schema WHERE type = 'table' AND {laid_out} ORDER BY name"
        for (sql,) in db.execute(schema).fetchall():
            db.execute(sql)
        average = used_bytes(db, "source") // (1 + db.execute("SELECT count(*) FROM source.state").fetchone()[0])
        with _looking_up(db, look_up, STEPS_A_ROW * max(1, min(1000, COPY_BYTES // average))):
            for table in tables:
                whole = file_format.has_large(number) and table == "state"
                rows = state_rows(number, "source") if whole else f"SELECT * FROM source.{table}"
                db.execute(f"INSERT INTO {table} {rows}")
            db.execute("INSERT INTO fact SELECT * FROM source.fact WHERE name IN ('applied', 'members', 'kept')")
            if origin is not None:
                data = msgspec.msgpack.encode(origin)
                db.execute(records.PUT_FACT, ("origin", data, records.fact_crc("origin", data)))
            db.execute("COMMIT")


def used_bytes(db: sqlite3.Connection, name: str = "main") -> int:
    """How much of a database holds something."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}.{pragma}").fetchone()[0] for pragma in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


@contextmanager
def _looking_up(db: sqlite3.Connection, look_up: LookUp, steps: int) -> Iterator[None]:
    """SQLite swallows what its handler raises and says "interrupted": say instead what it was."""
    raised: list[BaseException] = []

    def handler() -> bool:
        try:
            look_up()
        except BaseException as error:  # noqa: BLE001 -- raised below
            raised.append(error)
        return bool(raised)

    db.set_progress_handler(handler, steps)
    try:
        yield
    except sqlite3.Error:
        if raised:
            raise raised[0] from None
        raise
    finally:
        db.set_progress_handler(None, 0)


def check(path: Path, look_up: LookUp = nothing) -> Snapshot:
    """Read a snapshot from end to end. Raises `StorageError` if anything in it is not as it was written."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = 0
            while piece := file.read(1 << 20):
                size += len(piece)
                sha256.update(piece)
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            number = file_format.read(db)
            with _looking_up(db, look_up, 1000 * STEPS_A_ROW):
                facts = _check_form(db, path, number)
            applied = msgspec.msgpack.decode(facts["applied"], type=records.Applied)
            msgspec.msgpack.decode(facts["members"], type=records.Members)
            origin = msgspec.msgpack.decode(facts["origin"], type=records.Origin) if "origin" in facts else None
            kept = msgspec.msgpack.decode(facts["kept"], type=records.Kept) if "kept" in facts else records.Kept()
            found, digested = check_rows(db, path, look_up, applied)
    except records.FAILURES as error:
        raise StorageError(f"{path}: not a usable snapshot: {error}") from error
    if found != (expected := Counts(applied.rows, applied.sessions, kept.rows)):
        raise _damaged(path, f"it holds {found.in_words}, and not {expected.in_words}")
    if (difference := differs(applied, digested)) is not None:
        raise _damaged(path, difference)
    return Snapshot(
        path, applied.index, applied.term, size, sha256.digest(), applied.revision, applied.rows, number, origin
    )  # fmt: skip


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(f"{path}: damaged: {what}")


def _check_form(db: sqlite3.Connection, path: Path, number: int) -> dict[str, bytes]:
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    if application_id != records.APPLICATION_ID:
        raise StorageError(f"{path}: not a snapshot: a SQLite file of another program")
    if not file_format.FIRST <= number <= file_format.SHARED:
        raise StorageError(
            f"{path}: not a snapshot of a format that is known here ({file_format.FIRST} to {file_format.SHARED}): "
            f"another release wrote it (format {number})"
        )
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(path, verdict)
    facts = {}
    for name, data, crc in db.execute("SELECT name, data, crc FROM fact NOT INDEXED"):
        if crc != records.fact_crc(name, data):
            raise _damaged(path, f"the checksum of {name!r} is wrong")
        facts[name] = data
    if facts.keys() - {"origin"} != {"applied", "members", *(["kept"] if file_format.has_kept(number) else [])}:
        raise StorageError(f"{path}: not a snapshot: it holds the facts {sorted(facts)}")
    return facts


class Counts(NamedTuple):
    """The number of rows of the state, by table."""

    keys: int
    sessions: int
    kept: int

    @property
    def in_words(self) -> str:
        """For an error."""
        return f"{self.keys} keys, {self.sessions} sessions and {self.kept} rows of other state"


def check_rows(db: sqlite3.Connection, path: Path, look_up: LookUp, applied: records.Applied) -> tuple[Counts, bytes]:
    """Read all of the state at `applied`, of a snapshot or of a node's file; how many rows there are, and their digest,
    which is right only if that is known there.

    Raises `StorageError` if one is not as it was written, and what SQLite raises.
    """
    rows = sessions = kept = hashes = 0
    crc_of = records.state_crc
    number = file_format.read(db)
    state = db.execute(state_rows(number))
    while some := state.fetchmany(CHECK_ROWS):
        for position, key, value, revision, crc in some:
            if crc != crc_of(position, key, value, revision):
                raise _damaged(path, f"the checksum of state row {position} is wrong")
            if applied.digest:
                hashes += digest.row_hash(position, key, value, revision)
        rows += len(some)
        if len(some) == CHECK_ROWS:
            look_up()
            time.sleep(PAUSE)
    for session, data, crc in db.execute("SELECT number, data, crc FROM session"):
        if crc != records.session_crc(session, data):
            raise _damaged(path, f"the checksum of session {session} is wrong")
        hashes += digest.session_hash(session, msgspec.msgpack.decode(data, type=Session))
        sessions += 1
    if file_format.has_kept(number):
        for name, data, crc in db.execute("SELECT name, data, crc FROM kept"):
            if crc != records.fact_crc(name, data):
                raise _damaged(path, f"the checksum of the row {name!r} of `kept` is wrong")
            hashes += digest.kept_hash(name, data)
            kept += 1
    return Counts(rows, sessions, kept), digest.digest_of(hashes, applied.revision, applied.next_position)

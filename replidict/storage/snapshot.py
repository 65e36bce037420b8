"""Snapshots: the state at one applied index, as a SQLite file of its own (Raft 7, thesis 5).

Rules kept here:

1. One read transaction sees one moment; the writer goes on meanwhile, and is never waited for.
2. A snapshot is checked, row by row, both where it is made and where it is to be installed: damage never spreads.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from replidict.errors import StorageError
from replidict.state_machine import Session
from replidict.storage import schema


@dataclass(frozen=True)
class Snapshot:
    """A checked snapshot file, and the log entry it stands for."""

    path: Path
    index: int
    term: int
    size: int
    sha256: bytes


def create(source_uri: str, target: Path) -> Snapshot:
    """Copy the state out of a node's file. Raises `StorageError`; safe in any thread."""
    target.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(target.absolute().as_uri(), uri=True, isolation_level=None)) as db:
            # A file nobody reads until it is whole needs no journal.
            db.execute("PRAGMA journal_mode = OFF")
            db.execute("PRAGMA synchronous = OFF")
            db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {schema.USER_VERSION}")
            db.execute("ATTACH ? AS source", (source_uri,))
            # As they are there, and nothing else: two snapshots of one state are the same bytes.
            laid_out = (
                "SELECT sql FROM source.sqlite_schema WHERE type = 'table' AND name IN ('state', 'session', 'fact')"
            )
            for (sql,) in db.execute(f"{laid_out} ORDER BY name").fetchall():
                db.execute(sql)
            db.execute("BEGIN")
            for table in ("state", "session"):
                db.execute(f"INSERT INTO {table} SELECT * FROM source.{table}")
            db.execute("INSERT INTO fact SELECT * FROM source.fact WHERE name IN ('applied', 'members')")
            db.execute("COMMIT")
            db.execute("DETACH source")
        return check(target)
    except schema.FAILURES as error:
        raise StorageError(f"{target}: could not take a snapshot: {error}") from error


def check(path: Path) -> Snapshot:
    """Read a snapshot from end to end. Raises `StorageError` if anything in it is not as it was written."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = 0
            while piece := file.read(1 << 20):
                size += len(piece)
                digest.update(piece)
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            applied = _check_rows(db, path)
    except schema.FAILURES as error:
        raise StorageError(f"{path}: not a usable snapshot: {error}") from error
    return Snapshot(path, applied.index, applied.term, size, digest.digest())


def _check_rows(db: sqlite3.Connection, path: Path) -> schema.Applied:
    def damaged(what: str) -> StorageError:
        return StorageError(f"{path}: damaged snapshot: {what}")

    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if (application_id, version) != (schema.APPLICATION_ID, schema.USER_VERSION):
        raise damaged(f"not a snapshot of format {schema.USER_VERSION}")
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise damaged(verdict)
    facts = {}
    for name, data, crc in db.execute("SELECT name, data, crc FROM fact"):
        if crc != schema.fact_crc(name, data):
            raise damaged(f"the checksum of {name!r} is wrong")
        facts[name] = data
    if facts.keys() != {"applied", "members"}:
        raise damaged(f"it holds the facts {sorted(facts)}")
    applied = msgspec.msgpack.decode(facts["applied"], type=schema.Applied)
    msgspec.msgpack.decode(facts["members"], type=schema.Members)
    rows = sessions = 0
    for position, key, value, revision, crc in db.execute("SELECT position, key, value, revision, crc FROM state"):
        if crc != schema.state_crc(position, key, value, revision):
            raise damaged(f"the checksum of state row {position} is wrong")
        rows += 1
    for number, data, crc in db.execute("SELECT number, data, crc FROM session"):
        if crc != schema.session_crc(number, data):
            raise damaged(f"the checksum of session {number} is wrong")
        msgspec.msgpack.decode(data, type=Session)
        sessions += 1
    if (rows, sessions) != (applied.rows, applied.sessions):
        raise damaged(f"{rows} keys and {sessions} sessions instead of {applied.rows} and {applied.sessions}")
    return applied

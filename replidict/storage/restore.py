"""Makes the directory of a new node from a backup (which `online_backup` wrote).

Rules kept here:

1. The backup is checked from end to end, and the place looked at, before anything is changed.
2. The node founds a cluster of its own: a new cluster id and a new identity, so that it is never taken for a member of
   the old one, nor the other way round, and it is the only voter.
3. Keys, values, their order, their revisions and the log index go on from the backup, so that a revision seen before is
   still that of the same change. The log is empty and begins there.
4. Sessions end: they are for the retries of processes of the old cluster, which can't reach this one.
5. Tokens of locks go on far above those of the backup: it does not know which were granted after it was made.
"""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from pathlib import Path

import msgspec

from replidict.errors import StorageError
from replidict.storage import records, snapshot
from replidict.storage.directory import FILE_NAME, Beginning, Directory, put_facts
from replidict.storage.file_format import FileFormat, has_kept


def restore(backup: Path, path: Path, address: str) -> None:
    """Make `path` the directory of a node at `address` with what the backup holds. Raises `StorageError`."""
    held = snapshot.check(backup)
    if held.origin is None:
        raise StorageError(f"{backup}: not a backup, but a snapshot that one node was sending to another")
    _refuse_a_node(path)
    node_id = uuid.uuid4().hex
    members = records.Members(held.index, [address], [], {address: node_id})

    def fill(db: sqlite3.Connection) -> None:
        db.execute("ATTACH ? AS backup", (f"{backup.absolute().as_uri()}?mode=ro",))
        db.execute("BEGIN")
        FileFormat(db).go_on_to(held.format)
        db.execute("INSERT INTO state SELECT * FROM backup.state")
        if has_kept(held.format):
            db.execute("INSERT INTO kept SELECT * FROM backup.kept")
            db.execute("INSERT OR REPLACE INTO fact SELECT * FROM backup.fact WHERE name = 'kept'")
            _skip_tokens(db)
        (data,) = db.execute("SELECT data FROM backup.fact WHERE name = 'applied'").fetchone()
        applied = msgspec.structs.replace(msgspec.msgpack.decode(data, type=records.Applied), sessions=0, digest=b"")
        put_facts(db, {
            "applied": applied,
            "log_start": records.LogStart(applied.index, applied.term),
            "vote": records.Vote(applied.term),
        })  # fmt: skip
        db.execute("COMMIT")

    new = not path.exists()
    directory = Directory(path)
    try:
        made = directory.found(address, lambda: Beginning(uuid.uuid4().hex, node_id, members), fill)
    except BaseException:
        if new:
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        directory.close()
    if not made:
        _refuse_a_node(path)


def _skip_tokens(db: sqlite3.Connection) -> None:
    """Rule 5."""
    row = db.execute("SELECT data FROM kept WHERE name = 'token'").fetchone()
    data = msgspec.msgpack.encode(records.later_token(0 if row is None else msgspec.msgpack.decode(row[0], type=int)))
    crc = records.fact_crc("token", data)
    db.execute("INSERT OR REPLACE INTO kept(name, data, crc) VALUES ('token', ?, ?)", (data, crc))
    (count,) = db.execute("SELECT count(*) FROM kept").fetchone()
    put_facts(db, {"kept": records.Kept(count)})


def _refuse_a_node(path: Path) -> None:
    """Refuse a directory that holds a node, or a part of one."""
    present = sorted(
        name for name in (FILE_NAME, f"{FILE_NAME}-wal", "mark", "joining", "snapshots") if (path / name).exists()
    )
    if present:
        raise StorageError(
            f"{path} holds a node, or what is left of one ({', '.join(present)}): give an empty directory, or move "
            "that one away"
        )

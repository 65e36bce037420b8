"""The tables of a node's file.

Rules kept here:

1. A file begins with these tables, which are never edited: it has format 1, which release 0.1.0 can read. What later
   formats add is in `file_format`.
2. `APPLICATION_ID` says that the file is ours.

Imported only where a file is made: sqlite-utils takes a while to load, and opening a file does not need it.
"""

from __future__ import annotations

import sqlite3

from sqlite_utils import Database, Migrations

from replidict.storage.file_format import FIRST
from replidict.storage.records import APPLICATION_ID

migrations = Migrations("replidict")


@migrations()
def m001_initial(db: Database) -> None:
    """Log, state, sessions and the single facts about the node."""
    db.table("log").create(
        {"idx": int, "term": int, "command": bytes, "committed": int, "crc": int},
        pk="idx", not_null={"term", "command", "committed", "crc"}, strict=True,
    )  # fmt: skip
    db.table("state").create(
        {"position": int, "key": bytes, "value": bytes, "revision": int, "crc": int},
        pk="position", not_null={"key", "value", "revision", "crc"}, strict=True,
    )  # fmt: skip
    db.table("session").create(
        {"number": int, "data": bytes, "crc": int}, pk="number", not_null={"data", "crc"}, strict=True
    )
    db.table("fact").create({"name": str, "data": bytes, "crc": int}, pk="name", not_null={"data", "crc"}, strict=True)


def create(connection: sqlite3.Connection) -> None:
    """Lay out an empty file."""
    database = Database(connection, execute_plugins=False)
    migrations.apply(database)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FIRST}")

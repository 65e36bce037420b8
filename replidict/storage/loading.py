"""Loads the state from the tables of a node's file, and checks the checksums, the number of rows and the digest."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgspec

from replidict.errors import EncodingError
from replidict.machine.changes import Session
from replidict.machine.state_machine import StateMachine
from replidict.storage import file_format, records
from replidict.storage.whole_rows import state_rows


class Wrong(Exception):
    """The tables do not hold what was written to them; the text says how they differ."""


def load(db: sqlite3.Connection, machine: StateMachine, applied: records.Applied, kept: int | None) -> None:
    """Give a state machine the state at `applied`. `kept` is how many rows the table of that name has; None: there is
    no such table. Raises `Wrong`, and `sqlite3.Error`."""
    try:
        machine.load(
            _state_rows(db),
            _session_rows(db),
            index=applied.index,
            revision=applied.revision,
            next_position=applied.next_position,
            kept=() if kept is None else _kept_rows(db),
        )
    except EncodingError as error:
        raise Wrong(f"a key can't be read: {error}") from error
    if len(machine.items) != applied.rows or len(machine.sessions) != applied.sessions:
        raise Wrong(
            f"it should hold {applied.rows} keys and {applied.sessions} sessions, "
            f"but has {len(machine.items)} and {len(machine.sessions)}"
        )
    if kept is not None and len(machine.kept) != kept:
        raise Wrong(f"it should hold {kept} rows of other state, but has {len(machine.kept)}")
    if (difference := differs(applied, machine.digested[1])) is not None:
        raise Wrong(difference)


def differs(applied: records.Applied, digest: bytes) -> str | None:
    """The error text if the rows have another digest than the state at `applied` had."""
    if applied.digest in (b"", digest):
        return None
    return (
        f"its rows have diverged from the state that this node had at entry {applied.index} of the log (digest "
        f"{digest.hex()} instead of {applied.digest.hex()}), though their checksums are right"
    )


def _state_rows(db: sqlite3.Connection) -> Iterator[tuple[int, bytes, bytes, int]]:
    crc_of = records.state_crc
    rows = db.execute(f"{state_rows(file_format.read(db))} ORDER BY s.position")
    for position, key, value, revision, crc in rows:
        if crc != crc_of(position, key, value, revision):
            raise Wrong(f"the checksum of state row {position} is wrong")
        yield position, key, value, revision


def _session_rows(db: sqlite3.Connection) -> Iterator[tuple[int, Session]]:
    for number, data, crc in db.execute("SELECT number, data, crc FROM session"):
        if crc != records.session_crc(number, data):
            raise Wrong(f"the checksum of session {number} is wrong")
        yield number, msgspec.msgpack.decode(data, type=Session)


def _kept_rows(db: sqlite3.Connection) -> Iterator[tuple[str, bytes]]:
    for name, data, crc in db.execute("SELECT name, data, crc FROM kept"):
        if crc != records.fact_crc(name, data):
            raise Wrong(f"the checksum of the row {name!r} of `kept` is wrong")
        yield name, data

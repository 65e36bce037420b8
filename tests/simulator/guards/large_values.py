"""Guards of large values, which are written once (see `storage.large_values`)."""

from __future__ import annotations

from replidict.storage import records
from replidict.storage.bulk_insert import put
from replidict.storage.large_values import LargeValues
from replidict.storage.whole_rows import LogRow, ids
from tests.simulator import large_value_scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("large values", scenario=large_value_scenarios.a_node_dies_beside_a_large_value)
def value_and_row_in_one_transaction() -> Replacements:
    """A crash parts the row of a log entry from the value that was cut out of it."""

    def cut(self: LargeValues, rows: list[LogRow]) -> list[LogRow]:
        left, db = original(self, rows), self._db
        first = (ids(rows[0][0])[0],)
        found = db.execute("SELECT * FROM large_value WHERE id >= ?", first).fetchall() if self.waiting else []
        if not found:
            return left
        db.execute("DELETE FROM large_value WHERE id >= ?", first)
        put(db, *records.PUT_LOG, left)
        db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        put(db, "INSERT INTO large_value(id, at, value) VALUES", "", found)
        return []

    original = LargeValues.cut
    yield LargeValues, "cut", cut


@guard("large values", scenario=large_value_scenarios.a_large_value_outlives_its_entry)
def keep_the_values_of_the_state() -> Replacements:
    """A value goes with its log entry, though a key has it still."""

    def compact(self: LargeValues, last: int) -> None:
        self._db.execute("DELETE FROM large_value WHERE id BETWEEN ? AND ?", ids(self._log.start.index + 1, last))

    yield LargeValues, "compact", compact


@guard("large values", scenario=large_value_scenarios.a_large_value_outlives_its_key)
def keep_the_values_of_the_log() -> Replacements:
    """A value goes when its key is written again, though the log has the entry still."""

    def release(self: LargeValues, rows: list[tuple[int, int]]) -> None:
        for position, value in rows:
            self._db.execute("DELETE FROM large_state WHERE position = ?", (position,))
            self._db.execute("DELETE FROM large_value WHERE id = ?", (value,))

    yield LargeValues, "_release", release


@guard("large values", scenario=large_value_scenarios.a_large_value_is_cut_off)
def cut_off_values_with_entries() -> Replacements:
    """Entries that are cut off leave their values, which are taken for those of the entries in their place."""

    def cut_off(self: LargeValues, index: int) -> None:
        pass

    yield LargeValues, "cut_off", cut_off

"""Guards of those who watch."""

from __future__ import annotations

from typing import Any

from replidict.machine.changes import KeyChange
from replidict.machine.state_machine import StateMachine
from replidict.node.history import Cursor, Found, History
from replidict.node.waiters import Waiter, Waiters
from tests.simulator import watch_scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("promise 10", scenario=watch_scenarios.watchers_are_told_all)
def read_all_of_a_piece() -> Replacements:
    """Of commands that were applied together only the first is told."""

    def passed(self: Cursor, found: Found) -> None:
        original(self, found._replace(stop=1 << 30))

    original = Cursor.passed
    yield Cursor, "passed", passed


@guard("promise 10", scenario=watch_scenarios.watchers_are_told_all)
def tell_what_was_told_no_more() -> Replacements:
    """A watcher that has read a change reads it again."""

    def look(self: Cursor, past: int, number: int, place: int) -> Found | None:
        return original(self, past - 1, number, max(place - 1, 0))

    original = Cursor._look
    yield Cursor, "_look", look


@guard("promise 10", scenario=watch_scenarios.watchers_are_told_all)
def tell_commands_whole() -> Replacements:
    """A command that changes several keys is told key by key."""

    def look(self: Cursor, past: int, number: int, place: int) -> Found | None:
        found = original(self, past, number, place)
        return None if found is None else found._replace(changes=found.changes[:1], stop=found.start + 1)

    original = Cursor._look
    yield Cursor, "_look", look


@guard("promise 10", scenario=watch_scenarios.watchers_are_told_all)
def tell_in_the_order_of_the_log() -> Replacements:
    """Commands that were applied together are told in another order."""

    def take_told(self: StateMachine) -> list[KeyChange]:
        return sorted(original(self), key=lambda change: -change[0])

    original = StateMachine.take_told
    yield StateMachine, "take_told", take_told


@guard("promise 10", 12)
def begin_with_what_is_replayed() -> Replacements:
    """A node that has restarted takes it that it knows the history from the beginning."""

    def init(self: History, *arguments: Any) -> None:
        original(self, *arguments)
        self.oldest = 0

    original = History.__init__
    yield History, "__init__", init


@guard("promise 10", 12)
def begin_anew_after_a_snapshot() -> Replacements:
    """What a snapshot jumps over is never told, and nobody says so."""

    def begin_anew(self: History) -> None:
        self.newest = self.announced = self._machine.revision

    yield History, "begin_anew", begin_anew


@guard("promise 10", 12)
def remember_what_was_dropped() -> Replacements:
    """A change that has fallen out of the history looks as if there had been none."""

    def drop_first(self: History) -> None:
        oldest = self.oldest
        original(self)
        self.oldest = oldest

    original = History._drop_first
    yield History, "_drop_first", drop_first


@guard("promise 10", scenario=watch_scenarios.watchers_are_told_all)
def wake_who_waits() -> Replacements:
    """A watcher that has read everything is never woken again."""

    def arm(self: Waiters, waiter: Waiter) -> None:
        pass

    yield Waiters, "arm", arm


@guard("promise 10", scenario=watch_scenarios.watchers_are_told_all)
def the_value_before() -> Replacements:
    """The previous value is the one that a command would have liked to find."""

    def store_item(self: StateMachine, key: Any, encoded: bytes, value: bytes) -> int:
        revision = original(self, key, encoded, value)
        self._told[-1] = (*self._told[-1][:5], None)
        return revision

    original = StateMachine._store
    yield StateMachine, "_store", store_item

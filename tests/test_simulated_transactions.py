"""Transactions under faults, in simulated time: money, duties and seats, and strict serializability (promise 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest import mock

import pytest

from replidict.api.commit import Commit
from replidict.api.transaction_view import Transaction
from replidict.machine import state_machine
from replidict.machine.transactions import planned
from tests.history import Operation
from tests.linearizability import check
from tests.simulator.bank import simulate_bank


def test_transactions_hold_under_faults() -> None:
    """Under crashes, failing disks, partitions and pauses no state of any node breaks a rule, and what tellers were
    told is strictly serializable."""
    done = conflicts = 0
    for seed in range(5):
        violation, some, others = simulate_bank(seed)
        assert violation is None, violation
        done, conflicts = done + some, conflicts + others
    assert done > 100 and conflicts > 0


prepared = Transaction.prepared


def without_a_read(self: Transaction[Any, Any]) -> Commit:
    commit = prepared(self)
    commit.checks = commit.checks[:1]
    return commit


def without_the_whole(self: Transaction[Any, Any]) -> Commit:
    commit = prepared(self)
    commit.whole = None
    return commit


def by_presence(op: Any, items: Mapping[Any, Any], place: Any, revision: int) -> list[bytes] | None:
    changed = [key for key, seen in op.checks if (seen is None) is not (items.get(place(key)) is None)]
    return changed if changed or op.whole not in (None, revision) else None


GUARDS: dict[str, tuple[Any, str, Any]] = {
    "checks are evaluated": (state_machine, "conflicts", lambda *ignored: None),
    "checks are evaluated by revision": (state_machine, "conflicts", by_presence),
    "each read is recorded": (Transaction, "prepared", without_a_read),
    "a phantom is seen": (Transaction, "prepared", without_the_whole),
    "a transaction is not split": (state_machine, "planned", lambda *given: planned(*given)[:1]),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_missing_guard_is_found(guard: str) -> None:
    """Without the guard one of the first seeds breaks a rule."""
    with mock.patch.object(*GUARDS[guard]):
        assert any(simulate_bank(seed)[0] is not None for seed in range(8))


def transact(client: str, call: float, ret: float | None, reads: Any, writes: Any, result: Any = True) -> Operation:
    return Operation(client, call, ret, "transact", None, (tuple(reads.items()), tuple(writes.items())), result)


def test_the_checker_knows_transactions() -> None:
    """It takes what some order explains, an unknown one included, and refuses write skew, a stale read, and an order
    that goes against time."""
    start = {"a": 1, "b": 1}
    skew = [
        transact("x", 0, 3, {"a": 1, "b": 1}, {"a": 2}),
        transact("y", 1, 4, {"a": 1, "b": 1}, {"b": 3}),
    ]
    assert not check(skew, initial=start).ok
    assert check([skew[0], transact("y", 1, 4, {"a": 2, "b": 1}, {"b": 3})], initial=start).ok
    late = [transact("x", 0, 1, {"a": 1}, {"a": 2, "b": None}), transact("y", 2, 3, {"b": 1}, {"c": 1})]
    assert not check(late, initial=start).ok
    unknown = [
        transact("x", 0, None, {"a": 1}, {"a": 2, "b": 2}, None),
        transact("y", 2, 3, {"a": 2, "b": 2}, {"c": 1}),
    ]
    assert check(unknown, initial=start).ok
    assert not check([*unknown, transact("z", 4, 5, {"a": 1}, {"c": 2})], initial=start).ok

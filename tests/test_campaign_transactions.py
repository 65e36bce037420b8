"""The campaigns of transactions and increments on real processes: what they would find, and short ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import increment, transactions
from tests.campaigns.check_bank import ACCOUNTS, BEGINNING, Transfer, check_transfers, wrong_with
from tests.campaigns.increment import check_counter
from tests.campaigns.work import Call

FIRST, SECOND = ACCOUNTS[:2]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, None),
        ({FIRST: 90, SECOND: 110}, None),
        ({FIRST: 90}, "the accounts hold"),
        ({"duty 1a": False}, None),
        ({"duty 1a": False, "duty 1b": False}, "nobody is on duty 1"),
        (dict.fromkeys((f"seat {number}" for number in range(5)), 1), "5 seats are taken"),
    ],
)
def test_a_wrong_state_is_found(change: dict[str, object], what: str | None) -> None:
    """Money that is made or lost, a duty that both have left, a seat too many."""
    found = wrong_with(BEGINNING | change)
    assert found is None if what is None else found is not None and what in found
    assert wrong_with({}) is None, "the bank is not open"


def test_wrong_transfers_are_found() -> None:
    """One that is lost, one that was refused and is there, one that was applied twice or in part."""
    one = Transfer("one", FIRST, SECOND, 10, done=True)
    content = BEGINNING | {FIRST: 90, SECOND: 110, "moved one": [FIRST, SECOND, 10]}
    assert check_transfers(content, [one]) == []
    assert check_transfers(content, [Transfer("one", FIRST, SECOND, 10, done=None)]) == []
    assert "is not there" in check_transfers(BEGINNING, [one])[0]
    assert "is there" in check_transfers(content, [Transfer("one", FIRST, SECOND, 10, done=False)])[0]
    assert "make" in check_transfers(content | {FIRST: 80, SECOND: 120}, [one])[0]
    assert "nobody asked" in check_transfers(content, [])[0]


def counted(call: float, ret: float | None, value: int | None, error: str | None = None) -> Call:
    return Call("n", 1, "increment", {"key": "x"}, call, ret, value, error, surely_not=error == "NotCommitted")


def test_wrong_counters_are_found() -> None:
    """One that lost an increment, or has one too many; a value that two got; a value that goes back."""
    calls = [counted(1, 2, 1), counted(3, 4, 2)]
    died, refused = counted(5, None, None, "Died"), counted(6, 7, None, "NotCommitted")
    assert check_counter("x", 1, calls, 2)[0] == []
    assert check_counter("x", 1, [*calls, died, refused], 3)[0] == []
    assert check_counter("x", 1, [*calls, died, refused], 4)[0]
    assert check_counter("x", 1, calls, 1)[0]
    assert check_counter("x", 1, [counted(1, 5, 1), counted(2, 4, 1)], 2)[0]
    assert check_counter("x", 1, [counted(1, 2, 2), counted(3, 4, 1)], 2)[0]
    assert check_counter("x", 1, [counted(1, 4, 2), counted(3, 5, 1)], 2)[0] == [], "they overlap"
    assert check_counter("x", 7, [counted(1, 2, 8)], 8)[0]


def test_a_short_campaign_of_transactions(tmp_path: Path) -> None:
    """The leader is killed: money is conserved in every state on every node, each transfer applied once or never, and
    no duty or seat is given away twice (promise 13)."""
    summary = transactions.run(tmp_path, seconds=0, seed=1, plan=["kill the leader"])
    assert summary["violations"] == []
    assert summary["transfers done"] > 20 and all(summary["states looked at"].values())


def test_a_short_campaign_of_increments(tmp_path: Path) -> None:
    """The leader is killed, then two nodes: each of 64 threads' increments counts once (promise 3)."""
    summary = increment.run(tmp_path, seconds=0, seed=1, plan=["kill the leader", "kill two"])
    assert summary["violations"] == []
    assert all(counter["acknowledged"] > 100 for counter in summary["counters"].values())

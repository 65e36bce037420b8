"""Money that is moved, duties that are left, seats that are taken: what no state may show. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ACCOUNTS = tuple(f"account {number}" for number in range(8))
AMOUNT = 100
"""What each account begins with."""

PAIRS = 4
DUTIES = tuple(f"duty {number}{side}" for number in range(PAIRS) for side in "ab")
SEATS = 4
BEGINNING: dict[str, Any] = {**dict.fromkeys(ACCOUNTS, AMOUNT), **dict.fromkeys(DUTIES, True)}
MOVED = "moved "
SEAT = "seat "


@dataclass(frozen=True)
class Transfer:
    """What one client asked for, and was told."""

    id: str
    source: str
    target: str
    amount: int
    done: bool | None
    """None: it was told nothing."""


def wrong_with(state: Mapping[str, Any]) -> str | None:
    """What is wrong with one moment of the dict; None: nothing, or the bank is not open yet."""
    if "account 0" not in state:
        return None
    amounts = [state.get(account) for account in ACCOUNTS]
    if None in amounts or sum(amounts) != AMOUNT * len(ACCOUNTS):  # type: ignore[arg-type]  # none is None
        return f"the accounts hold {amounts}"
    for number in range(PAIRS):
        if not state[f"duty {number}a"] and not state[f"duty {number}b"]:
            return f"nobody is on duty {number}"
    seats = sum(key.startswith(SEAT) for key in state)
    return f"{seats} seats are taken" if seats > SEATS else None


def check_transfers(content: Mapping[str, Any], transfers: Iterable[Transfer]) -> list[str]:
    """Each transfer was applied once or never: what is acknowledged is there, what was refused is not, and the accounts
    hold what all that are there make of them."""
    wrong: list[str] = []
    asked = {transfer.id: transfer for transfer in transfers}
    moved = {key.removeprefix(MOVED): value for key, value in content.items() if key.startswith(MOVED)}
    for name, transfer in asked.items():
        if transfer.done and name not in moved:
            wrong.append(f"{transfer} is not there")
        if transfer.done is False and name in moved:
            wrong.append(f"{transfer} is there")
    made = dict.fromkeys(ACCOUNTS, AMOUNT)
    for name, (source, target, amount) in moved.items():
        if name not in asked:
            wrong.append(f"nobody asked for the transfer {name}")
        made[source] -= amount
        made[target] += amount
    held = {account: content.get(account) for account in ACCOUNTS}
    return wrong if held == made else [*wrong, f"the transfers make {made}, and the accounts hold {held}"]

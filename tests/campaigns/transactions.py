"""Transactions: transfers of money, duties of which one must be kept, and seats, from every node under faults.

On every node a watch and readers look whether any state shows that money was made or lost, that nobody is on duty
(write skew), or that too many sit (phantoms). At the end each transfer must have been applied once or never, as its
client was told.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.campaigns.account import Account, distribution
from tests.campaigns.check_bank import (
    ACCOUNTS,
    BEGINNING,
    MOVED,
    PAIRS,
    SEAT,
    SEATS,
    Transfer,
    check_transfers,
    wrong_with,
)
from tests.campaigns.faults import Busyness, Faults, Trouble
from tests.campaigns.run import campaign_of, finish
from tests.campaigns.work import Journals, Work, read
from tests.processes import Network

TELLERS = 3  # that move money, in each process
PAUSE = 0.05  # seconds between two transactions of a thread, on average
LOOK_EVERY = 0.2  # seconds between two looks of a reader
TIMEOUT = 5.0

# -- in the process of a node ---------------------------------------------------------------------------------------


def loops(work: Work) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """Tellers, those on duty, those that sit, readers, and a watch."""
    tellers = [partial(move_money, work, number) for number in range(TELLERS)]
    others = [partial(each, work) for each in (keep_duty, take_seats, look_at_snapshots, look_in_transactions)]
    return [*tellers, *others], [partial(look_at_changes, work)]


def move_money(work: Work, number: int) -> None:
    """One transfer after the other."""
    rng, count = work.rng, 0
    while not work.stopping.is_set():
        work.pause(PAUSE)
        count += 1
        (source, target), amount = rng.sample(ACCOUNTS, 2), rng.randrange(1, 40)
        what = {"id": f"{work.name}.{number}.{count}", "source": source, "target": target, "amount": amount}
        work.call("transfer", what, work.d.transact, transfer, *what.values(), timeout=TIMEOUT)


def transfer(t: Any, name: str, source: str, target: str, amount: int) -> bool:
    """Whether there was enough."""
    if t.get(source, 0) < amount:
        return False
    t[source] -= amount
    t[target] += amount
    t[MOVED + name] = [source, target, amount]
    return True


def keep_duty(work: Work) -> None:
    """Leave, if the other one is on duty, and come back."""
    while not work.stopping.is_set():
        work.pause(PAUSE)
        number, side = work.rng.randrange(PAIRS), work.rng.choice("ab")
        work.call("duty", {}, work.d.transact, leave_or_come, number, side, timeout=TIMEOUT)


def leave_or_come(t: Any, number: int, side: str) -> None:
    mine, other = f"duty {number}{side}", f"duty {number}{'b' if side == 'a' else 'a'}"
    if not t.get(mine, True):
        t[mine] = True
    elif t.get(other, False):
        t[mine] = False


def take_seats(work: Work) -> None:
    """Sit down, if there is a seat, or stand up."""
    count = 0
    while not work.stopping.is_set():
        work.pause(PAUSE)
        count += 1
        work.call("seat", {}, work.d.transact, sit_or_stand, f"{work.name}.{count}", work.rng, timeout=TIMEOUT)


def sit_or_stand(t: Any, name: str, rng: random.Random) -> None:
    taken = [key for key, _ in t.scan(SEAT)]
    if len(taken) < SEATS:
        t[SEAT + name] = 1
    if taken and rng.random() < 0.7:
        del t[rng.choice(taken)]


def note(work: Work, how: str, state: Mapping[str, Any]) -> None:
    """Note that a state was looked at, and what is wrong with it."""
    work.journal.note("looked", how=how, wrong=wrong_with(state))


def look_at_snapshots(work: Work) -> None:
    """Look at what this node has."""
    while not work.stopping.wait(LOOK_EVERY):
        note(work, "snapshot", work.d.snapshot())


def look_in_transactions(work: Work) -> None:
    """Look at one moment of the whole cluster."""
    while not work.stopping.wait(LOOK_EVERY):
        told = work.call("look", {}, work.d.transact, dict_of, timeout=TIMEOUT)
        if told.error is None:
            note(work, "transaction", told.value)


def dict_of(t: Any) -> dict[str, Any]:
    return {key: t[key] for key in BEGINNING if key in t}


def look_at_changes(work: Work) -> None:
    """Look at the state after each change."""
    state: dict[Any, Any] = {}
    looks = 0
    with work.d.watch(snapshot=True, resync=True) as watch:
        while (change := watch.next(0.1)) is not None or not work.over.is_set():
            if change is None:
                continue
            if change.kind == "snapshot":
                state.clear()
            for event in change.events:
                if event.kind == "set" and not event.key.startswith(MOVED):
                    state[event.key] = event.value
                else:
                    state.pop(event.key, None)
            looks += 1
            if wrong_with(state) is not None or looks % 100 == 0:
                work.journal.note("looked", how="watch", wrong=wrong_with(state), times=100)


# -- the campaign ---------------------------------------------------------------------------------------------------


def run(
    root: Path,
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    plan: Sequence[str] = (),
) -> dict[str, Any]:
    """One campaign: the summary. With a plan it is over when these faults are, in this order."""
    account, rng, journals = Account(), random.Random(seed), root / "journals"
    with ExitStack() as stack:
        busy = stack.enter_context(Busyness())
        network = stack.enter_context(Network(3))
        nodes = stack.enter_context(
            campaign_of("tests.campaigns.transactions", root, journals, network=network, options={"log_retain": 500})
        )
        nodes[0].do("update", list(BEGINNING.items()))
        faults = Faults(nodes, network, rng, (0.3, 1.0) if plan else (0.3, 1.0, 2.0, 4.0))
        trouble = Trouble(nodes, faults, account, say)
        for _ in trouble.plan(seconds, plan, rng):
            pass
        elapsed = time.monotonic() - trouble.start
        content = finish(nodes, account)
    noted = read(journals)
    return {
        "seconds": round(elapsed, 1),
        **checked(account, noted, content),
        "faults": trouble.summary(),
        "errors": noted.errors(),
        "machine": busy.summary(),
        "violations": account.violations[:20],
    }


def checked(account: Account, noted: Journals, content: dict[str, Any]) -> dict[str, Any]:
    """All checks; what is found goes to the account, and figures are returned."""
    looks = {"snapshot": 0, "transaction": 0, "watch": 0}
    for each in noted.notes:
        if each.kind == "looked":
            looks[each.what["how"]] += each.what.get("times", 1)
            if each.what["wrong"] is not None:
                account.violated(f"a {each.what['how']} in process {each.pid} showed: {each.what['wrong']}")
    calls = list(noted.of("transfer"))
    transfers = [
        Transfer(**call.what, done=bool(call.value) if call.ok else False if call.surely_not else None)
        for call in calls
    ]
    account.violations += check_transfers(content, transfers) + noted.broken()
    final = wrong_with(content)
    account.violations += [] if final is None else [f"at the end {final}"]
    return {
        "transfers done": sum(each.done is True for each in transfers),
        "transfers without enough money, or refused": sum(each.done is False for each in transfers),
        "transfers with unknown outcome": sum(each.done is None for each in transfers),
        "duties": sum(call.ok for call in noted.of("duty")),
        "seats": sum(call.ok for call in noted.of("seat")),
        "states looked at": looks,
        "a transfer": distribution(call.ret - call.call for call in calls if call.ok and call.ret is not None),
    }

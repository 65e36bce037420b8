"""Money that moves between accounts: taken here and put there in one step, or not at all.

Several nodes transfer at once, between the same few accounts. `transact` calls the function again when others have
changed what it read, so it never overdraws an account; whoever adds up all accounts in a transaction sees no money on
its way. Amounts are `Decimal`, which `increment` adds exactly.
"""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/transfer.py`

from examples.local import Dict, three_nodes
from replidict import Transaction

ACCOUNTS = ["ann", "bob", "cem", "dora"]


def transfer(t: Transaction[Any, Any], source: str, target: str, amount: Decimal) -> bool:
    """Move an amount. Returns whether there was enough."""
    if t[f"account/{source}"] < amount:
        return False
    t.increment(f"account/{source}", -amount)
    t.increment(f"account/{target}", amount)
    return True


def trade(d: Dict, times: int) -> int:
    """Transfer between any two accounts, so many times. Returns how often there was enough."""
    done = 0
    for _ in range(times):
        source, target = random.sample(ACCOUNTS, 2)
        done += d.transact(transfer, source, target, Decimal(random.randrange(1, 4000)) / 100)
    return done


def main() -> None:
    with three_nodes() as nodes, ThreadPoolExecutor() as threads:
        nodes[0].update({f"account/{name}": Decimal("25.00") for name in ACCOUNTS})
        for node in nodes:
            node.barrier()
        done = sum(threads.map(trade, nodes, [50] * 3))
        nodes[0].barrier()
        with nodes[0].transaction() as t:
            balances = dict(t.scan("account/"))
        print(", ".join(f"{key}: {balance}" for key, balance in balances.items()))
        assert min(balances.values()) >= 0
        print(f"{done} transfers were made, {150 - done} refused, and the sum is {sum(balances.values())}")


if __name__ == "__main__":
    main()

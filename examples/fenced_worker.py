"""A worker that must not write once it has lost its lock, whatever held it up.

A lock alone is not enough: between a check and the write that follows it, a process can be stopped, swapped out or cut
off for longer than its lease, and another one has the lock when it goes on. So the write carries the token of the lock,
and the log decides: with a token that is no longer the holder's, nothing is changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/fenced_worker.py`

from examples.local import Dict, three_nodes
from replidict import Held, LockLost


def transfer(d: Dict, held: Held, amount: int) -> None:
    """Move money from one account to the other; the lock is held, or was until a moment ago."""
    d.barrier()
    accounts = d["accounts"]
    moved = {"ann": accounts["ann"] - amount, "bob": accounts["bob"] + amount}
    d.set("accounts", moved, fence=held)


def main() -> None:
    with three_nodes() as (one, two, _):
        one["accounts"] = {"ann": 100, "bob": 0}
        with one.lock("accounts", info="the worker on machine one") as held:
            transfer(one, held, 10)
            print("moved 10:        ", one["accounts"], f"with token {held.token}")

        # The worker on machine one is late: it believes to have the lock, but another one has had it meanwhile.
        with two.lock("accounts", info="the worker on machine two") as later:
            transfer(two, later, 20)
            print("moved 20:        ", two["accounts"], f"with token {later.token}")
        try:
            transfer(one, held, 50)
        except LockLost as error:
            print("nothing is moved:", error)
        one.barrier()
        assert one["accounts"] == {"ann": 70, "bob": 30}


if __name__ == "__main__":
    main()

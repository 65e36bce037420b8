"""A lock that outlives the crash of its owner, with `add` and `compare_and_set`.

The lock is a pair: its owner, or None, and a number that grows with each change. A replicated dict has no clock, and
none is needed: whoever waits takes the lock over when it has not changed for the length of the lease on the waiter's
own clock, for then its owner has stopped renewing it.

An owner that was paused may not know yet that it has lost the lock. So hand the number to what the lock protects, and
let that refuse a number smaller than one it has seen.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/lease.py`

from examples.local import Dict, three_nodes

Lock = tuple[str | None, int]


def acquire(d: Dict, name: str, owner: str, lease: float) -> Lock:
    """Wait for the lock. An error leaves nothing to clean up: a lock that nobody renews is taken over."""
    d.add(name, (None, 0))
    seen, since = None, 0.0
    while True:
        now = time.monotonic()
        lock: Lock = d.get(name, (None, 0), linearizable=True)
        if lock != seen:
            seen, since = lock, now
        if lock[0] is None or now - since > lease:
            mine = (owner, lock[1] + 1)
            if d.compare_and_set(name, lock, mine):
                return mine
        time.sleep(lease / 20)


def renew(d: Dict, name: str, mine: Lock) -> Lock | None:
    """Keep the lock: call it a few times per lease. None if another has it now."""
    renewed = (mine[0], mine[1] + 1)
    return renewed if d.compare_and_set(name, mine, renewed) else None


def release(d: Dict, name: str, mine: Lock) -> None:
    d.compare_and_set(name, mine, (None, mine[1] + 1))


def main() -> None:
    with three_nodes() as (one, two, _):
        first = acquire(one, "printer", "ann", lease=0.5)
        print("ann has the printer:", first)
        renewed = renew(one, "printer", first)
        print("ann keeps it:", renewed, "- and then forgets all about it")
        second = acquire(two, "printer", "bob", lease=0.5)
        print("bob has the printer:", second)
        assert renewed is not None
        print("ann wants to keep it:", renew(one, "printer", renewed))
        release(two, "printer", second)
        print("bob is done:", one.get("printer", linearizable=True))


if __name__ == "__main__":
    main()

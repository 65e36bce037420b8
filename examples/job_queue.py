"""A queue with several consumers: each takes the oldest job, and no job is lost when its consumer dies.

A claim is a key that hangs on the consumer's lease: when the consumer is gone, so is the claim. Claiming is a
transaction, so only one gets the job. A consumer that was held up until its lease was lost can't say that the job is
done.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/job_queue.py`

from examples.local import Dict, three_nodes
from replidict import Lease, Transaction


def put(d: Dict, work: Any) -> None:
    d[f"job/{d.increment('jobs'):012}"] = work


def claim(t: Transaction[Any, Any], job: str, me: str, lease: Lease) -> bool:
    """Take a job, if it is there and nobody has it."""
    if free := job in t and f"claim/{job}" not in t:
        t.set(f"claim/{job}", me, lease=lease)
    return free


def finish(t: Transaction[Any, Any], job: str, me: str) -> bool:
    """The job is done and goes, if it is still this consumer's."""
    if mine := t.get(f"claim/{job}") == me:
        del t[job], t[f"claim/{job}"]
    return mine


def consume(d: Dict, me: str, lease: Lease) -> list[Any]:
    """Do jobs until there are none. Returns those that this consumer has done."""
    done = []
    while jobs := d.scan("job/", limit=10):  # looked for before the transaction, which then depends on one job alone
        for job, work in jobs:
            if d.transact(claim, job, me, lease) and d.transact(finish, job, me):  # it works between the two
                done.append(work)
        time.sleep(0.01)  # what is left may be others'
    return done


def main() -> None:
    with three_nodes() as nodes, ThreadPoolExecutor() as threads, nodes[0].lease() as one, nodes[1].lease() as two:
        for number in range(40):
            put(nodes[number % 3], number)
        oldest, _ = nodes[2].scan("job/", limit=1)[0]
        assert nodes[2].transact(claim, oldest, "three", nodes[2].lease())
        nodes[2].close()  # as a process that ends; what one that is killed has claimed is free when its lease is over
        done = list(threads.map(consume, nodes, ["one", "two"], [one, two]))
        print(f"40 jobs, {len({*done[0], *done[1]})} done, by consumer: {[len(each) for each in done]}")


if __name__ == "__main__":
    main()

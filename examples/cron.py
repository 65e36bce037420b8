"""A job that runs every so often on exactly one machine of the cluster, whichever lives.

All machines stand for the same name, and one leads. When it is gone, another one goes on where it was: what was done
last stands in the dict, and is written with the fence of the leader, so one that was paused and woke up too late can't
say that it did anything.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/cron.py`

from examples.local import Dict, three_nodes
from replidict import Held, Leadership, LockLost

EVERY = 0.2  # seconds


def run_every(d: Dict, name: str, seconds: float, job: str) -> Leadership:
    """Have a job run in one process at a time; `name` is that of the job."""

    def work(held: Held) -> None:
        while not held.lost.wait(seconds):
            count = d.get(f"cron/{name}", 0, linearizable=True) + 1
            print(f"{job} runs, for the {count}. time")
            try:
                d.set(f"cron/{name}", count, fence=held)
            except LockLost:
                return  # another one leads, and has done it

    return d.run_as_leader(f"cron/{name}", work, ttl=2.0, info=job)


def main() -> None:
    with three_nodes() as nodes:
        jobs = [run_every(d, "report", EVERY, f"the report on machine {number}") for number, d in enumerate(nodes)]
        for _ in range(3):
            while not any(job.is_leader for job in jobs):
                time.sleep(0.01)
            leader = next(number for number, job in enumerate(jobs) if job.is_leader)
            time.sleep(3 * EVERY)
            print(f"machine {leader} stops")
            jobs[leader].stop()


if __name__ == "__main__":
    main()

"""Cron for several machines: each run of each job is done by one node, whichever is there.

Every node looks at the clock and tries to `add` the run to the dict; `add` is true for exactly one of them. A node that
dies is not missed. If it dies during a run, the run stays "started": a job that must not be lost checks for that.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/schedule.py`

from examples.local import Dict, three_nodes


def run_if_due(d: Dict, me: str, job: str, every: float, work: Callable[[], None]) -> bool:
    """Do the work if this interval's run is still free. Returns whether this node did it."""
    run = int(time.time() / every)  # the same number on all nodes, as far as their clocks agree
    if not d.add(("run", job, run), ("started", me)):
        return False
    work()
    d["run", job, run] = ("done", me)
    d.pop(("run", job, run - 100), None)  # the last hundred are history enough
    return True


def serve(d: Dict, me: str, until: float) -> list[str]:
    done: list[str] = []
    while time.time() < until:
        run_if_due(d, me, "report", 0.2, lambda: done.append(me))
        time.sleep(0.05)
    return done


def main() -> None:
    with three_nodes() as nodes, ThreadPoolExecutor() as threads:
        until = time.time() + 1.5
        done = list(threads.map(serve, nodes, ["n1", "n2", "n3"], [until] * 3))
        nodes[0].barrier()
        runs = [key for key in nodes[0] if key[0] == "run"]
        print(f"{len(runs)} runs were due, {sum(map(len, done))} done, by node: {[len(each) for each in done]}")


if __name__ == "__main__":
    main()

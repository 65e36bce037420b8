"""Jobs for whoever is there: workers on all nodes wait for them, and each job is done by one of them.

A job is a key. Its value says what is to be done, and whether it is taken: `compare_and_set` lets one worker have it.
Nobody polls: a watch begins with the jobs that are there, and then tells each new one. A worker that dies keeps its job
"taken" for ever; where jobs must not be lost, note when it was taken, and have old ones offered again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/worker.py`

from examples.local import Dict, three_nodes
from replidict import Watch


def offer(d: Dict, name: str, work: Any) -> None:
    d[f"job/{name}"] = ("new", work)


def work_on(d: Dict, me: str, jobs: Watch[Any, Any], do: Callable[[Any], object]) -> list[str]:
    """Do jobs as they come, until the watch is closed. Returns which ones this worker has done."""
    done: list[str] = []
    for change in jobs:
        for event in change.events:
            if event.value is None or event.value[0] != "new":
                continue
            _, work = event.value
            if d.compare_and_set(event.key, event.value, ("taken", work, me)):
                do(work)
                del d[event.key]
                done.append(event.key)
    return done


def main() -> None:
    with three_nodes() as nodes, ThreadPoolExecutor() as threads:
        for number in range(10):
            offer(nodes[0], f"early {number}", number)
        watches = [node.watch(prefix="job/", snapshot=True, resync=True) for node in nodes]
        done_work: list[int] = []
        workers = [
            threads.submit(work_on, node, f"n{number + 1}", jobs, done_work.append)
            for number, (node, jobs) in enumerate(zip(nodes, watches, strict=True))
        ]
        for number in range(10, 30):
            offer(nodes[number % 3], f"late {number}", number)
        with nodes[0].watch(snapshot=True) as until_empty:
            while nodes[0]:
                until_empty.next()
        for jobs in watches:
            jobs.close()
        counts = [len(worker.result()) for worker in workers]
        print(f"{len(set(done_work))} jobs, {len(done_work)} done, by worker: {counts}")


if __name__ == "__main__":
    main()

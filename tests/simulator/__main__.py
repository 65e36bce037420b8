"""`python -m tests.simulator --seeds 100`: run seeds, sum up, and show the last steps of whatever went wrong."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from replidict.testing.simulator.violation import Violation
from tests.simulator.guards import GUARDS, STORY_OPTIONS, Guard, without
from tests.simulator.run import Result, new_cluster, simulate

BROKEN = re.compile(r"^(TypeError|AttributeError|NameError|KeyError):", re.MULTILINE)
"""Errors that show a guard's replacement no longer fits the product: these find nothing."""


def run_seeds(seeds: Iterable[int], jobs: int, **settings: object) -> Iterator[Result]:
    """Results in the order of the seeds."""
    one = partial(simulate, **settings)  # type: ignore[arg-type]
    if jobs == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(one, seeds)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # whoever asked has seen enough


def summary(results: list[Result], elapsed: float) -> str:
    """The figures of many runs."""
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for result in results:
        counts += result.counts
        faults += result.faults
    sizes = Counter(result.nodes for result in results)
    shape = ", ".join(f"{count} of {nodes} nodes" for nodes, count in sorted(sizes.items()))
    changing = sum(result.changing for result in results)
    hours = sum(result.seconds for result in results) / 3600
    cpu = sum(result.cpu for result in results)
    lines = [
        f"{len(results)} seeds ({shape}), {hours:.1f} simulated hours, {counts['steps']:,} steps, "
        f"{counts['messages']:,} messages, {counts['cuts']:,} connections lost",
        f"{counts['writes']:,} writes acknowledged, {counts['not_committed']:,} surely not applied, "
        f"{counts['unknown']:,} with unknown outcome; {counts['reads']:,} linearizable reads, "
        f"{counts['reads_failed']:,} given up",
        f"{counts['entries']:,} log entries committed by {counts['leaders']:,} leaders, "
        f"{counts['snapshots']:,} snapshots installed; {counts['undecided']} histories too hard to check",
        f"members changing in {changing} seeds: {counts['changes']:,} configurations committed, {counts['removed']:,} "
        f"times a node heard that it was removed, {counts['farewells']:,} farewells, {counts['refused']:,} connections "
        f"refused for an identity or a release, {counts['stranded']} nodes to which all others had become strangers",
        f"releases mixed in {counts['mixed']} seeds: {counts['upgrades']:,} upgrades; the level was raised "
        f"{counts['levels_raised']:,} times in all",
        f"{sum(faults.values()):,} faults: " + ", ".join(f"{count:,} {kind}" for kind, count in faults.most_common()),
        f"{cpu:.0f} s of CPU ({cpu / max(len(results), 1):.2f} s a seed), {elapsed:.0f} s in all",
    ]
    return "\n".join(lines)


def show(result: Result, lines: int) -> str:
    """What went wrong in a run, and how to see it again."""
    return "\n".join(
        [
            *result.trace[-lines:],
            "",
            f"seed {result.seed} on {result.nodes} nodes: {result.violation}",
            f"again: python -m tests.simulator --start {result.seed} --seeds 1 --nodes {result.nodes} "
            f"--{'' if result.changing else 'no-'}changing --seconds {result.seconds:g}",
        ]
    )


def find(guard: Guard, first: int | None = None) -> tuple[str, int | None]:
    """What notices that a guard is gone, and after how many seeds; None: nothing does. A seed that is tried `first`
    saves the others."""
    if guard.scenario is not None:
        with without(guard.name), new_cluster(1, guard.nodes, STORY_OPTIONS) as cluster:
            try:
                guard.scenario(cluster)
            except Violation as violation:
                return f"story: {guard.scenario.__name__.replace('_', ' ')} ({violation.invariant})", 0
        return "nothing", None
    for seed in [*([] if first is None else [first]), *range(guard.within)]:
        result = simulate(seed, changing=guard.changing, without=guard.name)
        if result.violation is not None:
            if BROKEN.search(result.violation.what):
                raise RuntimeError(
                    f"the product has changed, and taking out {guard.name} breaks it: {result.violation}"
                )
            return f"simulator: {result.violation.invariant}", seed + 1
    return "nothing", None


def table(names: list[str], jobs: int) -> Iterator[str]:
    """The table of guards in docs/, line by line."""
    yield "| Guard | Stands for | Without it | Found by | Seeds |"
    yield "|---|---|---|---|---|"
    guards = [GUARDS[name] for name in names]
    with ProcessPoolExecutor(jobs) as pool:
        for name, (by, seeds) in zip(names, pool.map(_find_by_name, names), strict=True):
            guard = next(guard for guard in guards if guard.name == name)
            count = "not found" if seeds is None else "-" if guard.scenario is not None else f"{seeds}"
            yield f"| `{name}` | {guard.row} | {guard.prevents} | {by} | {count} |"


def _find_by_name(name: str) -> tuple[str, int | None]:
    return find(GUARDS[name])


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, choices=range(3, 8), help="nodes to begin with; by default the seed says")
    parser.add_argument(
        "--changing", action=argparse.BooleanOptionalAction, help="change the members, or not; by default the seed says"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated seconds a seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--budget", type=float, help="stop after so many seconds of real time")
    parser.add_argument("--without", choices=sorted(GUARDS), metavar="GUARD", help="take a guard out: see --guards")
    parser.add_argument("--guards", action="store_true", help="how each guard that is taken out is found, as a table")
    parser.add_argument("--lines", type=int, default=80, help="lines of trace to show of a failure")
    parser.add_argument("--whole-trace", action="store_true", help="keep all lines of the trace")
    options = parser.parse_args(arguments)
    if options.guards:
        missing = False
        for line in table([options.without] if options.without else list(GUARDS), options.jobs):
            print(line, flush=True)
            missing |= line.endswith("| not found |")
        return int(missing)
    began = time.monotonic()
    results: list[Result] = []
    settings = {
        "nodes": options.nodes, "changing": options.changing, "seconds": options.seconds, "without": options.without,
        "keep_trace": None if options.whole_trace else 400,
    }  # fmt: skip
    for result in run_seeds(range(options.start, options.start + options.seeds), options.jobs, **settings):
        results.append(result)
        if result.violation is not None:
            print(show(result, 1 << 60 if options.whole_trace else options.lines))
            break
        if options.budget is not None and time.monotonic() - began > options.budget:
            break
    print(summary(results, time.monotonic() - began))
    return int(any(result.violation is not None for result in results))


if __name__ == "__main__":
    sys.exit(main())

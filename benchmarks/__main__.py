"""`python -m benchmarks [names...]`: run benchmarks, print their tables, write them down."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

from benchmarks.machine import describe
from benchmarks.picture import FORMATS, draw
from benchmarks.picture import missing as no_picture
from benchmarks.report import markdown, plain
from benchmarks.results import Result, Row, medians
from benchmarks.settings import PEERS, Settings, present_peers
from benchmarks.suite import BENCHMARKS
from benchmarks.suite.benchmark import Benchmark


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [each.name for each in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What replidict costs, beside its peers.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of: {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--quick", action="store_true", help="a short smoke run, whose figures mean little")
    parser.add_argument("--runs", type=int, default=None, help="rounds to take the medians of (default 3; quick: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, of every round, as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report, as in docs/benchmarks.md")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the writes (.svg or .png; needs matplotlib)")
    parser.add_argument("--without", action="append", default=[], choices=PEERS, help="leave out a peer")
    parser.add_argument("--directory", type=Path, help="where the nodes keep their files (default: a temporary one)")
    found = parser.parse_args(argv)
    for name in found.names:
        if name not in names:
            parser.error(f"no benchmark is called {name!r}: try --list")
    if found.runs is not None and found.runs < 1:
        parser.error("--runs must be at least 1")
    for name in ("json", "markdown", "picture"):
        file: Path | None = getattr(found, name)
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            parser.error(f"--{name} {file}: must be a file in a directory that there is")
    if found.picture and found.picture.suffix not in FORMATS:
        parser.error(f"--picture {found.picture}: must end in {' or '.join(FORMATS)}")
    if found.picture and found.names and "writes" not in found.names:
        parser.error("--picture draws what writes has measured: name that as well")
    if found.directory and not found.directory.is_dir():
        parser.error(f"--directory {found.directory}: there is no such directory")
    return found


def run(benchmark: Benchmark, settings: Settings, runs: int) -> Result:
    """All rounds of one benchmark. What goes wrong in it is in the result: the others still run."""
    result = Result(benchmark.name, benchmark.title, benchmark.compare, benchmark.against)
    rows: list[Row] = []
    start = perf_counter()
    try:
        for _ in range(runs if benchmark.repeated else 1):
            for each in benchmark.measure(settings):
                if isinstance(each, Row):
                    rows.append(each)
                elif each.text not in result.notes:
                    result.notes.append(each.text)
    except Exception as error:  # noqa: BLE001 -- told in the report and by the exit status
        result.failed = f"{type(error).__name__}: {error}"
    result.rows, result.runs = medians(rows)
    if not benchmark.repeated and runs > 1:
        result.notes.append("one round")
    result.seconds = perf_counter() - start
    return result


def stop(number: int, _frame: object) -> NoReturn:
    """End as an exception does, so that every process and directory is taken care of."""
    raise SystemExit(128 + number)


def picture(options: argparse.Namespace, results: list[Result]) -> None:
    """Of the writes, if they were measured."""
    writes = next((result for result in results if result.name == "writes" and result.rows), None)
    if options.picture and writes is not None:
        draw(writes, options.picture)


def write(options: argparse.Namespace, results: list[Result], about: dict[str, Any]) -> None:
    """After each benchmark: a run that is cut short leaves what it has."""
    if options.json:
        whole = {**about, "benchmarks": {result.name: result.as_json() for result in results}}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if options.markdown:
        drawn = os.path.relpath(options.picture, options.markdown.parent) if options.picture else None
        options.markdown.write_text(markdown(results, about, drawn))


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.list:
        for each in BENCHMARKS:
            print(f"{each.name:14}{each.title}{'' if each.by_default else ' (only by name)'}")
        return 0
    for reason in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(reason, stop)
    peers, left_out = present_peers(options.without)
    if options.picture and (undrawable := no_picture()):
        print(undrawable)
        options.picture = None
    runs = options.runs or (1 if options.quick else 3)
    chosen = [each for each in BENCHMARKS if (each.name in options.names if options.names else each.by_default)]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="replidict-benchmarks-", dir=options.directory) as directory:
        settings = Settings(Path(directory), options.quick, peers)
        about = {
            **describe(Path(directory), peers),
            "command": shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)]),
            "quick": options.quick,
            "runs": runs,
            "left out": left_out,
        }
        print(f"{about['processor']}, {about['cpus']} CPUs, files on {about['file system']}; {about['versions']}")
        for line in left_out:
            print(line)
        if about["file system"] == "tmpfs":
            print("the files are in memory, where syncing costs nothing: choose another place by --directory")
        for benchmark in chosen:
            results.append(run(benchmark, settings, runs))
            print("\n" + plain(results[-1]), flush=True)
            write(options, results, about)
    picture(options, results)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

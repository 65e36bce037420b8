"""The demo and the examples, run as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parent.parent
DONE = {
    "chat": "300 lines, heard on three nodes in the same order: True",
    "cron": "machine [012] stops",
    "fenced_worker": "nothing is moved: the lock 'accounts' is not held with the token 1 .*",
    "services": "and one is there, for .* s more at least, if nobody renewed it now",
    "job_queue": r"40 jobs, 40 done, by consumer: .*",
    "schedule": r"(\d+) runs were due, \1 done, by node: .*",
    "settings": "in maintenance: False",
    "worker": r"30 jobs, 30 done, by worker: .*",
    "transfer": r"\d+ transfers were made, \d+ refused, and the sum is 100\.00",
    "unique_ids": "7500 numbers on 3 nodes, 7500 of them different",
}


@contextmanager
def example(name: str, temporary: Path, by_path: bool = False, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running example, whose output is in `stdout`, and which keeps its data in this directory.

    It is run as a module in the project's folder, or by its path in another one, where only replidict is installed.
    """
    with TemporaryDirectory() as elsewhere:
        settings = os.environ | {"TMPDIR": str(temporary)}
        if by_path:
            os.symlink(ROOT / "replidict", Path(elsewhere, "replidict"))
            libraries = [path for path in sys.path if path.endswith("-packages")]  # and not the project's own folder
            settings["PYTHONPATH"] = os.pathsep.join([elsewhere, *libraries])
        program = ["-S", str(ROOT / "examples" / f"{name}.py")] if by_path else ["-m", f"examples.{name}"]
        with subprocess.Popen(
            [sys.executable, "-W", "error", *program, *arguments],
            cwd=elsewhere if by_path else ROOT,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def running(temporary: Path) -> list[str]:
    """Command lines of the processes that work in this directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if str(temporary) in command:
            found.append(command)
    return found


def assert_nothing_runs(temporary: Path, within: float) -> None:
    deadline = time.monotonic() + within
    while left := running(temporary):
        assert time.monotonic() < deadline, f"still running after {within:g} s: {left}"
        time.sleep(0.05)


def test_demo(tmp_path: Path) -> None:
    """The dict survives the SIGKILL of its leader: every entry is on every node, and nothing is left behind."""
    began = time.monotonic()
    with example("demo", tmp_path) as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    lines = output.splitlines()
    last = re.fullmatch(r"All ([\d,]+) entries are on all 3 nodes\.", lines[-1])
    assert last, output
    total = int(last[1].replace(",", ""))
    assert total > 100_000
    held = f"entries {total}, missing 0, different 0, unexpected 0, order the same"
    for name in ("n1", "n2", "n3"):
        assert f"  {name}  d['hello'] is 'distributed'" in lines
        assert f"  {name}  {held}" in lines
    assert sum(line.endswith("is 'still works'") for line in lines) == 1
    assert any(re.search(r"^kill -9 \d+: n\d, the leader, is dead", line) for line in lines)
    for figure in ("load", "without a leader", "catch-up", "size on disk"):
        assert any(re.match(rf"  {figure} +[\d.,]+  ", line) for line in lines), figure
    assert "\r" not in output
    assert_nothing_runs(tmp_path, within=0)
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - began < 100  # 60 s on two cores of its own


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_demo_that_is_stopped_leaves_nothing_running(number: signal.Signals, tmp_path: Path) -> None:
    """A demo that is stopped in the middle ends its nodes and says so; one that is killed takes them with it."""
    with example("demo", tmp_path) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("Every character"):
            assert line, "the demo ended too early"
        assert len(running(tmp_path)) == 3
        process.send_signal(number)
        rest = process.stdout.read()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert_nothing_runs(tmp_path, within=15)  # a node ends after the write it is at
    else:
        assert process.returncode == 1
        assert rest.endswith(f"stopped: {number.name}\n")
        assert_nothing_runs(tmp_path, within=0)
        assert list(tmp_path.iterdir()) == []


def test_demo_whose_node_dies_fails(tmp_path: Path) -> None:
    """A node that dies without being part of the story makes the demo fail, and the others end as well."""
    with example("demo", tmp_path, by_path=True) as process:
        assert process.stdout is not None
        pids = []
        while not (line := process.stdout.readline()).startswith("Every character"):
            assert line, "the demo ended too early"
            pids += [int(pid) for pid in re.findall(r"process (\d+)", line)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        rest = process.stdout.read()
    assert process.returncode == 1
    assert "has ended" in rest
    assert_nothing_runs(tmp_path, within=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_path", [False, True], ids=["as a module", "by its path"])
@pytest.mark.parametrize("name", DONE)
def test_example(name: str, by_path: bool, tmp_path: Path) -> None:
    """The example runs without a warning, ends with what it promises, and leaves nothing behind."""
    with example(name, tmp_path, by_path) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert re.fullmatch(DONE[name], output.splitlines()[-1]), output
    assert list(tmp_path.iterdir()) == []


def test_web_hosts(tmp_path: Path) -> None:
    """The service of several workers on each of three hosts has one counter and one set of settings, and its job goes
    on when the worker that runs it is killed."""
    with example("web_hosts", tmp_path, True, "2") as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    last = re.fullmatch(r"60 requests, counted 60 times, by (\d+) processes of 3 hosts", output.splitlines()[-1])
    assert last and int(last[1]) >= 3, output
    assert_nothing_runs(tmp_path, within=0)
    assert list(tmp_path.iterdir()) == []


def test_every_example_is_tested() -> None:
    """No example is forgotten here."""
    helpers = {"__init__", "demo", "demo_node", "local"}
    elsewhere = {"copy_store", "web_hosts", "web_service"}  # in test_copy_store, and above
    assert {file.stem for file in (ROOT / "examples").glob("*.py")} - helpers - elsewhere == set(DONE)

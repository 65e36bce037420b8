"""`replidict serve` as processes of their own, and curl."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clusters import wait_until

ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name("replidict"))
"""The command as it is installed."""


class Serve:
    """One node: a command line that can be started again and again, in a directory, with its log in a file."""

    def __init__(self, root: Path, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._root = root
        self._command = [COMMAND, "serve", "--id", name, *arguments]
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """All it has said, over all starts."""
        return (self._root / f"{self.name}.log").read_text()

    def start(self) -> None:
        """Start it, and wait until it says that it serves."""
        with (self._root / f"{self.name}.log").open("ab") as log:
            starts = self.log.count("HTTP on ")
            self._process = subprocess.Popen(
                self._command, cwd=self._root, stdout=log, stderr=log, env=environment(self._environment)
            )
        wait_until(lambda: self.log.count("HTTP on ") > starts or not self.alive, f"{self.name} serves", 60)
        assert self.alive, self.log

    @property
    def alive(self) -> bool:
        """Whether there is a process that runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def end(self, number: signal.Signals) -> int:
        """Send it a signal; its exit status once it has ended."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        exit_status = self._process.wait(60)
        self._process = None
        return exit_status

    def run(self) -> tuple[int, str]:
        """Run it to its end, which comes at once; exit status and output."""
        done = subprocess.run(
            self._command,
            cwd=self._root,
            env=environment(self._environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def close(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)


def environment(more: dict[str, str]) -> dict[str, str]:
    """The environment without anything that would be a setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPLIDICT_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | more


def curl(*arguments: str) -> str:
    """What curl prints, given these arguments."""
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def code(*arguments: str) -> int:
    """The status of the answer that curl gets; 0 if there is none."""
    return int(re.findall(r"\d+$", curl("-o", os.devnull, "-w", "%{http_code}", *arguments))[0])


def status(url: str) -> dict[str, object]:
    """/status of the node there; empty if it does not answer."""
    try:
        return dict(json.loads(curl(f"{url}/status")))
    except ValueError:
        return {}


@contextmanager
def all_closed(nodes: list[Serve]) -> Iterator[None]:
    """At the end none of them runs."""
    try:
        yield
    finally:
        for node in nodes:
            node.close()

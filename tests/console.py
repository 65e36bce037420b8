"""The console blocks of a page, run in order in one shell, and what they print compared with what the page says.

`python -m tests.console docs/command.md` writes what was printed into the page.

In a block, lines that begin with "$ " are commands, and go on where they end in a backslash; what follows is their
output. Ports stand for free ones. What differs from run to run (ids, times, sizes, indices) is compared by its form.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clusters import free_addresses
from tests.serving import ROOT, environment

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PORT = re.compile(r"\b[89]00\d\b")
LOOKS = re.compile(r"replidict (status|members|get|keys|locks)\b|curl (?!.*-X)|grep ")
"""Commands that change nothing: they are run again until they print what is expected, as a user would look again."""
PATIENCE = 60.0  # seconds in which that must be
MARK = "--- done ---"

_VOLATILE = [
    (r" +", " "),
    (r"\b[0-9a-f]{32}\b", "ID"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([,.]\d+)?(\+00:00)?", "TIME"),
    (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} [\d:]+ GMT", "TIME"),
    (r"\b\d+(\.\d+)? (s|seconds|minutes)\b", "SECONDS"),
    (r"\b\d+(\.\d+)? ([KMG]iB|bytes)\b", "SIZE"),
    (r"^(set|get|get --local) +\d.*", r"\1 FIGURES"),
    (r"^ *\d+ +\d+ +(yes|unknown) ", r"N N \1 "),
    (r"(localhost:\d+) +\d+ +\d+ +", r"\1 N N "),
    (r"\b\d+\.\d+\b", "FLOAT"),
    (r'("(term|match_index|commit_index|applied_index|digest_index|log_entries|log_bytes)": ?)\d+', r"\1N"),
    (r"\b((term|log entry|the last of term|entries|up to|at least|to) )\d+", r"\1N"),
    (r"^(term|committed|log entries) +\d+", r"\1 N"),
    (r"\b\d+( entries)", r"N\1"),
    (r"(?<=voter )(leader )?\d+", "N"),
    (r"(?<=learner )\d+", "N"),
    (r" /\S+/(?=node|settings)", " DIRECTORY/"),
    (r"process \d+ on \S+", "PROCESS"),
]


@dataclass
class Step:
    """A command and what the page says that it prints; `start` and `end` are where that stands in the page."""

    command: str
    expected: str
    start: int
    end: int


def steps_of(page: str) -> list[Step]:
    """All commands of a page, in order."""
    found = []
    for block in BLOCK.finditer(page):
        for match in re.finditer(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block[1], re.MULTILINE):
            at = block.start(1)
            found.append(Step(match[1], match[2], at + match.start(2), at + match.end(2)))
    return found


class Shell:
    """bash, in a directory, with the installed command on its path."""

    def __init__(self, directory: Path, ports: dict[str, str]) -> None:
        self._to = ports
        self._back = {free: port for port, free in ports.items()}
        settings = environment({"LC_ALL": "C.UTF-8", "REPLIDICT_NODE": f"localhost:{ports.get('9001', '')}"})
        settings["PATH"] = f"{Path(sys.executable).parent}:{settings['PATH']}"
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=directory, env=settings, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.run('set -m; curl() { command curl --silent --show-error "$@"; }')  # as quiet as it is on a terminal

    def run(self, command: str) -> str:
        """What a command prints, with the ports of the page."""
        assert self._process.stdin is not None and self._process.stdout is not None
        command = PORT.sub(lambda port: self._to[port[0]], command)
        self._process.stdin.write(
            f"{{ {command}\n}} </dev/null 2>&1; s=$?; printf '\\n{MARK}\\n'; (exit $s)\n".encode()
        )
        said, deadline = b"", time.monotonic() + 120
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not said.endswith(f"\n{MARK}\n".encode()):
                assert selector.select(deadline - time.monotonic()), f"{command}: still going on, after {said.decode()}"
                piece = os.read(self._process.stdout.fileno(), 65536)
                assert piece, f"the shell ended: {said.decode()}"
                said += piece
        text = said.decode().removesuffix(f"\n{MARK}\n")
        text = re.sub(r"^bash: line \d+: +\d+ (Killed|Terminated).*\n", "", text, flags=re.MULTILINE)
        text = re.sub("|".join(self._back) or "$^", lambda port: self._back[port[0]], text)
        return text if not text or text.endswith("\n") else text + "\n"

    def close(self) -> None:
        """End it, and all that it has started."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self.run("kill -9 $(jobs -p) 2>/dev/null; wait")
        finally:
            self._process.stdin.close()
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def free_ports(page: str) -> dict[str, str]:
    """A free port for each that the page names; those are in the same order, as addresses are sorted by."""
    ports = sorted({port for step in steps_of(page) for port in PORT.findall(step.command)})
    return dict(zip(ports, sorted(each.rpartition(":")[2] for each in free_addresses(len(ports))), strict=True))


@contextmanager
def shell(directory: Path, ports: dict[str, str]) -> Iterator[Shell]:
    """A shell for the commands of a page, which is ended at the end."""
    opened = Shell(directory, ports)
    try:
        yield opened
    finally:
        opened.close()


def form(text: str) -> list[str]:
    """The lines of an output, without what differs from run to run."""
    for pattern, stands_for in _VOLATILE:
        text = re.sub(pattern, stands_for, text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines()]


def perform(bash: Shell, step: Step) -> str:
    """What the command of a step prints: at once, or, if it only looks, as soon as that is what is expected."""
    deadline = time.monotonic() + PATIENCE
    while True:
        said = bash.run(step.command)
        if form(said) == form(step.expected) or not LOOKS.match(step.command) or time.monotonic() > deadline:
            return said
        time.sleep(0.2)


def check(path: Path, directory: Path) -> None:
    """Run a page; each command must print what it says there."""
    page = path.read_text()
    with shell(directory, free_ports(page)) as bash:
        for step in steps_of(page):
            said = perform(bash, step)
            line = page.count("\n", 0, step.start)
            assert form(said) == form(step.expected), f"{path.name}:{line}: $ {step.command}\n{said}"


def rewrite(path: Path) -> None:
    """Run a page on the ports that it names, and write into it what was printed, where that is of another form."""
    page = path.read_text()
    pieces, at = [], 0
    ports = {port: port for step in steps_of(page) for port in PORT.findall(step.command)}
    with tempfile.TemporaryDirectory() as directory, shell(Path(directory), ports) as bash:
        for step in steps_of(page):
            print("$", step.command, file=sys.stderr)
            if LOOKS.match(step.command):
                time.sleep(3)  # nobody knows yet what is worth waiting for
            said = bash.run(step.command)
            pieces += [page[at : step.start], step.expected if form(said) == form(step.expected) else said]
            at = step.end
    path.write_text("".join(pieces) + page[at:])


if __name__ == "__main__":
    rewrite(ROOT / sys.argv[1])

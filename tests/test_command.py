"""The command `replidict` itself: its help, its version, its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import click
import pytest
from click.testing import CliRunner

from replidict.command.exit_status import told
from replidict.command.main import main
from replidict.errors import (
    NotCommitted,
    OutcomeUnknown,
    ReadTimeout,
    RemovedError,
    ReplidictError,
    SecurityError,
    StorageError,
)
from tests.serving import COMMAND, environment


@pytest.mark.parametrize("name", [None, *main.commands])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_a_screen(name: str | None, option: str) -> None:
    """The help of each command is no larger than 24 lines of 80 characters; the list of them has a line for each."""
    done = CliRunner().invoke(main, [*([name] if name else []), option], terminal_width=80)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert len(lines) <= (24 if name else 9 + len(main.commands)) and max(map(len, lines)) <= 80, done.output


@pytest.mark.parametrize("command", [[COMMAND], [sys.executable, "-m", "replidict"]], ids=["installed", "module"])
def test_it_is_installed(command: list[str]) -> None:
    """It is there as `replidict` and as `python -m replidict`, and says which release it is."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, env=environment({}))
    assert done.stdout == f"replidict {version('replidict')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """It tells shells how to complete it, and completes the names of its commands."""
    settings = environment({"_REPLIDICT_COMPLETE": f"{shell}_source"})
    done = subprocess.run([COMMAND], capture_output=True, text=True, check=False, env=settings)
    assert "_REPLIDICT_COMPLETE" in done.stdout
    words = {"COMP_WORDS": "replidict se", "COMP_CWORD": "se" if shell == "fish" else "1"}
    settings = environment({"_REPLIDICT_COMPLETE": f"{shell}_complete"} | words)
    done = subprocess.run([COMMAND], capture_output=True, text=True, check=False, env=settings)
    assert "serve" in done.stdout


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ReplidictError, 1),
        (FileExistsError, 1),
        (ValueError, 2),
        (NotCommitted, 3),
        (RemovedError, 8),
        (OutcomeUnknown, 4),
        (StorageError, 5),
        (ReadTimeout, 6),
        (SecurityError, 7),
    ],
)
def test_each_failure_has_its_exit_status(error: type[Exception], status: int) -> None:
    """What scripts rely on: which error ends the command with which exit status."""
    with pytest.raises(click.ClickException, match="the message") as caught, told():
        raise error("the message")
    assert caught.value.exit_code == status


def test_a_wrong_command_line_is_a_2() -> None:
    """What makes no sense is said so, with exit status 2, and no traceback."""
    for arguments in (["nonsense"], ["serve"], ["serve", "--nonsense"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2 and "Error: " in done.output and "Traceback" not in done.output


def test_serve_without_the_extra(tmp_path: os.PathLike[str]) -> None:
    """Where only replidict itself is installed, `serve` says how to install what it needs."""
    program = "import sys; sys.modules['uvicorn'] = None; from replidict.command.main import main; main()"
    command = "serve --id n --addr localhost:7001 --http :8001 --bootstrap"
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        capture_output=True, text=True, check=False, env=environment({}), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "Error: serve needs uvicorn, which comes with: pip install 'replidict[serve]'\n"

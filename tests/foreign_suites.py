"""Test suites of those who made the interfaces of `replidict.contrib`: from the source packages of the releases that
are installed here, for their wheels have none.

`python -m tests.foreign_suites` fetches them (`make foreign-suites`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.serving import ROOT

FOLDER = ROOT / ".venv" / "foreign-suites"
PACKAGES = ["django", "apscheduler"]


def _place(package: str) -> Path:
    return FOLDER / f"{package}-{version(package)}"


def fetch(package: str) -> None:
    """Fetch the tests of a package, unless they are here."""
    if _place(package).exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        wanted = f"{package}=={version(package)}"
        arguments = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", scratch, wanted]
        subprocess.run([sys.executable, "-m", "pip", "download", *arguments], check=True)
        (source,) = Path(scratch).iterdir()
        fresh = Path(scratch) / "tests"
        with tarfile.open(source) as archive:
            archive.extractall(fresh, filter="data")
        (root,) = fresh.iterdir()
        _place(package).mkdir(parents=True)
        (root / "tests").rename(_place(package) / "tests")


def folder_with_tests_of(package: str) -> Path:
    """What has the tests of a package in its folder `tests`. Skips the test that asks, where they were not fetched."""
    if not _place(package).exists():
        pytest.skip(f"the source package of {package} is not here: make foreign-suites")
    return _place(package)


def run(script: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Begin to run a suite in a process of its own: a module of these tests, which prints what came of it."""
    command = [sys.executable, "-m", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What came of it: the number of tests run, and the names of those that failed or were skipped."""
    out, err = process.communicate(timeout=300)
    assert out, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found | {"text": out + err}


if __name__ == "__main__":
    for each in PACKAGES:
        fetch(each)

"""Release 0.1.0, out of the project's own history, to be run beside the present one."""

from __future__ import annotations

import atexit
import io
import subprocess
import tarfile
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

COMMIT = "af5eedd3621db58706333cb5df7ae56c7ad8b3b5"
ROOT = Path(__file__).parent.parent


@lru_cache(1)
def sources() -> Path:
    """Where its sources are, tests included; a skip that says so where the history does not reach back so far."""
    try:
        archived = subprocess.run(
            ["git", "archive", COMMIT, "replidict", "tests"], cwd=ROOT, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
        pytest.skip(f"release 0.1.0 (commit {COMMIT[:7]}) is not in this copy's history: {why}")
    folder = TemporaryDirectory(prefix="replidict-0.1.0-")
    atexit.register(folder.cleanup)
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as tar:
        tar.extractall(folder.name, filter="data")
    return Path(folder.name)

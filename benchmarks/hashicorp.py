"""hashicorp/raft as a system under test: the Go program in `hashicorp_raft/`, built from what Debian packages hold."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.processes import ROOT, Failed

GOPATH = Path("/usr/share/gocode")
PACKAGES = [GOPATH / "src/github.com/hashicorp" / name for name in ("raft", "raft-boltdb")]


def missing() -> str | None:
    """Why it can't take part; None if it can."""
    if shutil.which("go") is None:
        return "hashicorp/raft is left out: no `go` on the PATH (Debian: apt-get install golang-go)"
    if not all(path.is_dir() for path in PACKAGES):
        return (
            "hashicorp/raft is left out: its sources are not installed "
            "(Debian: apt-get install golang-github-hashicorp-raft-dev golang-github-hashicorp-raft-boltdb-dev)"
        )
    return None


def version() -> str:
    """Debian's, and Go's."""
    query = ["dpkg-query", "--show", "--showformat=${Version}", "golang-github-hashicorp-raft-dev"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    go = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return f"{found or 'unknown'} ({go})"


def build(program: Path) -> None:
    """Build the program, without modules and without a network."""
    done = subprocess.run(
        ["go", "build", "-o", str(program), "./benchmarks/hashicorp_raft"],
        cwd=ROOT,
        env={**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"hashicorp/raft can't be built: {done.stderr}")

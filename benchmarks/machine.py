"""What a run ran on, so that its figures can be read: the machine, and the versions of everything in it."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import etcd, hashicorp


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1)
    except (OSError, ValueError):
        return None


def file_system(path: Path) -> str:
    """The type of file system that holds a path, where Linux tells."""
    best, kind = "", "unknown"
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, found, *_ = line.split()
            if len(mount) >= len(best) and path.resolve().is_relative_to(mount):
                best, kind = mount, found
    except OSError:
        pass
    return kind


def package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe(directory: Path, peers: tuple[str, ...]) -> dict[str, object]:
    """Everything a reader of the figures needs to know about where they come from."""
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "replidict": package("replidict"),
        "pysyncobj": package("pysyncobj"),
        "msgspec": package("msgspec"),
    }
    if "etcd" in peers:
        versions |= {"etcd": etcd.version(), "grpcio": package("grpcio")}
    if "raft" in peers:
        versions["hashicorp/raft"] = hashicorp.version()
    if "diskcache" in peers:
        versions["diskcache"] = package("diskcache")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory GiB": memory_gib(),
        "file system": file_system(directory),
        "versions": {name: each for name, each in versions.items() if each is not None},
    }

"""What all benchmarks of one run share: where, how long, and beside whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import disk_cache, etcd, hashicorp
from benchmarks.results import Note, Row
from benchmarks.systems import Cluster, cluster

T = TypeVar("T")

PEERS = ("etcd", "raft", "stock", "diskcache")

Measured = Iterator[Row | Note]


@dataclass(frozen=True)
class Settings:
    """How to run."""

    directory: Path
    quick: bool
    peers: tuple[str, ...]

    def pick(self, full: T, quick: T) -> T:
        """One of two, by how long this may take."""
        return quick if self.quick else full

    def with_peers(self, *wanted: str, quick: tuple[str, ...] = ()) -> list[str]:
        """replidict and those of the wanted peers that take part, in the order in which they run.

        A quick run leaves out all but those of `quick`: starting the others takes most of its time.
        """
        return ["replidict", *(peer for peer in wanted if peer in self.peers and (not self.quick or peer in quick))]

    def cluster(self, system: str = "replidict", count: int = 3, **config: Any) -> AbstractContextManager[Cluster]:
        """A running cluster; see `systems.cluster`."""
        return cluster(self.directory, system, count, **config)


def present_peers(without: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The peers that can take part, and for each other one why not."""
    reasons = {
        "etcd": etcd.missing(),
        "raft": hashicorp.missing(),
        "diskcache": disk_cache.missing(),
        "stock": None,
    }
    reasons |= {name: f"{name} is left out, as asked" for name in without}
    return tuple(name for name in PEERS if reasons[name] is None), [each for each in reasons.values() if each]


def latency(found: dict[str, Any]) -> dict[str, float]:
    """The figures of one timed loop; where no call succeeded, there is no latency to speak of."""
    if not found["count"]:
        return {"per s": 0.0}
    return {name: found[name] for name in ("p50 ms", "p99 ms", "max ms", "per s")}


def in_microseconds(figures: dict[str, float]) -> dict[str, float]:
    """The same, for what takes microseconds."""
    return {
        name.replace(" ms", " us"): value * 1e3 if name.endswith(" ms") else value for name, value in figures.items()
    }


def complaints(system: str, found: dict[str, Any]) -> Iterator[Note]:
    """A note, if some calls failed: their time is not in the figures."""
    if found["errors"]:
        yield Note(f"{system}: {found['errors']} calls failed, the first with {found['error']}")

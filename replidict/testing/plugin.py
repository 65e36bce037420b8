"""The pytest fixtures, registered by the entry point `pytest11`. Nothing is imported before one is used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from replidict.api.replicated_dict import ReplicatedDict
    from replidict.testing.cluster import Cluster


@pytest.fixture
def replidict_dict(tmp_path: Path) -> Iterator[ReplicatedDict[Any, Any]]:
    """An empty `ReplicatedDict` on one node, without a network, closed after the test."""
    from replidict.api.replicated_dict import ReplicatedDict
    from replidict.testing.cluster import QUICK

    with ReplicatedDict[Any, Any](tmp_path / "replidict_dict", options=QUICK) as d:
        yield d


@pytest.fixture
def replidict_cluster() -> Iterator[Cluster]:
    """A `replidict.testing.Cluster` of three nodes that have a leader, closed after the test."""
    from replidict.testing.cluster import Cluster

    with Cluster(3) as cluster:
        yield cluster

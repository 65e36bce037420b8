"""The release of this package, and what nodes tell each other about theirs."""

from __future__ import annotations

from typing import NamedTuple

__version__ = "0.2.0"

LEVEL = 2
"""The highest feature level that this release knows. Level 1 is release 0.1.0, level 2 is 0.2.0."""


class Release(NamedTuple):
    """A release: the highest feature level that it knows, and its version."""

    level: int
    version: str


THIS = Release(LEVEL, __version__)
FIRST = Release(1, "0.1.0")
"""The release of a node that does not say which it has."""

"""Guards of the feature level."""

from __future__ import annotations

from typing import Any

from replidict.node import feature_level
from replidict.raft.progress import Peer
from replidict.release import THIS, Release
from replidict.storage.file_format import FileFormat
from tests.simulator import level_scenarios
from tests.simulator.guards.guard import Replacements, guard


@guard("feature levels", 25, changing=True)
def wait_for_learners() -> Replacements:
    """The level is raised before a learner has said that it knows it."""

    def raise_level(self: feature_level.FeatureLevel) -> None:
        peers, voters = self._engine.peers, self._engine.members.voters
        self._engine.peers = {address: peer for address, peer in peers.items() if address in voters}
        try:
            original(self)
        finally:
            self._engine.peers = peers

    original = feature_level.FeatureLevel._raise
    yield feature_level.FeatureLevel, "_raise", raise_level


@guard("feature levels", scenario=level_scenarios.the_level_rises_when_everybody_knows_it)
def a_release_that_is_not_known_is_the_first() -> Replacements:
    """A member that does not say what it runs counts as if it knew the level."""

    def known(peer: Peer) -> Release:
        return THIS

    yield feature_level, "_known", known


@guard("feature levels", 25)
def refuse_before_it_is_proposed() -> Replacements:
    """A command above the cluster's level is proposed too early."""
    yield feature_level.FeatureLevel, "current", THIS.level


@guard("feature levels", scenario=level_scenarios.an_older_release_is_put_back_too_late)
def refuse_older_releases() -> Replacements:
    """A node with an older release is let in again by those whose log it can't read."""

    def too_old(self: feature_level.FeatureLevel, address: str, release: Release) -> str | None:
        return None

    yield feature_level.FeatureLevel, "too_old", too_old


@guard("feature levels", scenario=level_scenarios.the_next_leader_has_an_older_follower)
def part_from_older_releases() -> Replacements:
    """A connection to a node with an older release stays when the log goes beyond that."""

    def stay(self: feature_level.FeatureLevel) -> None:
        pass

    yield feature_level.FeatureLevel, "_part_from_older", stay


@guard("feature levels", 5)
def mark_the_file() -> Replacements:
    """The entry that raises the level is written to a file that an older release opens and misreads."""

    def follow(self: FileFormat, entries: Any) -> None:
        pass

    yield FileFormat, "follow", follow

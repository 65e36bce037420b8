"""The cluster's feature level: which commands may be put into the log, because every member can read them.

Rules kept here:

1. The leader raises the level by a command, once every other member, learners included, has answered it in its term and
   is connected to it with a release that knows the level. A member whose release is unknown counts as level 1.
2. The level of a node is that of the entries it has applied, so it only rises. A node proposes no command above its
   level, so in every log the entry that raised the level comes before the command.
3. A node whose file is marked for a level (see `storage.file_format`) has no connections with nodes of older releases:
   it refuses them, and closes those it has. So no such node is ever sent an entry that it would misread, even if its
   release was downgraded after it had answered for rule 1.
4. A write above the level waits only if the level is about to rise; otherwise the error names the members that hold
   the level back.
"""

from __future__ import annotations

from replidict.logging_thread import Logger
from replidict.machine import commands as cmd
from replidict.raft.engine import Engine
from replidict.raft.progress import Peer
from replidict.release import FIRST, THIS, Release

logger = Logger(__name__)

PATIENCE = 4
"""Election timeouts, from when a member was last connected, for which a write waits for those not heard of."""


class FeatureLevel:
    """The feature level as one node knows it. `meet` and `step` are for the node's thread."""

    def __init__(self, engine: Engine) -> None:
        self.release = THIS
        self._engine = engine
        self._marked = 1
        self._proposed = (0, 0)  # (term, level)
        self._met_at = engine.clock()

    @property
    def current(self) -> int:
        """The cluster's feature level, as far as this node has applied the log."""
        return self._engine.machine.level

    def meet(self, address: str, release: Release) -> str | None:
        """An authenticated node is about to be connected: why it must not be (rule 3); None if it may."""
        engine = self._engine
        if (peer := engine.peers.get(address)) is not None:
            peer.release = release
        self._met_at = engine.clock()
        return self.too_old(address, release)

    def too_old(self, address: str, release: Release) -> str | None:
        """Why a node of this release may not be a member; None if it may."""
        required = max(self.current, self._engine.store.format.level)
        if release.level >= required:
            return None
        return (
            f"{address} runs replidict {release.version}, which knows feature level {release.level}, and the cluster "
            f"has gone on to level {required}: upgrade replidict at {address}"
        )

    @property
    def part_due(self) -> bool:
        """Whether this node's file was marked since the last step: nothing must be sent before that is seen to."""
        return self._engine.store.format.level != self._marked

    def step(self) -> None:
        """Do what is due."""
        engine, marked = self._engine, self._engine.store.format.level
        if marked != self._marked:
            self._marked = marked
            self._part_from_older()
        if engine.is_leader and engine.machine.level < self.release.level:
            self._raise()

    def _part_from_older(self) -> None:
        engine = self._engine
        for peer in list(engine.peers.values()):
            if peer.connected and _known(peer).level < self._marked:
                engine.transport.dropNode(peer.node)
                engine.transport.addNode(peer.node)  # it may come back when it is upgraded

    def _raise(self) -> None:
        """Rule 1."""
        engine = self._engine
        peers = engine.peers.values()
        if engine.transfer.active or not all(
            peer.connected and engine.replication.rounds.answered_by(peer) for peer in peers
        ):
            return
        level = min([self.release.level, *(_known(peer).level for peer in peers)])
        if level > engine.machine.level and self._proposed != (engine.term, level):
            self._proposed = (engine.term, level)
            logger.info("%s: every member knows feature level %d: the cluster goes on to it", engine.address, level)
            engine.propose(cmd.encode(cmd.RaiseLevel(level)))

    # -- writes -------------------------------------------------------------------------------------------------------

    def refusal(self, needed: int) -> str | None:
        """Why a write that needs this level can't be proposed; None while it may be possible in a moment (rule 4)."""
        old = self._older_than(needed)
        patience = PATIENCE * self._engine.options.election_timeout
        if not old and self._engine.clock() < self._met_at + patience:
            return None
        return self.why_not(needed)

    def why_not(self, needed: int) -> str:
        """The error text for a write that needs a higher level than the cluster has. For any thread."""
        old = self._older_than(needed)
        absent = [peer.address for peer in self._by_address() if not peer.connected]
        if old:
            who = " and ".join(f"{peer.address} runs replidict {_known(peer).version}" for peer in old)
            what = f"{who}: upgrade replidict there"
        elif absent:
            what = f"{', '.join(absent)} can't be reached, and nobody knows what it runs: start it, or remove it"
        else:
            what = "its leader has not raised it yet: try again"
        return (
            f"this write needs feature level {needed}, and the cluster has level {self.current}, because {what}. It is "
            "not applied and never will be. The level rises by itself once every member knows the higher one"
        )

    def _older_than(self, needed: int) -> list[Peer]:
        return [peer for peer in self._by_address() if peer.release is not None and peer.release.level < needed]

    def _by_address(self) -> list[Peer]:
        return sorted(self._engine.peers.values(), key=lambda peer: peer.address)


def _known(peer: Peer) -> Release:
    return peer.release or FIRST

"""The parts of Raft without an engine: a node with a log as figure 7 draws it, and what it says to the others.

A log is written as the terms of its entries: "1124" has four, the last of term 4. The node is `a`; the first entries of
its log are on its disk, which is a real store in memory.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pysyncobj.node import Node

from replidict.background import BackgroundThread
from replidict.log_throttle import LogThrottle
from replidict.machine import commands as cmd
from replidict.options import Options
from replidict.protocol.log_entry import Entry
from replidict.protocol.peer_messages import Message
from replidict.raft.append_entries import Follower
from replidict.raft.bounded_staleness import Freshness
from replidict.raft.divergence import Divergence
from replidict.raft.elections import Elections
from replidict.raft.install_snapshot import InstallSnapshot
from replidict.raft.leader_death import LeaderDeath
from replidict.raft.leadership_transfer import LeadershipTransfer
from replidict.raft.outbox import Outbox
from replidict.raft.progress import Peer
from replidict.raft.read_index import ReadIndex
from replidict.raft.reconfiguration import Reconfiguration
from replidict.raft.replicated_log import ReplicatedLog
from replidict.raft.replication import Replication
from replidict.raft.role import Role
from replidict.raft.state import RaftState
from replidict.storage.directory import founded_by, write_founding_facts
from replidict.storage.store import Store
from replidict.testing.simulator.disk import lay_out

OPTIONS = Options(lease_reads=True)
TIMEOUT = OPTIONS.election_timeout

Received = TypeVar("Received", bound=Message)


def address(name: str) -> str:
    return f"{name}:1"


def entries(log: str, after: int = 0) -> list[Entry]:
    """The entries of a log, behind the first ones."""
    return [Entry(index, int(term), cmd.NO_OP) for index, term in enumerate(log, 1)][after:]


class Recorder:
    """A network that takes everything, and keeps it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.full = False
        self.probed: list[str] = []

    def send(self, node: Node, message: Message) -> bool:
        if not self.full:
            self.sent.append((node.id.removesuffix(":1"), message))
        return not self.full

    def addNode(self, node: Node) -> None:
        pass

    def dropNode(self, node: Node) -> None:
        pass

    def probe(self, node: Node) -> None:
        self.probed.append(node.id.removesuffix(":1"))

    def tick(self, now: float) -> None:
        pass

    def next_deadline(self) -> float:
        return float("inf")

    def destroy(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class Parts:
    """The parts of node `a`, each as the engine would make it. Its clock stands still until `now` is set."""

    def __init__(self, store: Store) -> None:
        self.now = 0.0
        self.network = Recorder()
        self.restarts = 0
        self.state = state = RaftState(store, OPTIONS, lambda: self.now, random.Random(1))
        self.outbox = outbox = Outbox(state, self.network)
        self.log = log = ReplicatedLog(state, self.network)
        self.freshness = Freshness(state)
        self.elections = Elections(state, outbox, log, self._on_role_change)
        self.leader_death = LeaderDeath(state, self.elections, self.network)
        background, nowhere = BackgroundThread("never started"), Path("no directory")
        self.snapshots = InstallSnapshot(
            state, outbox, self.elections, LogThrottle("a"), self._restart, background, nowhere
        )
        self.divergence = Divergence(state, LogThrottle("a"), nowhere, lambda: b"digest")
        self.replication = Replication(state, outbox, self.elections, self.snapshots, self.divergence)
        self.follower = Follower(state, outbox, log, self.elections, self.freshness, self.divergence)
        self.read_index = ReadIndex(state, outbox, self.elections, self.replication, self.freshness)
        self.transfer = LeadershipTransfer(state, outbox, log, self.read_index)
        self.reconfiguration = Reconfiguration(state, outbox, log, self.replication, self.transfer, self.divergence)
        log.follow_configuration()
        for peer in state.peers.values():
            peer.connected, peer.connections = True, 1
        self.now = 2 * TIMEOUT  # long enough after its start: it has promised nobody its silence

    def _on_role_change(self, before: Role, role: Role) -> None:
        if role is Role.LEADER:
            self.replication.start_leading()
        elif before is Role.LEADER:
            self.replication.stop_leading()

    def _restart(self) -> None:
        self.restarts += 1

    def peer(self, name: str) -> Peer:
        return self.state.peers[address(name)]

    def hear(self, handler: Callable[[Peer, Received], None], name: str, message: Received) -> list[Message]:
        """Have a message handled, and what it waits for committed; what is said to its sender then."""
        self.network.sent.clear()
        handler(self.peer(name), message)
        self.outbox.persist()
        return self.said(name)

    def said(self, name: str) -> list[Message]:
        """What was said to a peer."""
        return [message for receiver, message in self.network.sent if receiver == name]

    def lead(self) -> None:
        """Be elected, in the next term; the entry of its own that the leader begins with is not on disk yet."""
        self.elections._stand(transfer=False)
        if self.state.role is not Role.LEADER:
            self.elections._lead()
        self.network.sent.clear()

    def acknowledge(self, **match: int) -> None:
        """Have peers said to hold the log up to an index."""
        for name, index in match.items():
            self.peer(name).acknowledged(index)

    @property
    def terms(self) -> str:
        """The log, as the terms of its entries."""
        return "".join(str(entry.term) for entry in self.state.log.entries_from(1, 1 << 30))


@contextmanager
def a_node(
    log: str = "", *, term: int = 0, voted_for: str | None = None, committed: int = 0, voters: str = "abc"
) -> Iterator[Parts]:
    """Node `a` of a cluster, as it starts with this on its disk; its term is at least the last entry's."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    lay_out(connection)
    write_founding_facts(connection, address("a"), founded_by(map(address, voters)))
    store = Store(connection, "file:///a", log_retain=1000)
    if log:
        store.log.append(entries(log))
    store.set_vote(max([term, *map(int, log)]), None if voted_for is None else address(voted_for))
    store.commit(committed)
    parts = Parts(store)
    parts.state.commit_index = committed
    yield parts
    store.close()

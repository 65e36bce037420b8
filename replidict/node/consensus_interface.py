"""What the parts of a node need of consensus, from the engine or from the host that a process is attached to."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from pysyncobj.poller import Poller


class Forwarding(Protocol):
    """Sends commands to the leader; see `raft.forwarding`."""

    def route(self) -> object:
        """How commands go now, None if they can't; another one means that those under way may be lost."""

    def send(self, command: bytes) -> bool:
        """Send the leader a command. Returns False if it was surely not sent to a leader."""


class ReadIndex(Protocol):
    """Finds the index that a linearizable read waits for; see `raft.read_index`."""

    @property
    def lease_until(self) -> float:
        """Until then, on this clock, this copy may be read without a question."""

    @property
    def fresh_as_of(self) -> float:
        """This copy has all that was acknowledged up to then, on this clock."""

    def ask(self, answer: Callable[[int | None], None]) -> None:
        """Have `answer` called with the index to wait for; None: it can't be found at present."""


class Consensus(Protocol):
    """The source of committed commands, as the copy that applies them sees it."""

    @property
    def address(self) -> str:
        """The address of the member whose log this is."""

    @property
    def clock(self) -> Callable[[], float]:
        """This machine's clock."""

    @property
    def rng(self) -> random.Random:
        """The source of random numbers that must be unique."""

    @property
    def is_leader(self) -> bool:
        """Whether this is the leader, as far as it knows."""

    @property
    def leader(self) -> str | None:
        """Address of the leader, if it is known."""

    @property
    def commit_index(self) -> int:
        """The last entry known to be committed."""

    @property
    def last_applied(self) -> int:
        """The last entry that this copy includes."""

    @property
    def forwarding(self) -> Forwarding:
        """The way of commands to the leader."""

    @property
    def read_index(self) -> ReadIndex:
        """The read index that linearizable reads wait for."""

    @property
    def poller(self) -> Poller:
        """On which sockets are subscribed."""

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for messages and handle those that came."""


class Level(Protocol):
    """Which commands may be proposed; see `node.feature_level`."""

    @property
    def current(self) -> int:
        """The cluster's feature level, as far as this copy has applied the log."""

    def refusal(self, needed: int) -> str | None:
        """Why a write that needs this level can't be proposed; None while it may be possible in a moment."""

    def why_not(self, needed: int) -> str:
        """The error text for a write that needs a higher level than the cluster has."""


class ClusterClock(Protocol):
    """The cluster's clock as one node knows it; see `node.expiry`."""

    def now(self) -> int:
        """Its time, in milliseconds."""

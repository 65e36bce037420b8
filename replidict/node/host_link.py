"""The connection of an attached process to its host; for the parts of the node, it stands in for the engine.

Rules kept here:

1. A command that was sent may be lost with the connection, or with the node's own route to the leader. Each of these
   events makes a new route, which has the command sent again (see `proposals`).
2. A request for a read index that was sent on a lost connection is answered with "unknown", and is made again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf

from pysyncobj.poller import Poller

from replidict.machine.state_machine import StateMachine
from replidict.monotonic_clock import clock
from replidict.protocol import attach_messages as msg
from replidict.transport.unix import UnixConnection


class HostLink:
    """The connection of one process. All methods are for the thread of the attached node."""

    lease_until = -inf
    is_leader = False

    def __init__(self, machine: StateMachine, poller: Poller) -> None:
        self.clock: Callable[[], float] = clock
        self.rng = random.Random()
        self.poller = poller
        self.address = "an attached process"
        self.cluster_id = self.node_id = ""
        self.connection: UnixConnection | None = None
        self.accepted = False
        """Whether the node has taken this process in, by this connection."""
        self.standing: msg.Standing | None = None
        """What the node said last; perhaps by another connection than this one."""
        self._route: int | None = None
        """What it said by this connection of its way to the leader."""
        self._machine = machine
        self._connections = 0
        self._number = 0
        self._questions: dict[int, Callable[[int | None], None]] = {}
        self._requests: dict[int, Callable[[msg.Said | None], None]] = {}
        self.forwarding = self.read_index = self

    # -- what the parts of a node ask ---------------------------------------------------------------------------------

    @property
    def leader(self) -> str | None:
        """Address of the leader, if it is known."""
        return None if self.standing is None or not self.accepted else self.standing.status.leader

    @property
    def last_applied(self) -> int:
        """The last entry that this copy includes."""
        return self._machine.applied_index

    @property
    def commit_index(self) -> int:
        """The last entry that this copy knows to be committed."""
        return self._machine.applied_index

    @property
    def fresh_as_of(self) -> float:
        """This copy has all that was acknowledged up to then: the node said so of a state that this copy includes."""
        standing = self.standing
        if standing is None or self._machine.applied_index < standing.status.applied_index:
            return -inf
        return standing.fresh_as_of

    def poll(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for messages and handle those that came."""
        self.poller.poll(timeout)

    def route(self) -> object:
        """How commands go now (rule 1)."""
        return None if self._route is None else (self._connections, self._route)

    def send(self, command: bytes) -> bool:
        """Have a command passed on to the leader."""
        return self._say(msg.Forward(command))

    def ask(self, answer: Callable[[int | None], None]) -> None:
        """Have `answer` called with the index that a linearizable read waits for."""
        self._number += 1
        if self._say(msg.AskIndex(self._number)):
            self._questions[self._number] = answer
        else:
            answer(None)

    # -- the connection -----------------------------------------------------------------------------------------------

    def request(self, make: Callable[[int], msg.Request], answer: Callable[[msg.Said | None], None]) -> bool:
        """Have something done by the process of the node; None: the connection was lost. False: there is none."""
        self._number += 1
        if not self._say(make(self._number)):
            return False
        self._requests[self._number] = answer
        return True

    def _say(self, message: msg.FromAttached) -> bool:
        if self.connection is None or not self.accepted or self.connection.dead:
            return False
        self.connection.send(msg.encode(message))
        return True

    def connected(self, connection: UnixConnection, hello: msg.Attach) -> None:
        """Introduce this process on a new connection."""
        self.connection, self.accepted = connection, False
        self._connections += 1
        connection.send(msg.encode(hello))

    def lost(self) -> None:
        """The connection is gone."""
        if self.connection is not None:
            self.connection.close()
        self.connection, self.accepted, self._route = None, False, None
        questions, self._questions = self._questions, {}
        for answer in questions.values():
            answer(None)
        requests, self._requests = self._requests, {}
        for hear in requests.values():
            hear(None)

    def hear_standing(self, message: msg.Standing) -> None:
        """The node says how it stands."""
        self.standing, self._route = message, message.route

    def hear_index(self, message: msg.IndexIs) -> None:
        """A question is answered."""
        answer = self._questions.pop(message.number, None)
        if answer is not None:
            answer(message.index)

    def hear_said(self, message: msg.Said) -> None:
        """A request is answered."""
        answer = self._requests.pop(message.number, None)
        if answer is not None:
            answer(message)


class AttachedLevel:
    """The cluster's feature level, as the host's node reports it."""

    def __init__(self, machine: StateMachine, link: HostLink) -> None:
        self._machine, self._link = machine, link

    @property
    def current(self) -> int:
        """The level, as far as this copy has applied the log."""
        return self._machine.level

    def refusal(self, needed: int) -> str | None:
        """Why a write that needs this level can't be proposed; None while it may be possible in a moment."""
        standing = self._link.standing
        return standing.too_high if standing is not None and standing.final else None

    def why_not(self, needed: int) -> str:
        """The error text for a write that needs a higher level than the cluster has."""
        standing = self._link.standing
        return standing.too_high if standing is not None else ""


class AttachedClock:
    """The cluster's clock, as the host's node reports it."""

    def __init__(self, machine: StateMachine, link: HostLink) -> None:
        self._machine, self._link = machine, link

    def now(self) -> int:
        """What it shows, in milliseconds. Both processes have the same clock of this machine."""
        standing, shown = self._link.standing, self._machine.coordination.clock.now
        if standing is None:
            return shown
        return max(shown, standing.clock + int((self._link.clock() - standing.at) * 1000))

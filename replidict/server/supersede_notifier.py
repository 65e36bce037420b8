"""On the founder of a recovered cluster, looks for members of the old cluster that come back, and tells them that they
are superseded (see `raft.superseded`). Otherwise a majority of them would go on with the old cluster.

Rules kept here:

1. Each address of a member of an old cluster is called again and again, unless it belongs to a member of the present
   cluster. Finding a node that starts there, before it has a leader, takes less than an election timeout.
2. It connects as a client, so it is admitted like any program. A node of neither cluster, or one that refuses the
   connection, is not called again.
3. A node that was found is told repeatedly, since it relies on that. The log reports changes only, in few lines a
   minute, whatever the node answers.
4. Everything has a deadline, so `join` takes no longer than one call.
"""

from __future__ import annotations

import logging
from functools import partial

from replidict.client.connection import Client, UnreachableError
from replidict.errors import NotCommitted, OutcomeUnknown, ReplidictError
from replidict.latch import Latch
from replidict.log_throttle import LogThrottle
from replidict.node.raft_node import RaftNode
from replidict.own_threads import OWN_THREADS, OwnThread
from replidict.protocol.client_messages import Done, Supersede
from replidict.security import Security
from replidict.storage import records
from replidict.transport.handshake import printable

LOOK_EVERY = 0.4  # election timeouts
TELL_EVERY = 0.5  # seconds
CALL_SECONDS = 2.0
REQUEST_SECONDS = 1.0
LINES = 5  # in the log about each place, of one level, a minute
TEXT_MAX = 1000  # characters of an answer, there


class SupersedeNotifier:
    """The threads that look for old members, one for each address."""

    def __init__(self, node: RaftNode, security: Security, recovered: records.Recovered) -> None:
        self._node, self._security = node, security
        self._old: dict[str, records.Recovered] = {}
        before: records.Recovered | None = recovered
        while before is not None:
            self._old[before.cluster_id] = before
            before = before.before
        self._stopping = Latch()
        self._clients: set[Client] = set()
        self._said: dict[str, str] = {}  # by place: what the log says of it
        places = {address for old in self._old.values() for address in old.members} - {node.engine.address}
        self._log_throttle = {place: LogThrottle(node.engine.address) for place in places}
        self._threads = [
            OwnThread(partial(self._watch, place), f"{OWN_THREADS}supersede notifier {place}")
            for place in sorted(places)
        ]

    def start(self) -> None:
        """Begin."""
        for cluster_id in self._old:
            self._security.stretch(cluster_id)  # which takes a while: not when one is found
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Make no more calls."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until they have ended, after `stop`; not from within."""
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """Let go of the connections in a forked child, where the threads do not exist."""
        for client in self._clients:
            client.close()

    def _watch(self, place: str) -> None:
        while not self._stopping.wait(LOOK_EVERY * self._node.engine.options.election_timeout):
            self._log_throttle[place].tick(self._node.engine.clock())
            if place in self._node.engine.members.all:
                continue
            try:
                with Client(place, security=self._security, timeout=CALL_SECONDS) as client:
                    if client.cluster_id in self._old:
                        self._clients.add(client)
                        self._tell(client, self._old[client.cluster_id])
                    elif client.cluster_id != self._node.store.identity.cluster_id:  # else it has just been let in
                        self._log(place, logging.INFO, "is of another cluster by now, and left alone")
                        return
            except (UnreachableError, NotCommitted, OutcomeUnknown):
                pass  # there is nobody, or not any more
            except ReplidictError as error:
                self._log(place, logging.INFO, f"does not let this node in, and is left alone: {error}")
                return

    def _tell(self, client: Client, old: records.Recovered) -> None:
        """Tell an old member until it is gone. Raises the error that ends the connection."""
        place, me = client.address, self._node.store.identity

        def said(number: int, timeout: float) -> Supersede:
            return Supersede(
                number, timeout, old.cluster_id, old.node_id, old.address, old.index,
                me.cluster_id, me.address, old.at,
            )  # fmt: skip

        try:
            while not self._stopping.is_set:
                try:
                    client.request(said, Done, timeout=REQUEST_SECONDS)
                    told = "has come back, and is told that its cluster goes on here: without a leader there, it stops"
                    self._log(place, logging.WARNING, told)
                except (UnreachableError, NotCommitted, OutcomeUnknown):
                    raise
                except (ReplidictError, ValueError) as error:
                    self._log(place, logging.ERROR, f"does not stop: {printable(str(error), TEXT_MAX)}")
                self._log_throttle[place].tick(self._node.engine.clock())
                self._stopping.wait(TELL_EVERY)
        finally:
            self._clients.discard(client)

    def _log(self, place: str, level: int, text: str) -> None:
        """Rule 3."""
        if self._said.get(place) != text:
            self._said[place] = text
            about = f"who was at {place} before the quorum was lost"
            self._log_throttle[place].log(about, self._node.engine.clock(), f"{about} {text}", level, LINES)

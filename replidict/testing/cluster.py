"""`Cluster`: a cluster of real nodes in this process, on loopback, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any, Self

from replidict.api.replicated_dict import ReplicatedDict
from replidict.errors import ReplidictError
from replidict.latch import Latch
from replidict.machine.codec import DEFAULT_CODEC, Codec
from replidict.options import Options
from replidict.testing.failing_writes import Failure, arm, steal_lock
from replidict.testing.hosts import host_of
from replidict.testing.ports import free_addresses, reserve
from replidict.testing.settling import Settling
from replidict.testing.time_travel import Clock, have_passed, nothing_is_due

Dict = ReplicatedDict[Any, Any]

QUICK = Options(heartbeat=0.04, election_timeout=0.2, durability="process", snapshot_retain=0)
"""Options with which a cluster is there, and has another leader, in a fraction of a second."""

ATTEMPTS = 20
"""To find ports: other processes look for some as well."""


class _Pause:
    """Stops a node's thread between two steps."""

    def __init__(self) -> None:
        self.begun, self.over = Latch(), Latch()

    def stand(self) -> None:
        """Block the thread until the pause is over."""
        self.begun.set()
        self.over.wait()


class Cluster:
    """A number of nodes, each a `ReplicatedDict` of this process with its own directory and address.

    `with` it the nodes run; `cluster[i]` is the dict of node i, the new one after `restart(i)`. What is done to nodes
    and network is done when the call returns: nodes that are in touch with a majority have agreed on a leader and have
    all that was written, others have noticed that they have none.

    Args:
        n: How many nodes.
        timeout: Seconds for which calls of the dicts wait, if they are not told otherwise.
        options: The nodes' options. The default is quick, and syncs nothing to the disk.
        codec: What turns values into bytes, if it is not the one that is built in.

    Raises:
        ValueError: `n` is not a number from 1 on; or as `ReplicatedDict`.

    Example:
        >>> with Cluster() as cluster:  # doctest: +SKIP
        ...     cluster[0]["k"] = 1
        ...     cluster.kill(cluster.leader())
        ...     assert cluster.leader() is not None
    """

    def __init__(
        self, n: int = 3, *, timeout: float = 10.0, options: Options = QUICK, codec: Codec = DEFAULT_CODEC
    ) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n={n!r}: must be a positive number of nodes")
        self._timeout, self._options, self._codec = timeout, options, codec
        self._dicts: list[Dict] = []
        self._addresses: list[str] = [""] * n
        self._down: dict[int, socket] = {}  # what keeps the ports of those that were killed
        self._paused: dict[int, _Pause] = {}
        self._groups: tuple[frozenset[int], ...] = (frozenset(range(n)),)
        self._end = ExitStack()
        self.clock = Clock(self._elapse)
        """What time it is for keys, leases and calls, and how it passes."""

    # -- its life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with ExitStack() as end:
            root = Path(end.enter_context(tempfile.TemporaryDirectory(prefix="replidict-")))
            end.callback(self._close)
            self._found(root)
            self._settle()
            self._end = end.pop_all()
        return self

    def _found(self, root: Path) -> None:
        for attempt in range(ATTEMPTS):
            self._addresses = free_addresses(len(self._addresses))
            self._directory = root / str(attempt)
            try:
                for i in range(len(self._addresses)):
                    self._dicts.append(self._open(i))
            except ReplidictError:
                self._close()
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def _open(self, i: int) -> Dict:
        address = self._addresses[i]
        d = Dict(
            self._directory / f"node{i}",
            address=address,
            peers=[each for each in self._addresses if each != address],
            timeout=self._timeout,
            options=self._options,
            codec=self._codec,
        )
        host_of(d).node.wait = self.clock.wait
        return d

    def __exit__(self, *exception: object) -> None:
        self._end.close()

    def _close(self) -> None:
        for pause in self._paused.values():
            pause.over.set()
        self._paused.clear()
        for d in self._dicts:
            # Nobody is left to take leases over: all go with the cluster.
            host_of(d).close(farewell=False)
        self._dicts.clear()
        for port in self._down.values():
            port.close()
        self._down.clear()

    def __len__(self) -> int:
        """The number of nodes, including those that are down."""
        return len(self._addresses)

    def __getitem__(self, i: int) -> Dict:
        """The dict of node i. That of a node that is down raises `ClosedError` whatever is asked of it."""
        return self._dicts[i]

    def __iter__(self) -> Iterator[Dict]:
        return iter(tuple(self._dicts))

    def __repr__(self) -> str:
        down = f", down: {sorted(self._down)}" if self._down else ""
        return f"<{type(self).__name__} of {len(self)} nodes, leader: {self.leader()}{down}>"

    # -- nodes --------------------------------------------------------------------------------------------------------

    def leader(self) -> int | None:
        """The node that leads, once a majority agrees; None if no majority runs and is connected."""
        return self._settling().leader()

    def kill(self, i: int) -> None:
        """End a node as `kill -9` ends its process: it revokes no lease and sends no farewell.

        Calls under way on its dict raise `OutcomeUnknown` or `ClosedError`, all later ones `ClosedError`.

        Raises:
            ValueError: There is no such node, or it is down.
        """
        d = self._running(i)
        if i in self._paused:
            self._paused.pop(i).over.set()
        host_of(d).close(farewell=False)
        self._down[i] = reserve(self._addresses[i])
        self._settle()

    def restart(self, i: int) -> None:
        """Start a node that was killed, or closed, with what is on its disk. `cluster[i]` is another dict from now on.

        Raises:
            ValueError: There is no such node, or it runs.
        """
        self._check(i)
        if i in self._up():
            raise ValueError(f"node {i} runs: kill({i}) comes first")
        self[i].close()
        if i in self._down:
            self._down.pop(i).close()
        self._dicts[i] = self._open(i)
        self._apply_partition()
        self._settle()

    def pause(self, i: int) -> None:
        """Have a node stand still: its thread does nothing and its clock does not go on, until `resume(i)`.

        The others see it as silent. Plain reads of its dict still work; whatever needs its thread waits.

        Raises:
            ValueError: There is no such node, or it is down, or paused.
        """
        d = self._running(i)
        if i in self._paused:
            raise ValueError(f"node {i} is paused already")
        pause = self._paused[i] = _Pause()
        host_of(d).node.call(pause.stand)
        pause.begun.wait()
        self._settle()

    def resume(self, i: int) -> None:
        """Let a paused node go on. It finds out how much time has passed.

        Raises:
            ValueError: There is no such node, or it is not paused.
        """
        self._check(i)
        if i not in self._paused:
            raise ValueError(f"node {i} is not paused")
        self._paused.pop(i).over.set()
        self._settle()

    # -- the network --------------------------------------------------------------------------------------------------

    def partition(self, *groups: Collection[int]) -> None:
        """Cut the network: nodes reach only those of their own group. A node in no group is alone.

        Takes the place of what was cut before.

        Raises:
            ValueError: There is no such node, or it is in two groups.

        Example:
            >>> cluster.partition({0}, {1, 2})  # doctest: +SKIP
        """
        seen: set[int] = set()
        for group in groups:
            for i in group:
                self._check(i)
                if i in seen:
                    raise ValueError(f"node {i} is in two groups")
                seen.add(i)
        alone = [frozenset((i,)) for i in range(len(self)) if i not in seen]
        self._groups = (*map(frozenset, groups), *alone)
        self._apply_partition()
        self._settle()

    def heal(self) -> None:
        """Let every node reach every other again."""
        self.partition(range(len(self)))

    # -- failures -----------------------------------------------------------------------------------------------------

    def fail_next(self, error: Failure, *, applied: bool = False, node: int | None = None) -> None:
        """Have the next write of one of the dicts fail, or that of node `node`; see `replidict.testing.fail_next`."""
        nodes = self._up() if node is None else [node]
        arm([self._running(i) for i in nodes], error, applied)

    def steal_lock(self, name: str) -> int:
        """Take a lock from its holder; see `replidict.testing.steal_lock`. All nodes know of it afterwards.

        Raises:
            ReplidictError: No node is in touch with a majority.
        """
        leader = self.leader()
        if leader is None:
            raise ReplidictError("there is no leader, so no lock can be taken away: heal() or restart() comes first")
        count = steal_lock(self[leader], name)
        self._settle()
        return count

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check(self, i: int) -> None:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(self):
            raise ValueError(f"there is no node {i!r}: they are 0 to {len(self) - 1}")

    def _running(self, i: int) -> Dict:
        self._check(i)
        if i not in self._up():
            raise ValueError(f"node {i} does not run: restart({i}) comes first")
        return self[i]

    def _up(self) -> list[int]:
        """The running nodes, including paused ones."""
        return [i for i, d in enumerate(self._dicts) if i not in self._down and host_of(d).node.failure is None]

    def _in_thread(self, i: int, function: Callable[[], object]) -> None:
        """Have something done in the thread of a node, and a whole step after it; on a paused one when it goes on."""
        call = host_of(self[i]).node.call(function)
        if i not in self._paused:
            call.result()
            host_of(self[i]).node.call(lambda: None).result()

    def _cut_off(self, i: int, others: Collection[int]) -> None:
        addresses = [self._addresses[other] for other in others if other != i]
        transport: Any = host_of(self[i]).node.engine.transport
        self._in_thread(i, lambda: transport.cut(addresses))

    def _apply_partition(self) -> None:
        for group in self._groups:
            others = [i for i in range(len(self)) if i not in group]
            for i in group.intersection(self._up()):
                self._cut_off(i, others)

    def _settling(self) -> Settling:
        awake = set(self._up()) - self._paused.keys()
        return Settling(self._dicts, [group & awake for group in self._groups])

    def _settle(self) -> None:
        self._settling().wait()

    def _elapse(self, seconds: float) -> None:
        """Advance the time: first for the log, which says what has expired, and then for the holders of leases."""
        leader = self.leader()
        nodes = {i: host_of(self[i]).node for i in self._up()}
        shown = max((node.expiry.now() for node in nodes.values()), default=0) + round(seconds * 1000)
        for i in sorted(nodes, key=lambda i: i != leader):  # what a leader says goes
            self._in_thread(i, partial(have_passed, nodes[i], shown))
        if leader is not None:
            node = nodes[leader]
            self._settling().until(lambda: node.call(partial(nothing_is_due, node)).result(), "what is due has ended")
            self._settle()
        for i, node in nodes.items():
            self._in_thread(i, partial(node.leases.elapse, seconds))
        self._settle()

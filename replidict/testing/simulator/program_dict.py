"""The dict of a simulated program: that of `replidict.aio`, on a simulated node."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from typing_extensions import override

from replidict.aio.async_dict import AsyncDict
from replidict.aio.calls import Calls
from replidict.api.internals import Inside
from replidict.api.replicated_dict import ReplicatedDict
from replidict.brief import brief
from replidict.errors import ReplidictError
from replidict.machine import commands as cmd
from replidict.machine.codec import DEFAULT_CODEC, decode_key
from replidict.node.raft_node import RaftNode
from replidict.node.steps import Returned, Steps
from replidict.server.open_node import Host
from replidict.testing.simulator.loop import Trace

TIMEOUT = 10.0
"""Seconds that calls wait if they are not told otherwise, as those of `ReplicatedDict`."""


class _SimulatedHost:
    """The part of a `Host` that a dict needs and that neither waits nor ends."""

    def __init__(self, node: RaftNode) -> None:
        self.node = self.bare_node = node
        self.machine, self.status = node.machine, node.status
        self.address = node.engine.address

    @property
    def failure(self) -> ReplidictError | None:
        """The error that has stopped the node, if any."""
        return self.node.failure


def _waits(*arguments: object, **named: object) -> NoReturn:
    raise RuntimeError("nothing waits in a simulation but coroutines: use the dict that the workload is given")


class SimulatedDict(ReplicatedDict[Any, Any]):
    """A `ReplicatedDict` on a simulated node, for plain reads only. Calls that wait belong to `ProgramDict`.

    A call that waited would wait in real time, for what only simulated time can bring.
    """

    def __init__(self, node: RaftNode) -> None:
        self._use(cast(Host, _SimulatedHost(node)), DEFAULT_CODEC, node.engine.options, TIMEOUT)

    @override
    def _run(self, steps: Steps[Returned]) -> Returned:
        steps.close()
        _waits()

    set = submit = transaction = transact = lease = lock = semaphore = run_as_leader = watch = _waits
    barrier = wait_ready = members = add_peer = remove_peer = transfer_leadership = backup = close = _waits

    @override
    def _catch_up(self, linearizable: bool, max_staleness: float | None, timeout: float | None) -> None:
        """When all nodes are equal, this copy is what there is."""

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} keys on {self._host.node.engine.address}>"


class _NotedCalls(Calls[Any, Any]):
    """Records in the trace what a program writes, and the outcome."""

    def __init__(self, inside: Inside[Any, Any], trace: Trace, name: str) -> None:
        super().__init__(inside)
        self._trace, self._name = trace, name

    @override
    async def write(self, operation: cmd.Operation, size: int, seconds: float) -> cmd.Result:
        what = _described(operation)
        self._trace.note(self._name, "asks", what)
        try:
            result = await super().write(operation, size, seconds)
        except ReplidictError as error:
            self._trace.note(self._name, "failed", f"{what}: {type(error).__name__}")
            raise
        told = f": {result}" if isinstance(result, int | None) else ""
        self._trace.note(self._name, "done", what + told)
        return result


def _described(operation: Any) -> str:
    """The kind of an operation, and its key."""
    while isinstance(operation, cmd.Expiring | cmd.Fenced):
        operation = operation.operation
    key = getattr(operation, "key", None)
    return type(operation).__name__ + (f" {brief(decode_key(key))}" if isinstance(key, bytes) else "")


async def _not_simulated(*arguments: object, **named: object) -> NoReturn:
    raise RuntimeError("members, backups and the end of a node are not simulated: a workload reads, writes and waits")


class ProgramDict(AsyncDict[Any, Any]):
    """The dict that a workload gets; see `replidict.testing.simulate`."""

    def __init__(self, node: RaftNode, trace: Trace, name: str) -> None:
        d = SimulatedDict(node)
        super().__init__(d)
        self._calls = _NotedCalls(Inside(d), trace, name)

    members = add_peer = remove_peer = transfer_leadership = backup = close = _not_simulated

    @override
    async def snapshot(self) -> dict[Any, Any]:
        return self.sync.snapshot()

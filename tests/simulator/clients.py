"""The workload: clients on every node that write and read, and remember what they were told.

Rules kept here:

1. A client waits for one operation at a time, up to its deadline; then it goes on, and what becomes known of the
   operation later is still noted.
2. Every value is written once in a run, so it tells which write it came from. Some are padded, to have large messages.
3. What a client was told becomes a history for the linearizability checker; a write that surely was not applied must
   never show an effect.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from replidict.errors import ReplidictError
from replidict.machine import commands as cmd
from replidict.machine.codec import decode, encode, encode_key
from replidict.machine.outcomes import Refusal
from replidict.node.linearizable_reads import Read
from replidict.node.proposals import Write
from replidict.testing.simulator.loop import Timer
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.history import Operation
from tests.simulator.check_states import marker_of
from tests.simulator.cluster import cluster_of

SINGLE = {"put": 6, "add": 2, "cas": 4, "pop": 2, "delete": 2, "setdefault": 2, "replace": 1, "poison": 0.2, "get": 8}
SPANNING = {**SINGLE, "update": 3, "popitem": 2, "clear": 0.3, "len": 1, "snapshot": 2}


@dataclass(frozen=True)
class Workload:
    """How much is done, and what."""

    clients: int = 2  # on each node
    pause: float = 0.3  # seconds between two operations of a client, on average
    timeout: tuple[float, float] = (0.3, 3.0)
    keys: tuple[Hashable, ...] = ("a", "b", "c")
    spanning: bool = False  # operations on several keys, too
    padding: int = 0  # bytes added to some values, at most
    burst: float = 0.0  # how likely a client goes on at once


@dataclass
class Told:
    """What clients were told, in numbers."""

    done: int = 0
    not_committed: int = 0
    unknown: int = 0
    reads: int = 0
    reads_failed: int = 0


@dataclass
class Call:
    """One operation of one client."""

    client: str
    machine: Machine
    incarnation: int
    called: float
    kind: str
    key: Hashable = None
    argument: Any = None
    operation: cmd.Operation | None = None
    write: Write | None = None
    read: Read | None = None
    settled: bool = False  # nothing more will be told
    answered: bool = False  # there was a result
    given_up: bool = False
    timer: Timer | None = None


@dataclass
class History:
    """All that clients were told."""

    operations: list[Operation] = field(default_factory=list)
    open: dict[int, Call] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)  # markers of writes that surely were not applied
    told: Told = field(default_factory=Told)


class Client:
    """One client on one machine."""

    def __init__(self, name: str, machine: Machine, workload: Workload, history: History, rng: random.Random) -> None:
        self.name = name
        self._machine = machine
        self._cluster = cluster_of(machine)
        self._workload = workload
        self._history = history
        self._rng = rng
        self._kinds = list(SPANNING if workload.spanning else SINGLE)
        self._weights = list((SPANNING if workload.spanning else SINGLE).values())
        self._count = 0
        self._seen: dict[Hashable, bytes] = {}
        self._revisions: dict[Hashable, tuple[int, bytes]] = {}
        self._present: Call | None = None
        self._stopped = False
        self._timer: Timer | None = None
        machine.on_start.append(self._node_started)
        machine.on_end.append(self._node_ended)

    def _node_started(self) -> None:
        self._next(self._rng.random() * self._workload.pause)

    def _node_ended(self) -> None:
        """The process is gone, and this client's call with it; one that was never sent surely has no effect."""
        call, self._present = self._present, None
        if self._timer is not None:
            self._timer.cancel()
        if call is not None and not call.settled:
            self._cluster.loop.after(0.0, partial(self._lost, call))

    def _lost(self, call: Call) -> None:
        if call.settled:
            return
        if call.write is not None and not call.write.sent:
            self._refused(call)
        elif call.timer is not None:
            call.timer.cancel()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    def _next(self, delay: float) -> None:
        if not self._stopped:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._cluster.loop.after(delay, self._begin)

    def _value(self) -> tuple[str, bytes]:
        marker = f"{self.name}#{self._count}"
        padding = "x" * int(self._workload.padding * self._rng.random() ** 4)
        return marker, encode(f"{marker}|{padding}")

    def _begin(self) -> None:
        machine, rng = self._machine, self._rng
        if self._stopped or machine.node is None or self._present is not None:
            return
        self._count += 1
        kind = rng.choices(self._kinds, self._weights)[0]
        key = rng.choice(self._workload.keys)
        if kind in ("get", "len", "snapshot"):
            self.read(kind, key)
            return
        marker, value = self._value()
        encoded = encode_key(key)
        expected = self._seen.get(key)
        if kind == "cas" and expected is not None:
            was = _marker(expected)
            self.write("compare_and_set", key, (was, marker), cmd.CompareAndSet(encoded, expected, value))
        elif kind == "replace" and key in self._revisions:
            revision, before = self._revisions[key]
            self.write("compare_and_set", key, (_marker(before), marker), cmd.Replace(encoded, value, revision))
        elif kind in ("add", "cas", "replace"):
            self.write("add", key, marker, cmd.Add(encoded, value))
        elif kind == "setdefault":
            self.write("setdefault", key, marker, cmd.SetDefault(encoded, value))
        elif kind == "pop":
            self.write("pop", key, None, cmd.Pop(encoded))
        elif kind == "delete":
            self.write("delete", key, None, cmd.Delete(encoded))
        elif kind == "popitem":
            self.write("popitem", None, None, cmd.PopItem())
        elif kind == "clear":
            self.write("clear", None, None, cmd.Clear())
        elif kind == "update":
            keys = rng.sample(self._workload.keys, rng.randint(1, len(self._workload.keys)))
            self.write(
                "update", None, tuple((key, marker) for key in keys),
                cmd.Update([(encode_key(key), value) for key in keys]),
            )  # fmt: skip
        elif kind == "poison":
            self.write("poison", None, None, cmd.Put(b"\xc1", value))
        else:
            self.write("set", key, marker, cmd.Put(encoded, value))

    # -- writes -----------------------------------------------------------------------------------------------------

    def write(self, kind: str, key: Hashable, argument: Any, operation: cmd.Operation) -> Call:
        """Submit a write."""
        machine = self._machine
        call = Call(self.name, machine, machine.incarnation, machine.time, kind, key, argument, operation)
        size = len(getattr(operation, "value", b"")) + 100
        call.write = Write(operation, size, partial(self._written, call))
        self._submit(call)
        assert machine.node is not None
        machine.node.proposals.submit(call.write)
        return call

    def _submit(self, call: Call) -> None:
        self._cluster.trace.note(self.name, "call", call.operation or call.kind)
        self._present = call
        self._history.open[id(call)] = call
        timeout = self._rng.uniform(*self._workload.timeout)
        call.timer = self._cluster.loop.after(timeout, partial(self._deadline, call))

    def _deadline(self, call: Call) -> None:
        if call.settled or call.given_up or call.machine.node is None or call.machine.incarnation != call.incarnation:
            return
        call.given_up = True
        if call.read is not None:
            call.read.abandoned = True
            self._history.told.reads_failed += 1
            self._end(call)
        elif call.write is not None and call.machine.node.proposals.give_up(call.write):
            self._refused(call)
        else:
            self._history.told.unknown += 1
            self._cluster.trace.note(self.name, "unknown", call.operation)
            self._go_on(call)

    def _refused(self, call: Call) -> None:
        self._cluster.trace.note(self.name, "refused", call.operation)
        self._history.told.not_committed += 1
        marker = None if call.operation is None else marker_of(call.operation)
        if marker is not None:
            self._history.refused.append(marker)
        self._end(call)

    def _end(self, call: Call) -> None:
        call.settled = True
        if call.timer is not None:
            call.timer.cancel()
        self._history.open.pop(id(call), None)
        self._go_on(call)

    def _go_on(self, call: Call) -> None:
        if self._present is call:
            self._present = None
            pause = (
                0.0 if self._rng.random() < self._workload.burst else self._rng.expovariate(1 / self._workload.pause)
            )
            self._next(pause)

    def _written(self, call: Call) -> None:
        write = call.write
        assert write is not None
        if call.settled:
            if call.given_up and not write.sent:
                return  # taken back by its caller; a node that stops tells everybody
            raise Violation("answers", f"{self.name}: {call.operation} was answered twice")
        if write.error is not None:
            self._failed(call, write.error)
            return
        call.answered = True
        operation = call.operation
        assert operation is not None
        marker = marker_of(operation)
        result = write.result
        if marker is not None:
            self._cluster.checker.states.acknowledged(call.machine, marker, result)
        if isinstance(result, str) is not (call.kind == "poison"):
            raise Violation("results", f"{self.name}: {operation} gave {result!r}")
        self._history.told.done += 1
        self._cluster.trace.note(self.name, "done", repr(result))
        self._remember(call, operation, result)
        self._record(call, _plain(call, result))
        self._end(call)

    def _remember(self, call: Call, operation: cmd.Operation, result: cmd.Result) -> None:
        if isinstance(operation, cmd.Put) and isinstance(result, int):
            self._revisions[call.key] = (result, operation.value)
            self._seen[call.key] = operation.value
        elif isinstance(operation, cmd.SetDefault) and isinstance(result, bytes):
            self._seen[call.key] = result
        elif result is True and isinstance(operation, cmd.Add | cmd.CompareAndSet | cmd.Replace):
            self._seen[call.key] = operation.value

    def _failed(self, call: Call, error: ReplidictError) -> None:
        """The node refused it or stopped. What was never sent surely was not applied."""
        if call.write is not None and not call.write.sent:
            self._refused(call)
            return
        if Refusal.FORGOTTEN.value in str(error):
            raise Violation("answers", f"{self.name}: the answer to {call.operation} was forgotten before it was given")
        self._history.told.unknown += 1
        self._cluster.trace.note(self.name, "failed", type(error).__name__)
        call.given_up = True
        self._go_on(call)

    def _record(self, call: Call, result: Any) -> None:
        if call.kind != "poison":
            self._history.operations.append(_operation(call, call.machine.time, result))

    # -- reads ------------------------------------------------------------------------------------------------------

    def read(self, kind: str, key: Hashable) -> Call:
        """Submit a linearizable read."""
        machine = self._machine
        call = Call(self.name, machine, machine.incarnation, machine.time, kind, None if kind != "get" else key)
        call.read = Read(partial(self._released, call))
        self._submit(call)
        assert machine.node is not None
        machine.node.reads.submit(call.read)
        return call

    def _released(self, call: Call) -> None:
        read = call.read
        assert read is not None
        if call.settled:
            if call.given_up:
                return
            raise Violation("answers", f"{self.name}: a read was answered twice")
        if read.error is not None:
            self._history.told.reads_failed += 1
            self._end(call)
            return
        call.answered = True
        self._history.told.reads += 1
        node = call.machine.node
        assert node is not None
        items = node.machine.items
        result: Any
        if call.kind == "get":
            item = items.get(call.key)
            result = None if item is None else _marker(item.value)
            if item is not None:
                self._seen[call.key] = item.value
        elif call.kind == "len":
            result = len(items)
        else:
            result = tuple((key, _marker(item.value)) for key, item in items.items())
        self._cluster.trace.note(self.name, "read", result)
        self._record(call, result)
        self._end(call)


def _marker(value: bytes) -> str:
    return str(decode(value)).split("|")[0]


def _plain(call: Call, result: cmd.Result) -> Any:
    """A result as a dict would give it."""
    if isinstance(call.operation, cmd.Pop | cmd.SetDefault):
        return None if result is None else _marker(result)  # type: ignore[arg-type]
    if isinstance(call.operation, cmd.PopItem):
        if result is None:
            return None
        assert isinstance(result, list)
        return (msgspec.msgpack.decode(result[0]), _marker(result[1]))
    return result


def _operation(call: Call, ret: float | None, result: Any) -> Operation:
    """The entry of the history. A `setdefault` is an `add` or, if the key was there, a read of its value."""
    kind, argument = call.kind, call.argument
    if kind == "setdefault":
        if ret is None or result == argument:
            kind, result = "add", None if ret is None else True
        else:
            kind, argument = "get", None
    return Operation(call.client, call.called, ret, kind, call.key, argument, result)


def complete_history(history: History) -> list[Operation]:
    """All operations, with those whose outcome is not known."""
    unknown = [
        _operation(call, None, None)
        for call in history.open.values()
        if call.write is not None and call.kind != "poison"
    ]
    return history.operations + unknown

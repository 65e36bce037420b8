"""Nodes as processes of their own, and what befalls them: killed, paused, cut off, or cut short within a commit.

`Process` is one node, `Network` a proxy for each pair of nodes, a process as well. Both run `process_child`, which
takes requests as lines of JSON on its standard input and answers on its standard output. Calls are stamped in the
child, just around the operation, by the clock that all processes of a machine share.

Only processes started here are ever signalled, by their process id.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replidict.storage.directory import FILE_NAME
from tests.clusters import wait_until

ROOT = Path(__file__).parent.parent


class Died(Exception):
    """The process ended before it answered: the operation may or may not have happened."""


class Refused(Exception):
    """The operation raised; `kind` is the name of the error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """What came of one operation: when it was called and returned (`time.monotonic`), and its value or error."""

    call: float
    ret: float | None  # None: the process died, or says that the outcome is unknown
    value: Any = None
    error: str | None = None
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was performed and acknowledged."""
        return self.error is None

    @property
    def surely_not(self) -> bool:
        """Whether it surely had no effect."""
        return self.error in ("NotCommitted", "RemovedError", "ReadTimeout", "EncodingError")

    def result(self) -> Any:
        """The value. Raises `Refused` or `Died`."""
        if self.error == "Died":
            raise Died(self.message)
        if self.error is not None:
            raise Refused(self.error, self.message)
        return self.value


class _Child:
    """A process that answers lines with lines."""

    def __init__(self, *arguments: str, tree: Path = ROOT) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.process_child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
        )
        self.pid = self._popen.pid
        self._mutex, self._writing = threading.Lock(), threading.Lock()
        self._waiting: dict[int, tuple[float, Future[Answer]]] = {}
        self._number = 0
        self._ended = False
        self.greeting: Future[dict[str, Any]] = Future()
        self._reader = threading.Thread(target=self._read, name=f"reader of {self.pid}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                break  # killed while it wrote
            if not self.greeting.done():
                self.greeting.set_result(message)
            elif "id" in message:
                with self._mutex:
                    _, future = self._waiting.pop(message.pop("id"))
                future.set_result(Answer(**message))
        with self._mutex:
            self._ended = True
            waiting = list(self._waiting.values())
            self._waiting.clear()
        if not self.greeting.done():
            self.greeting.set_result({"failed": "Died"})
        for call, future in waiting:
            future.set_result(Answer(call, None, None, "Died", self._epitaph()))

    def _epitaph(self) -> str:
        return f"process {self.pid}, which said first {self.greeting.result()}"

    def submit(self, kind: str, *args: Any, **kwargs: Any) -> Future[Answer]:
        """Have an operation done. The future always gets an answer: the last one is that the process died."""
        future: Future[Answer] = Future()
        call = time.monotonic()
        with self._mutex:
            if self._ended:
                future.set_result(Answer(call, None, None, "Died", self._epitaph()))
                return future
            self._number += 1
            number = self._number
            self._waiting[number] = (call, future)
        line = json.dumps({"id": number, "kind": kind, "args": args, "kwargs": kwargs}).encode() + b"\n"
        assert self._popen.stdin is not None
        try:
            with self._writing:
                self._popen.stdin.write(line)
                self._popen.stdin.flush()
        except (OSError, ValueError):
            pass  # it is dead, or its input closed: the reader answers
        return future

    @property
    def alive(self) -> bool:
        """Whether the process runs (or is paused)."""
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to this process."""
        self._popen.send_signal(number)

    def end(self, *, kill: bool) -> int:
        """End it, by SIGKILL or by closing its input; return its exit status when all is over."""
        if kill:
            self._popen.kill()
        assert self._popen.stdin is not None and self._popen.stdout is not None
        try:
            self._popen.stdin.close()
        except OSError:
            pass  # what was not read any more
        try:
            status = self._popen.wait(30)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait(30)
        self._reader.join(30)
        self._popen.stdout.close()
        return status


class Process:
    """One node in a process of its own; it can be ended and started again, and keeps its directory."""

    def __init__(
        self,
        path: Path,
        address: str | None = None,
        peers: Iterable[str] = (),
        *,
        via: dict[str, str] | None = None,
        options: dict[str, Any] | None = None,
        timeout: float = 10.0,
        on_open: Sequence[Sequence[Any]] = (),
    ) -> None:
        """`via` says which address to dial instead of a peer's (a proxy's); `on_open`, which functions each process
        calls with its dict once it is open: module, name, further arguments."""
        self.path = path
        self.address = address
        self.tree = ROOT
        """The sources that it runs, from the next start on."""
        self._config = {
            "path": str(path), "address": address, "peers": list(peers), "via": via or {}, "options": options or {},
            "timeout": timeout, "join": None, "on_open": on_open,
        }  # fmt: skip
        self._child: _Child | None = None
        self.paused = False

    def join(self, member: str) -> None:
        """From now on it is started to join the cluster of this member."""
        self._config |= {"join": member, "peers": []}

    def start(self, *, cut: list[str] | None = None, wait: bool = True) -> Process:
        """Start it. `cut`: see `Scissors`, from the very beginning. Raises `Refused` if the dict can't be opened."""
        assert self._child is None
        self._child = _Child("node", json.dumps({**self._config, "cut": cut}), tree=self.tree)
        if wait:
            greeting = self._child.greeting.result(60)
            if "failed" in greeting and greeting["failed"] != "Died":
                self.close()
                raise Refused(greeting["failed"], greeting["message"])
        return self

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self._child is not None and self._child.alive

    @property
    def pid(self) -> int:
        """Of the process; 0 if there is none."""
        return 0 if self._child is None else self._child.pid

    def wait_open(self) -> None:
        """Wait until the dict is open, if there is a process: Python takes a while to start on a busy machine."""
        if self._child is not None:
            self._child.greeting.result(120)

    def submit(self, kind: str, *args: Any, **kwargs: Any) -> Future[Answer]:
        """Have an operation done, without waiting for it."""
        child = self._child
        if child is None:
            never: Future[Answer] = Future()
            never.set_result(Answer(time.monotonic(), None, None, "Died", "not started"))
            return never
        return child.submit(kind, *args, **kwargs)

    def call(self, kind: str, *args: Any, **kwargs: Any) -> Answer:
        """Do an operation; whatever happens is in the answer."""
        return self.submit(kind, *args, **kwargs).result(90)

    def do(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        """Do an operation and return its value. Raises `Refused` or `Died`."""
        return self.call(kind, *args, **kwargs).result()

    def status(self) -> dict[str, Any]:
        """`ReplicatedDict.status()` as a dict; empty if the process is dead."""
        answer = self.call("status")
        return dict(answer.value) if answer.ok else {}

    def snapshot(self) -> dict[Any, Any]:
        """This node's copy, in its order."""
        return {key: value for key, value in self.do("snapshot")}  # noqa: C416 -- from lists

    def pause(self) -> None:
        """SIGSTOP."""
        assert self._child is not None
        self._child.signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        assert self._child is not None
        self._child.signal(signal.SIGCONT)
        self.paused = False

    def wait_dead(self, timeout: float = 30.0) -> None:
        """Wait until the process has ended by itself."""
        wait_until(lambda: not self.alive, f"{self.path} has ended", timeout)
        self.close()

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self._end(kill=True)

    def close(self) -> int | None:
        """Close the dict and end the process."""
        return self._end(kill=self.paused)

    def _end(self, *, kill: bool) -> int | None:
        child, self._child, self.paused = self._child, None, False
        return None if child is None else child.end(kill=kill)


class Network:
    """A proxy for each pair of nodes, in a process of its own, which can hold up each direction by itself."""

    def __init__(self, count: int) -> None:
        """For so many nodes, at `addresses`."""
        self.addresses = own_addresses(count)
        pairs = [(caller, called) for caller in self.addresses for called in self.addresses if caller != called]
        fronts = own_addresses(len(pairs))
        self._via = dict(zip(pairs, fronts, strict=True))
        self._child = _Child(
            "network", json.dumps([[*pair, front] for pair, front in self._via.items()])
        )  # fmt: skip
        assert self._child.greeting.result(30) == {"ready": True}

    def via(self, caller: str) -> dict[str, str]:
        """Where this node reaches the others."""
        return {called: front for (by, called), front in self._via.items() if by == caller}

    def hold(self, links: Iterable[tuple[str, str]]) -> None:
        """From now on nothing gets through on these (from, to), everything on all others."""
        self._child.submit("hold", sorted(links)).result(30).result()

    def isolate(self, nodes: set[str], *, incoming: bool = True, outgoing: bool = True) -> None:
        """Cut these nodes off from the others."""
        others = set(self.addresses) - nodes
        into = {(other, node) for other in others for node in nodes}
        out = {(node, other) for other in others for node in nodes}
        self.hold((into if incoming else set()) | (out if outgoing else set()))

    def heal(self) -> None:
        """Let everything through."""
        self.hold([])

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.end(kill=False)


def own_addresses(count: int) -> list[str]:
    """Addresses on a loopback host that no other test uses: a node that is down for a while finds its port free."""
    host = ".".join(["127", *(str(random.SystemRandom().randrange(1, 255)) for _ in range(3))])
    return [f"{host}:{port}" for port in range(20_000, 20_000 + count)]


@contextmanager
def processes(
    root: Path, count: int = 3, *, network: Network | None = None, **arguments: Any
) -> Iterator[list[Process]]:
    """So many nodes, each a process, ready. With a network, they are at its addresses and reach each other by it."""
    addresses = network.addresses if network else own_addresses(count) if count > 1 else []
    nodes = [
        Process(
            root / f"n{number}",
            address,
            [each for each in addresses if each != address],
            via=network.via(address) if network else None,
            **arguments,
        )
        for number, address in enumerate(addresses)
    ] or [Process(root / "n0", **arguments)]
    try:
        start_all(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def cut_power(nodes: list[Process], rng: random.Random) -> None:
    """All machines lose their power at once: what was not synced to the write-ahead logs is gone, or was torn."""
    for node in nodes:
        node.pause()
    for node in nodes:
        node.kill()
    for node in nodes:
        wal = node.path / f"{FILE_NAME}-wal"
        data, (salts, frames, page_bytes) = (
            wal.read_bytes(),
            struct.unpack("<8s2I", (node.path / "synced").read_bytes()),
        )
        length = 32 + frames * (24 + page_bytes) if data[16:24] == salts else 32
        torn = [b"", data[length : length + rng.randrange(10_000)], bytes(512 * rng.randrange(40)), rng.randbytes(5000)]
        wal.write_bytes(data[:length] + rng.choice(torn))


def start_all(nodes: Iterable[Process]) -> None:
    """Start those that do not run, all at once, and wait until all are ready."""
    nodes = list(nodes)
    for node in nodes:
        if not node.alive:
            node.kill()
            node.start(wait=False)
    ready = [node.submit("wait_ready", 30) for node in nodes]
    wait_for(ready)
    for each in ready:
        assert each.result().result(), "ready within 30 s"


def leader(nodes: Iterable[Process]) -> Process:
    """The node that all others that run say leads."""
    found: list[Process] = []

    def agreed() -> bool:
        states = {node: node.status() for node in nodes if node.alive and not node.paused}
        found[:] = [node for node, status in states.items() if status.get("is_leader")]
        return len(found) == 1 and {status.get("leader") for status in states.values()} == {found[0].address}

    wait_until(agreed, "all nodes agree on a leader")
    return found[0]


def equal_copies(nodes: list[Process]) -> dict[Any, Any]:
    """The dict, once a barrier has passed on every node; fails unless all copies are equal, in order as well."""
    for node in nodes:
        node.do("barrier", timeout=30)
    copies = [list(node.snapshot().items()) for node in nodes]
    for node, copy in zip(nodes, copies, strict=True):
        assert copy == copies[0], f"{node.path} differs from {nodes[0].path}"
    return dict(copies[0])

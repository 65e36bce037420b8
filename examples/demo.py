"""A dict that survives the death of its leader: `make demo`, or `python -m examples.demo`.

Three nodes, each a process of its own on this machine, share one dict. The whole Unicode character database goes in;
halfway, the leader is killed with SIGKILL. The exit status is 0 only if every entry is on every node at the end.

This file is the story. What the nodes do is in `demo_node.py`, and that is where `ReplicatedDict` is used.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/demo.py`

from examples.demo_node import characters

PIECE = 1_000
"""Entries in one `update()`, which is one atomic write."""

PATIENCE = 120
"""Seconds after which something is badly wrong, and the demo gives up."""


def main() -> int:
    for reason in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(reason, stop)
    signal.alarm(PATIENCE)
    with TemporaryDirectory(prefix="replidict-demo-") as directory:
        addresses = free_addresses(3)
        nodes = [Node(f"n{number}", address, addresses, Path(directory)) for number, address in enumerate(addresses, 1)]
        try:
            return tell(nodes)
        finally:
            for node in nodes:
                node.kill()


def tell(nodes: list[Node]) -> int:
    begin = time.monotonic()
    say("Three nodes, three processes")
    for node in nodes:
        node.start()
        say(f"  {node.name}  {node.address}  process {node.pid}")
    leader = find_leader(nodes)
    say(f"  {leader.name} is the leader, {time.monotonic() - begin:.1f} s after the start")

    say("\nWhat is written on one node can be read on all")
    write(nodes[0], "hello", "distributed")
    for node in nodes:
        read(node, "hello")

    total = len(characters())
    half = total // PIECE // 2 * PIECE
    say(f"\nEvery character of Unicode {unicodedata.unidata_version} that has a name, written to {leader.name}")
    loading = load(leader, 0, half)

    killed = find_leader(nodes)
    survivors = [node for node in nodes if node is not killed]
    killed.send("update", dict(characters()[half : half + PIECE]))
    time.sleep(0.02)
    died_at = time.monotonic()
    killed.kill()
    say(f"\nkill -9 {killed.pid}: {killed.name}, the leader, is dead, in the middle of a write")
    write(survivors[0], "hello", "still works")
    without_leader = time.monotonic() - died_at
    say(f"  {find_leader(survivors).name} is the leader now; this write took {without_leader:.2f} s, with the election")

    say(f"\nThe rest, written to {survivors[0].name}, from the piece on that nobody confirmed")
    loading += load(survivors[0], half, total)

    say(f"\n{killed.name} is started again, on what is left on its disk")
    killed.start()
    back_at = time.monotonic()
    catch_up(killed)
    caught_up = time.monotonic() - back_at
    read(killed, "hello")

    say("\nEach node compares its dict with the source: every key, every value, and the order")
    for node in nodes:
        catch_up(node)
        node.send("compare", {"hello": "still works"})
    wanted = {"entries": total + 1, "missing": 0, "different": 0, "unexpected": 0, "order": "the same"}
    results = [node.receive() for node in nodes]
    for node, result in zip(nodes, results, strict=True):
        say(f"  {node.name}  " + ", ".join(f"{what} {value}" for what, value in result.items()))

    say("\nThis run, on this machine")
    say(f"  load              {total / loading:12,.0f}  entries/s, one piece of {PIECE:,} after the other")
    say(f"  without a leader  {without_leader:12.2f}  s, from the kill to the next write that returned")
    say(f"  catch-up          {caught_up:12.2f}  s, from the start of the process to an up-to-date copy")
    say(f"  size on disk      {max(node.size() for node in nodes) / 1e6:12.1f}  MB a node")
    say(f"  everything        {time.monotonic() - begin:12.1f}  s")
    if any(result != wanted for result in results):
        say(f"\nFAILED: each node should have {wanted}")
        return 1
    say(f"\nAll {total + 1:,} entries are on all {len(nodes)} nodes.")
    return 0


class Node:
    """A process that runs `demo_node.py`, and the pipes to it."""

    def __init__(self, name: str, address: str, addresses: list[str], directory: Path) -> None:
        self.name = name
        self.address = address
        self._directory = directory / name
        self._arguments = [str(self._directory), address, *(each for each in addresses if each != address)]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("demo_node.py")), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for the demo, which ends its nodes itself
        )

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is closed, nobody is told."""
        if self._process is not None:
            with self._process:
                self._process.kill()

    def ask(self, *command: Any) -> Any:
        self.send(*command)
        return self.receive()

    def send(self, *command: Any) -> None:
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            sys.exit(f"{self.name} has ended")

    def receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} has ended")
        answer = json.loads(line)
        if "error" in answer:
            sys.exit(f"{self.name} failed: {answer['error']}")
        return answer["result"]

    def size(self) -> int:
        return sum(file.stat().st_size for file in self._directory.iterdir())


def write(node: Node, key: str, value: str) -> None:
    node.ask("set", key, value)
    say(f"  {node.name}  d[{key!r}] = {value!r}")


def read(node: Node, key: str) -> None:
    catch_up(node)
    say(f"  {node.name}  d[{key!r}] is {node.ask('get', key)!r}")


def catch_up(node: Node) -> None:
    if not node.ask("catch up", 30):
        sys.exit(f"{node.name} is not up to date after 30 s")


def find_leader(nodes: list[Node]) -> Node:
    """The node that all of these agree on, as soon as they do. (A lone dict has no need to ask: it waits by itself.)"""
    while True:
        leaders = {node.ask("status")["leader"] for node in nodes}
        for node in nodes:
            if leaders == {node.address}:
                return node
        time.sleep(0.02)


def load(node: Node, start: int, end: int) -> float:
    """Write the characters in this range, with a bar on a terminal, else a line for each tenth. Returns the seconds."""
    begin, total, terminal = time.monotonic(), len(characters()), sys.stdout.isatty()
    for first in range(start, end, PIECE):
        last = min(first + PIECE, end)
        node.ask("update", dict(characters()[first:last]))
        if terminal or last == end or last * 10 // total > first * 10 // total:
            speed = (last - start) / (time.monotonic() - begin)
            bar = "#" * (30 * last // total)
            line = f"  [{bar:.<30}] {100 * last // total:3}%  {last:8,} of {total:,}  {speed:8,.0f}/s"
            print(line, end="\r" if terminal and last < end else "\n", flush=True)
    return time.monotonic() - begin


def free_addresses(count: int) -> list[str]:
    """Ports that are free, and that no outgoing connection is given: a node that comes back needs its own again."""
    found: list[str] = []
    for port in random.sample(range(20_000, 30_000), 1_000):
        if len(found) == count:
            return found
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(f"127.0.0.1:{port}")
    sys.exit("no free ports from 20000 to 30000")


def say(line: str) -> None:
    print(line, flush=True)


def stop(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not keep the nodes alive
    sys.exit(f"\nstopped: {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())

"""Clusters for tests: several nodes in this process, on loopback ports that nobody uses.

`REPLIDICT_TEST_MODE=secret` (or `tls`) has all clusters of a run protected so, but those that choose a mode themselves.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from replidict import ReplicatedDict
from replidict.node.raft_node import RaftNode
from replidict.raft.engine import Engine
from replidict.server.open_node import Host
from replidict.server.shared_node import SharedNode
from replidict.testing.hosts import host_of as host_of
from replidict.testing.ports import free_addresses as free_addresses
from replidict.transport.links import TcpTransport
from tests.wire_support import SECRET, Certificates

Dict = ReplicatedDict[Any, Any]


@lru_cache(1)
def credentials() -> dict[str, Any]:
    """What the nodes of a cluster are given that chooses no mode itself."""
    mode = os.environ.get("REPLIDICT_TEST_MODE", "plain")
    if mode == "tls":
        folder = TemporaryDirectory()
        atexit.register(folder.cleanup)
        return {"tls": Certificates(Path(folder.name)).good}
    assert mode in ("plain", "secret"), f"REPLIDICT_TEST_MODE={mode}"
    return {"secret": SECRET} if mode == "secret" else {}


@contextmanager
def alone(path: Path, kind: str, **arguments: Any) -> Iterator[Dict]:
    """A single node without a network; or, if the kind is "attached", the dict of another process's node, as far as
    that shows: one that attached to it."""
    with ExitStack() as opened:
        shared = kind == "attached"
        if shared:
            opened.enter_context(ReplicatedDict[Any, Any](path, share=True, **arguments))
        yield opened.enter_context(ReplicatedDict[Any, Any](path, share=shared, **arguments))


def run_by(d: Dict) -> Host:
    """What this dict's process runs, whether or not it is shared with others."""
    host = d._host._host if isinstance(d._host, SharedNode) else d._host
    assert host is not None
    return host


def node_of(d: Dict) -> RaftNode:
    """The node that this dict's process runs."""
    return run_by(d).node


def wire_of(node: Dict) -> TcpTransport:
    """The transport of a node that has a network."""
    wire = host_of(node).node.engine.transport
    assert isinstance(wire, TcpTransport)
    return wire


def open_member(root: Path, addresses: list[str], number: int, **arguments: Any) -> Dict:
    """Open the node of that number in a cluster founded by all addresses."""
    address = addresses[number]
    peers = [each for each in addresses if each != address]
    if not {"secret", "tls", "insecure"} & arguments.keys():
        arguments |= credentials()
    return ReplicatedDict(root / f"n{number}", address=address, peers=peers, **arguments)


@contextmanager
def cluster(root: Path, count: int = 3, **arguments: Any) -> Iterator[list[Dict]]:
    """So many nodes, ready; closed at the end."""
    addresses = free_addresses(count)
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(root, addresses, number, **arguments)) for number in range(count)]
        for node in nodes:
            assert node.wait_ready(30)
        yield nodes


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
    """Wait for a condition; the test fails, saying for what, when it does not come true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:g} s in vain until {what}"
        time.sleep(0.005)


def leader_of(nodes: list[Dict]) -> Dict:
    """The leader, once there is exactly one and all know it."""
    found: list[Dict] = []

    def agreed() -> bool:
        found[:] = [node for node in nodes if node.status().is_leader]
        return len(found) == 1 and {node.status().leader for node in nodes} == {found[0].status().address}

    wait_until(agreed, "all nodes agree on a leader")
    return found[0]


def wait_for_leader(nodes: Iterable[Dict], seconds: float = 600.0) -> None:
    """From now on these wait so long for a leader before they elect another one: however slow this machine is, an
    election has to be caused."""
    for node in nodes:
        raft_node = node_of(node)

        def change(engine: Engine = raft_node.engine) -> None:
            engine.state.options = replace(engine.options, election_timeout=seconds)
            engine.elections._put_off()

        raft_node.call(change).result()

"""The systems under test as clusters of members, which can be asked who leads, and killed and started one by one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typing_extensions import override

from benchmarks import etcd, hashicorp
from benchmarks.processes import Child, Program, cpu_seconds, free_addresses, wait_until


class Member(ABC):
    """One node, and the client that talks to it."""

    _client: Child | None = None

    @property
    def client(self) -> Child:
        assert self._client is not None, "the member runs"
        return self._client

    @property
    def alive(self) -> bool:
        return self._client is not None

    @property
    @abstractmethod
    def node_pid(self) -> int:
        """Of the process that is the node."""

    def signal(self, number: int) -> None:
        """Send the process that is the node a signal."""
        os.kill(self.node_pid, number)

    @abstractmethod
    def start(self, **more: Any) -> None:
        """Start it, without waiting for it."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL. Does nothing if it does not run."""


class Embedded(Member):
    """A node in the same process as its client: replidict, stock PySyncObj, diskcache, hashicorp/raft."""

    def __init__(self, kind: str, config: dict[str, Any], program: Path | None = None) -> None:
        self._kind, self._config, self._program = kind, config, program

    @property
    @override
    def node_pid(self) -> int:
        return self.client.pid

    def beside(self, **more: Any) -> Child:
        """Another process with the same arguments."""
        return Child(self._kind, {**self._config, **more}, self._program)

    @override
    def start(self, **more: Any) -> None:
        self._client = Child(self._kind, {**self._config, **more}, self._program)

    @override
    def kill(self) -> None:
        if self._client is not None:
            self._client.kill()
            self._client = None


class EtcdMember(Member):
    """A server, and a client of it in a process of its own."""

    def __init__(self, command: list[str], endpoint: str, output: Path) -> None:
        self._command, self._endpoint, self._output = command, endpoint, output
        self._server: Program | None = None

    @property
    @override
    def node_pid(self) -> int:
        assert self._server is not None, "the member runs"
        return self._server.pid

    @override
    def start(self, **more: Any) -> None:
        self._server = Program(self._command, self._output)
        self._client = Child("etcd", {"endpoint": self._endpoint, **more})

    @override
    def kill(self) -> None:
        # The server first: it is its death that is timed.
        for each in (self._server, self._client):
            if each is not None:
                each.kill()
        self._server = self._client = None


class Cluster:
    """Members that form one cluster (or a single one)."""

    def __init__(self, system: str, members: list[Member]) -> None:
        self.system, self.members = system, members

    def start(self) -> None:
        """Start all, and wait until they agree on a leader and take writes."""
        for member in self.members:
            member.start()
        for member in self.members:
            member.client.greeting.result(60)
        self.leader().client.call("writes", threads=1, seconds=0.2)

    def leader(self) -> Member:
        """The one that all that run say leads."""
        found: list[Member] = []

        def agreed() -> bool:
            states = {member: member.client.call("status") for member in self.members if member.alive}
            found[:] = [member for member, state in states.items() if state["is_leader"]]
            return len(found) == 1 and len({state["leader"] for state in states.values()}) == 1

        wait_until(agreed, f"the members of {self.system} agree on a leader", 60)
        return found[0]

    def followers(self) -> list[Member]:
        """Those that run and do not lead."""
        leader = self.leader()
        return [member for member in self.members if member.alive and member is not leader]

    def at(self, place: str) -> Child:
        """The client at the leader, or at a follower."""
        return self.leader().client if place == "leader" else self.followers()[0].client

    def cpu_seconds(self) -> float:
        """What its nodes have used of a processor so far, in user and system mode."""
        return sum(cpu_seconds(member.node_pid) for member in self.members)

    def kill(self) -> None:
        for member in self.members:
            member.kill()


def replidict_members(root: Path, count: int, **config: Any) -> list[Member]:
    addresses = free_addresses(count) if count > 1 else [None]
    return [
        Embedded(
            "replidict",
            {
                "path": str(root / f"n{number}"),
                "address": address,
                "peers": [each for each in addresses if each != address],
                **config,
            },
        )
        for number, address in enumerate(addresses)
    ]


def stock_members(root: Path, count: int, **config: Any) -> list[Member]:
    addresses = free_addresses(count)
    return [
        Embedded(
            "stock",
            {
                "path": str(root / f"n{number}"),
                "address": address,
                "peers": [each for each in addresses if each != address],
                **config,
            },
        )
        for number, address in enumerate(addresses)
    ]


def raft_members(root: Path, count: int) -> list[Member]:
    program = root / "hashicorp-raft"
    hashicorp.build(program)
    addresses = free_addresses(count)
    return [
        Embedded(
            "raft",
            {
                "path": str(root / f"n{number}"),
                "address": address,
                "peers": [each for each in addresses if each != address],
            },
            program,
        )
        for number, address in enumerate(addresses)
    ]


def etcd_members(root: Path, count: int) -> list[Member]:
    addresses = free_addresses(2 * count)
    clients, peers = addresses[:count], addresses[count:]
    cluster = {f"n{number}": peer for number, peer in enumerate(peers)}
    return [
        EtcdMember(etcd.server_command(name, str(root / name), client, peer, cluster), client, root / f"{name}.output")
        for (name, peer), client in zip(cluster.items(), clients, strict=True)
    ]


def disk_cache_members(root: Path, count: int, **config: Any) -> list[Member]:
    return [Embedded("diskcache", {"path": str(root / f"n{number}"), **config}) for number in range(count)]


_MEMBERS: dict[str, Callable[..., list[Member]]] = {
    "replidict": replidict_members,
    "stock": stock_members,
    "etcd": etcd_members,
    "raft": raft_members,
    "diskcache": disk_cache_members,
}


@contextmanager
def cluster(directory: Path, system: str, count: int = 3, **config: Any) -> Iterator[Cluster]:
    """A running cluster in a directory of its own; nothing of it is left at the end."""
    with TemporaryDirectory(prefix=f"{system}-", dir=directory) as root:
        found = Cluster(system, _MEMBERS[system](Path(root), count, **config))
        try:
            found.start()
            yield found
        finally:
            found.kill()

"""The cluster in each of the three modes: plain on loopback, with a shared secret, with TLS."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from replidict import Options, ReplicatedDict, ReplidictError, SecurityError
from replidict.security import Mode
from replidict.storage import state_table
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, open_member, wait_until
from tests.wire_support import MODES, SECRET, Certificates


@pytest.fixture
def credentials(certificates: Certificates) -> Callable[[Mode], dict[str, Any]]:
    given: dict[Mode, dict[str, Any]] = {
        "plain": {"insecure": False},
        "secret": {"secret": SECRET},
        "tls": {"tls": certificates.good},
    }
    return lambda mode: given[mode]


Credentials = Callable[[Mode], dict[str, Any]]


def all_hold(nodes: list[Dict], expected: dict[Any, Any]) -> None:
    """Every node's copy is this once it is current, in this order."""
    for node in nodes:
        node.barrier(timeout=30)
        assert list(node.items()) == list(expected.items())


def warnings(caplog: pytest.LogCaptureFixture, node: Dict) -> list[str]:
    address = node.status().address
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line for line in lines if line.startswith(f"{address}: ")]


@pytest.mark.parametrize("mode", MODES)
def test_founding_writing_reading(tmp_path: Path, mode: Mode, credentials: Credentials) -> None:
    """Three founders become a cluster; a write on any of them is in every linearizable read that follows, anywhere."""
    with cluster(tmp_path, **credentials(mode)) as nodes:
        leader_of(nodes)
        assert len({node.status().cluster_id for node in nodes}) == 1
        for number, writer in enumerate(nodes):
            writer[f"k{number}"] = {"by": number}
            for reader in nodes:
                assert reader.get(f"k{number}", linearizable=True) == {"by": number}
        all_hold(nodes, {f"k{number}": {"by": number} for number in range(3)})


@pytest.mark.parametrize("mode", MODES)
def test_without_the_leader_and_with_it_again(tmp_path: Path, mode: Mode, credentials: Credentials) -> None:
    """When the leader goes the others go on, and when it is back it catches up from the log; so do all after a stop."""
    addresses = free_addresses(3)
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses, n, **credentials(mode))) for n in range(3)]
        expected = {}
        for number, node in enumerate(nodes):
            node[f"before {number}"] = expected[f"before {number}"] = number
        gone = addresses.index(leader_of(nodes).status().address or "")
        nodes[gone].close()
        others = [node for node in nodes if node is not nodes[gone]]
        assert leader_of(others).status().term > 1
        for number, node in enumerate(others):
            node.set(f"without {number}", number, timeout=30)
            expected[f"without {number}"] = number
        nodes[gone] = stack.enter_context(open_member(tmp_path, addresses, gone, **credentials(mode)))
        all_hold(nodes, expected)
        assert host_of(nodes[gone]).node.engine.snapshots.installed == 0
        for node in nodes:
            node.close()
        nodes = [stack.enter_context(open_member(tmp_path, addresses, n, **credentials(mode))) for n in range(3)]
        all_hold(nodes, expected)


@pytest.mark.parametrize("mode", MODES)
def test_catching_up_by_snapshot(
    tmp_path: Path, mode: Mode, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was away for longer than the log goes back gets a snapshot of many pieces, and all is there."""
    monkeypatch.setattr(state_table, "GATHER_ENTRIES", 8)
    addresses = free_addresses(3)
    given = {**credentials(mode), "options": Options(log_retain=10)}
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses, n, **given)) for n in range(3)]
        nodes[0]["first"] = 1
        nodes[2].barrier(timeout=30)
        nodes[2].close()
        expected: dict[Any, Any] = {"first": 1}
        for number in range(40):
            nodes[number % 2].set(number, bytes(40_000), timeout=30)
            expected[number] = bytes(40_000)
        wait_until(lambda: all(node.status().log_entries < 30 for node in nodes[:2]), "the log is compacted")
        nodes[2] = stack.enter_context(open_member(tmp_path, addresses, 2, **given))
        all_hold(nodes, expected)
        assert host_of(nodes[2]).node.engine.snapshots.installed >= 1


@pytest.mark.parametrize(("mode", "odd"), list(permutations(MODES, 2)))
def test_modes_do_not_mix(
    tmp_path: Path, mode: Mode, odd: Mode, credentials: Credentials, caplog: pytest.LogCaptureFixture
) -> None:
    """A node in another mode than its peers is refused, with what to do; the others serve without it."""
    addresses = free_addresses(3)
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses, n, **credentials(mode))) for n in range(2)]
        stranger = stack.enter_context(open_member(tmp_path, addresses, 2, **credentials(odd)))
        nodes[0].set("k", 1, timeout=30)

        def told() -> bool:
            return all(
                any("give every node the same tls= or secret=" in line for line in warnings(caplog, each))
                for each in nodes
            )

        wait_until(told, "both have refused it, and said what to do")
        nodes[1].set("k", 2, timeout=30)
        assert nodes[0].get("k", linearizable=True, timeout=30) == 2
        status = stranger.status()
        assert (status.connected, status.term, status.leader, status.applied_index) == ((), 0, None, 0)
        assert all(status.address not in node.status().connected for node in nodes)


@pytest.mark.parametrize("peers", [["192.0.2.8:7000"], []])
def test_off_loopback_nothing_is_touched_without_security(tmp_path: Path, peers: list[str]) -> None:
    """Off loopback, without tls= or secret=, the constructor raises `SecurityError` and has not made the directory."""
    with pytest.raises(SecurityError, match=r"secret=.*tls=.*insecure=True"):
        ReplicatedDict(tmp_path / "d", address="192.0.2.7:7000", peers=peers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["secret", "tls"])
def test_off_loopback_with_security(tmp_path: Path, mode: Mode, credentials: Credentials) -> None:
    """With a secret or TLS an address off loopback passes; that this machine has no such address is another error."""
    with pytest.raises(ReplidictError, match="this machine has no such address") as caught:
        ReplicatedDict(tmp_path / "d", address="192.0.2.7:7000", peers=["192.0.2.8:7000"], **credentials(mode))
    assert not isinstance(caught.value, SecurityError)


@pytest.mark.parametrize("found", [["127.0.1.1"], ["127.0.1.1", "127.0.0.1"]], ids=["Debian's", "two"])
def test_a_name_that_only_this_machine_reaches_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, found: list[str]
) -> None:
    """A node whose own host name stands for loopback says so when it is opened, and what to mend."""
    real = socket.getaddrinfo

    def lookup(host: str, *more: Any, **how: Any) -> Any:
        return [each for ip in (found if host == "me.test" else [host]) for each in real(ip, *more, **how)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    port = free_addresses(1)[0].rpartition(":")[2]
    with ReplicatedDict[str, int](tmp_path / "1", address=f"me.test:{port}", secret=SECRET):
        lines = [record.getMessage() for record in caplog.records if "no other machine reaches" in record.getMessage()]
    assert len(lines) == 1 and f"me.test stands for {', '.join(found)}" in lines[0]
    caplog.clear()
    with ReplicatedDict[str, int](tmp_path / "2", address=f"127.0.0.1:{port}", secret=SECRET):
        assert not [record for record in caplog.records if "reaches" in record.getMessage()]


def test_insecure_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With insecure=True a cluster off loopback is founded and serves, and each node says once what that means."""
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *more: Any, **how: Any) -> Any:
        return real("127.0.0.1" if host.endswith(".test") else host, port, *more, **how)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    addresses = [f"n{n}.test:{each.rpartition(':')[2]}" for n, each in enumerate(free_addresses(3))]
    with pytest.raises(SecurityError):
        open_member(tmp_path, addresses, 0)
    assert list(tmp_path.iterdir()) == [] and caplog.records == []
    with ExitStack() as stack:
        nodes = [stack.enter_context(open_member(tmp_path, addresses, n, insecure=True)) for n in range(3)]
        for number, node in enumerate(nodes):
            node.set(number, number, timeout=30)
        all_hold(nodes, {0: 0, 1: 1, 2: 2})
    said = [record.getMessage() for record in caplog.records if "insecure=True" in record.getMessage()]
    assert [line.split()[0] for line in said] == addresses

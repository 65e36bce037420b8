"""Guests of running nodes: what they ask is done, whatever goes wrong is said, and nothing disturbs the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replidict.client import Client
from replidict.codec import decode, encode, encode_key
from replidict.raft import asks
from replidict.security import Mode
from tests.clusters import Dict, cluster, leader_of
from tests.wire_support import MODES, Certificates, given


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def client_of(node: Dict, mode: Mode, certificates: Certificates, **how: Any) -> Client:
    address = str(node.status().address)
    return Client(address, security=certificates.security(mode), **how)


def exercise(client: Client, node: Dict, name: str) -> None:
    """All that a guest can do with one key."""
    key = encode_key(name)
    assert client.ask(lambda i, t: asks.Get(i, t, key, True), asks.Value).value is None
    revision = client.ask(lambda i, t: asks.Set(i, t, key, encode([1])), asks.Stored).revision
    assert node.versioned(name) == ([1], revision)
    value = client.ask(lambda i, t: asks.Get(i, t, key, False), asks.Value)
    assert (decode(value.value or b""), value.revision) == ([1], revision)
    assert not client.ask(lambda i, t: asks.Add(i, t, key, encode(2)), asks.Held).held
    assert not client.ask(lambda i, t: asks.Replace(i, t, key, encode(2), revision + 9), asks.Held).held
    assert client.ask(lambda i, t: asks.Replace(i, t, key, encode(2), revision), asks.Held).held
    assert node[name] == 2
    assert client.ask(lambda i, t: asks.Delete(i, t, key), asks.Held).held
    assert not client.ask(lambda i, t: asks.Delete(i, t, key), asks.Held).held
    assert client.ask(lambda i, t: asks.Add(i, t, key, encode(3)), asks.Held).held
    assert node[name] == 3


@pytest.mark.parametrize("mode", MODES)
def test_what_guests_ask_is_done(tmp_path: Path, mode: Mode, certificates: Certificates) -> None:
    """In every mode, of every node: reads, writes and conditions do what the dict does, and are seen by it."""
    with cluster(tmp_path, **given(mode, certificates)) as nodes:
        for number, node in enumerate(nodes):
            with client_of(node, mode, certificates, timeout=30) as client:
                assert client.cluster_id == node.status().cluster_id
                exercise(client, node, f"k{number}")
                assert client.ask(asks.GetStatus, asks.StatusIs).status.address == client.address
                members = client.ask(asks.GetMembers, asks.MembersAre).members
                assert [m.address for m in members] == [m.address for m in nodes[0].members()]
        assert leader_of(nodes).get("k1", linearizable=True) == 3

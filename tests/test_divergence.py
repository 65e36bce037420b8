"""A replica that differs is found, and stands aside (promise 15): whole nodes whose rows or commands were changed."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from replidict import ReplicatedDict, StorageError
from replidict.command.main import main
from replidict.machine.codec import encode, encode_key
from replidict.machine.outcomes import Outcome
from replidict.raft import divergence
from replidict.storage import records
from tests.clusters import Dict, cluster, credentials, leader_of, open_member, wait_until
from tests.simulator.divergence_scenarios import STORIES
from tests.simulator.guards import STORY_OPTIONS
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import Scenario

FOUND_WITHIN = 60.0
"""Seconds: ample on a machine that has much to do."""


def change_row(directory: Path, key: str, value: object, *, digest: bool) -> None:
    """Give a key another value in the file of a node that does not run, with a right checksum. With `digest=False` the
    file does not know the digest of the state, as after a kill."""
    with closing(sqlite3.connect(directory / "replidict.db", isolation_level=None)) as db:
        position, revision = db.execute(
            "SELECT position, revision FROM state WHERE key = ?", [encode_key(key)]
        ).fetchone()
        crc = records.state_crc(position, encode_key(key), encode(value), revision)
        db.execute("UPDATE state SET value = ?, crc = ? WHERE position = ?", (encode(value), crc, position))
        if not digest:
            (data,) = db.execute("SELECT data FROM fact WHERE name = 'applied'").fetchone()
            applied = msgspec.structs.replace(msgspec.msgpack.decode(data, type=records.Applied), digest=b"")
            data = msgspec.msgpack.encode(applied)
            db.execute(records.PUT_FACT, ("applied", data, records.fact_crc("applied", data)))


def failure_of(node: Dict) -> StorageError:
    """Why a node has stopped, as every call says; it stops within a while."""
    wait_until(lambda: node.status().role == "stopped", "the node stops", FOUND_WITHIN)
    with pytest.raises(StorageError) as raised:
        _ = node["key"]
    return raised.value


def same_digest(nodes: list[Dict]) -> bool:
    """Whether all have made their digest at the same index, and it is one."""
    return len({(status.digest, status.digest_index) for status in (node.status() for node in nodes)}) == 1


def misapply(node: Dict) -> None:
    """Have a node apply its commands wrongly from now on."""
    machine = node._host.node.machine
    apply = machine.apply

    def wrong(index: int, command: bytes) -> Outcome:
        return apply(index, command.replace(encode("right"), encode("wrong")))

    machine.apply = wrong  # type: ignore[method-assign]


def test_members_show_the_same_digest(tmp_path: Path) -> None:
    """Every node's status has the digest of its state, which becomes that of all others; so do the members."""
    with cluster(tmp_path) as nodes:
        before = leader_of(nodes).status().digest
        nodes[0]["key"] = "value"
        index = nodes[0].status().applied_index
        wait_until(lambda: same_digest(nodes) and nodes[0].status().digest_index >= index, "the digests are made")
        assert len(nodes[0].status().digest) == 32 and nodes[0].status().digest != before
        wait_until(lambda: len({member.digest for member in nodes[0].members()}) == 1, "the leader has heard them")
        assert nodes[1].members()[0].digest == nodes[1].status().digest


def test_a_changed_row_is_found_when_its_file_is_opened(tmp_path: Path) -> None:
    """A node that was closed refuses a file with a changed row, though its checksum is right; `inspect` says so."""
    d: Dict = ReplicatedDict(tmp_path / "data")
    with d:
        d["key"] = "value"
    change_row(tmp_path / "data", "key", "other", digest=True)
    with pytest.raises(StorageError, match=r"diverged from the state that this node had at entry \d+ .* join anew"):
        ReplicatedDict(tmp_path / "data")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "data")])
    assert done.exit_code == 5 and "diverged" in done.output


def test_a_follower_that_differs_stops_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row of one node of three was changed: with the next write it is found. That node stops, says why, says it again
    when it is started anew, and is well after it was removed and has joined; the others go on."""
    with cluster(tmp_path) as nodes:
        nodes[0]["key"] = "value"
        leader = leader_of(nodes)
        number = next(number for number, node in enumerate(nodes) if node is not leader)
        addresses = [str(node.status().address) for node in nodes]
        nodes[number].barrier()
        nodes[number].close()
        change_row(tmp_path / f"n{number}", "key", "other", digest=False)
        with open_member(tmp_path, addresses, number) as odd:
            leader["another"] = 1
            error = failure_of(odd)
            assert "diverged" in str(error) and "at entry " in str(error)
            assert f"remove {addresses[number]} from the cluster" in str(error) and "join=" in str(error)
        with pytest.raises(StorageError, match=r"must not be opened any more.*diverged"):
            open_member(tmp_path, addresses, number)
        done = CliRunner().invoke(main, ["inspect", str(tmp_path / f"n{number}")])
        assert done.exit_code == 5 and "diverged" in done.output
        leader["another"] = 2
        leader.remove_peer(addresses[number])
        again: Dict = ReplicatedDict(
            tmp_path / "new", address=addresses[number], join=addresses[1 - min(number, 1)], **credentials()
        )
        with again:
            leader["another"] = 3
            others = [node for each, node in enumerate(nodes) if each != number]
            wait_until(lambda: same_digest([*others, again]) and again["another"] == 3, "it is well")
            assert again["key"] == "value"
    assert any("has diverged" in record.message and record.levelno == logging.ERROR for record in caplog.records)


def test_a_leader_that_differs_stops(tmp_path: Path) -> None:
    """The leader applies a command in another way than the two others: it stops, and they go on with another leader."""
    with cluster(tmp_path) as nodes:
        leader = leader_of(nodes)
        misapply(leader)
        leader["key"] = "right"
        assert "diverged" in str(failure_of(leader))
        others = [node for node in nodes if node is not leader]
        others[0]["key"] = "another"
        assert others[1].get("key", linearizable=True) == "another"


def test_two_that_differ_go_on_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two nodes that differ nobody knows which one is right: both go on, count it and log an error."""
    monkeypatch.setattr(divergence, "PATIENCE", 0.1)
    with cluster(tmp_path, 2) as nodes:
        misapply(nodes[1])
        nodes[0]["key"] = "right"
        wait_until(lambda: all(node.status().differing == 1 for node in nodes), "both know it", FOUND_WITHIN)
        wait_until(
            lambda: any("no majority of the voters agrees" in each.message for each in caplog.records), "it is said"
        )
        nodes[1]["key"] = "right"
        assert nodes[0].get("key", linearizable=True) == "right"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("story", "nodes"), STORIES, ids=[story.__name__ for story, _ in STORIES])
def test_who_differs_stops_and_nobody_else(story: Scenario, nodes: int, seed: int) -> None:
    """In simulated time: rows flipped on a follower, on two of five and on the leader, commands applied in another way
    by the leader or a follower. Whoever differs stops within ten seconds of the next write, and nobody else does."""
    with new_cluster(seed, nodes, STORY_OPTIONS) as simulated:
        story(simulated)

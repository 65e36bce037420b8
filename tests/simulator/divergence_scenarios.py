"""Stories of a replica that differs: a row that is not what was written, with a right checksum, or a command applied in
another way. The seed draws which row of which node, and what becomes of it.

Who differs is not held against the others by the checks of states; what the stories ask for is that it stops, in time,
and that nobody else does.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence

import msgspec

from replidict.machine.codec import encode
from replidict.machine.outcomes import Outcome
from replidict.storage import records
from replidict.storage.directory import DIVERGED
from replidict.testing.simulator.machine import Machine
from replidict.testing.simulator.violation import Violation
from tests.simulator.cluster import Cluster
from tests.simulator.scenarios import a_leader, put, until

WITHIN = 10.0
"""Simulated seconds after a write within which who differs must have stopped."""


def _some_content(cluster: Cluster) -> tuple[Machine, list[Machine]]:
    """A cluster with a few keys: its leader, and the others."""
    cluster.start()
    first = a_leader(cluster)
    writes = [put(first, number, key=f"key {number}") for number in range(5)]
    until(cluster, lambda: all(write.result is not None for write in writes), "the keys are stored")
    return a_leader(cluster), [machine for machine in cluster.machines.values() if machine is not first]


def _change_a_row(db: sqlite3.Connection, rng: random.Random) -> None:
    """What is changed has a right checksum afterwards."""
    rows = db.execute("SELECT position, key, value, revision FROM state ORDER BY position").fetchall()
    position, key, value, revision = rng.choice(rows)
    match rng.choice(("value", "revision", "gone")):
        case "value":
            value = encode(f"flipped {rng.random()}")
        case "revision":
            revision -= 1
        case "gone":
            db.execute("DELETE FROM state WHERE position = ?", (position,))
    crc = records.state_crc(position, key, value, revision)
    change = "UPDATE state SET value = ?, revision = ?, crc = ? WHERE position = ?"
    db.execute(change, (value, revision, crc, position))


def _flip(machine: Machine, rng: random.Random) -> None:
    """Change a row of a machine that does not run. What digest the state had is forgotten, as after a crash."""
    db = machine.disk._anchor
    _change_a_row(db, rng)
    (data,) = db.execute("SELECT data FROM fact WHERE name = 'applied'").fetchone()
    (count,) = db.execute("SELECT count(*) FROM state").fetchone()
    applied = msgspec.structs.replace(msgspec.msgpack.decode(data, type=records.Applied), digest=b"", rows=count)
    data = msgspec.msgpack.encode(applied)
    db.execute(records.PUT_FACT, ("applied", data, records.fact_crc("applied", data)))


def _misapply(machine: Machine) -> None:
    """From now on a value is stored in another way."""
    assert machine.node is not None
    state = machine.node.machine
    apply = state.apply

    def wrong(index: int, command: bytes) -> Outcome:
        return apply(index, command.replace(b"value", b"wrong"))

    machine.differs = True
    state.apply = wrong  # type: ignore[method-assign]


def _is_found(cluster: Cluster, odd: Sequence[Machine]) -> None:
    """After one more write who differs stops, leaves a note, and is not missed."""
    well = [machine for machine in cluster.machines.values() if machine not in odd]
    write = put(well[0], 99)
    until(cluster, lambda: all(machine.node is None for machine in odd), "who differs stops", WITHIN)
    for machine in odd:
        if not (machine.directory / DIVERGED).exists():
            raise Violation("divergence", f"{machine.address} stopped and left no note")
    a_leader(cluster)
    cluster.loop.run_until(cluster.loop.now + 5)
    if stopped := [machine.address for machine in well if machine.node is None]:
        raise Violation("divergence", f"{stopped} stopped, too")
    until(cluster, lambda: write.result is not None, "the write is done")


def _flip_followers(cluster: Cluster, count: int) -> None:
    rng = random.Random(cluster.seed)
    _, others = _some_content(cluster)
    odd = rng.sample(others, count)
    for machine in odd:
        machine.close()
        _flip(machine, rng)
        machine.differs = True
        machine.start()
    _is_found(cluster, odd)


def a_row_of_a_follower_is_flipped(cluster: Cluster) -> None:
    """One of several nodes comes back with a changed row."""
    _flip_followers(cluster, 1)


def rows_of_two_are_flipped(cluster: Cluster) -> None:
    """Two of five nodes come back with a changed row, each with another one."""
    _flip_followers(cluster, 2)


def a_row_of_the_leader_is_flipped(cluster: Cluster) -> None:
    """All nodes go down; the one with a changed row is the first to be elected."""
    rng = random.Random(cluster.seed)
    first, others = _some_content(cluster)
    for machine in (first, *others):
        machine.close()
    _flip(first, rng)
    first.differs = True
    for machine in (first, *others):
        machine.start()
    assert first.node is not None
    engine = first.node.engine
    until(cluster, lambda: all(peer.connected for peer in engine.peers.values()), "it is connected")
    engine.elections._stand(transfer=True)
    first.wake()
    until(cluster, lambda: engine.is_leader, "it leads")
    _is_found(cluster, [first])


def a_leader_applies_in_another_way(cluster: Cluster) -> None:
    """What the leader makes of a write is not what the others make of it."""
    first, _ = _some_content(cluster)
    _misapply(first)
    _is_found(cluster, [first])


def a_follower_applies_in_another_way(cluster: Cluster) -> None:
    """What one follower makes of a write is not what the others make of it."""
    _, others = _some_content(cluster)
    odd = random.Random(cluster.seed).choice(others)
    _misapply(odd)
    _is_found(cluster, [odd])


def a_row_of_a_running_node_is_flipped(cluster: Cluster) -> None:
    """A row is changed in the file of a node that runs, or is gone. Its state is right as long as it runs: it stops all
    the same, before it is started with that file, and says so if it is."""
    rng = random.Random(cluster.seed)
    _some_content(cluster)
    odd = rng.choice(list(cluster.machines.values()))
    assert odd.node is not None
    odd.node.store.flush()
    odd.differs = True
    _change_a_row(odd.disk._anchor, rng)
    until(cluster, lambda: odd.node is None, "the node stops", WITHIN)
    others = [machine for machine in cluster.machines.values() if machine is not odd]
    write = put(others[0], 99)
    until(cluster, lambda: write.result is not None, "the others go on")
    if any(machine.node is None for machine in others):
        raise Violation("divergence", "another node stopped, too")


def nobody_differs_under_load(cluster: Cluster) -> None:
    """Followers are seldom where the leader is: digests are compared all the same, and nobody is found to differ."""
    cluster.network.delay = (0.001, 0.03)
    _some_content(cluster)
    machines = list(cluster.machines.values())
    for number in range(100, 600):
        put(machines[number % len(machines)], number, key=f"key {number % 7}")
        cluster.loop.run_until(cluster.loop.now + 0.01)
    first = a_leader(cluster)
    assert first.node is not None
    compared = [peer.digest for peer in first.node.engine.peers.values()]
    if stopped := [machine.address for machine in machines if machine.node is None]:
        raise Violation("divergence", f"{stopped} stopped")
    if any(digest is None or digest.index < 200 for digest in compared):
        raise Violation("divergence", f"the followers have told {compared}")


STORIES: list[tuple[Callable[[Cluster], None], int]] = [
    (a_row_of_a_follower_is_flipped, 3),
    (rows_of_two_are_flipped, 5),
    (a_row_of_the_leader_is_flipped, 3),
    (a_leader_applies_in_another_way, 3),
    (a_follower_applies_in_another_way, 5),
    (a_row_of_a_running_node_is_flipped, 3),
    (nobody_differs_under_load, 3),
]
"""With how many nodes each is told."""

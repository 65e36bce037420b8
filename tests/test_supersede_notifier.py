"""The others of a cluster that was recovered without them: its new founder tells whoever comes back."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from replidict import RemovedError, ReplicatedDict, ReplidictError, StorageError
from replidict.client.connection import Client
from replidict.options import Options
from replidict.protocol.client_messages import Done, Supersede
from replidict.protocol.log_entry import NUMBER_MAX
from replidict.raft.superseded import PATIENCE, WORD_COUNTS
from replidict.security import Mode
from replidict.server import supersede_notifier
from replidict.testing.simulator.machine import Machine
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, wait_until, wire_of
from tests.simulator.cluster import Cluster
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import a_leader, leader, until
from tests.test_lifecycle import in_child
from tests.test_recover import recover
from tests.wire_support import MODES, Certificates, given

# Python warns of any fork of a program with threads; what becomes of such a child is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class Old:
    """A cluster of three that was written to and stopped; and what is opened afterwards."""

    def __init__(self, root: Path, stack: ExitStack, **arguments: Any) -> None:
        self.root, self._stack, self._arguments = root, stack, arguments
        with cluster(root, **arguments) as nodes:
            nodes[0]["k"] = "before"
            self.addresses = [str(node.status().address) for node in nodes]

    def open(self, number: int, directory: str | None = None, **more: Any) -> Dict:
        how = {"address": self.addresses[number], "timeout": 30.0, **self._arguments, **more}
        return self._stack.enter_context(ReplicatedDict(self.root / (directory or f"n{number}"), **how))

    def has_stopped(self, node: Dict) -> bool:
        return node.status().role == "removed"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def said(caplog: pytest.LogCaptureFixture, level: int, *words: str) -> list[str]:
    """The lines of this level that have all these words."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == level]
    return [line for line in lines if all(word in line for word in words)]


@pytest.mark.parametrize("mode", MODES)
def test_a_majority_that_comes_back_is_told_and_stops(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture, mode: Mode
) -> None:
    """Two of three whose disks were not named start together beside the founder: they never have a leader, stop with
    words for people, and are never opened again. With empty directories they join, at the same addresses."""
    old = Old(tmp_path, stack, **given(mode, Certificates(tmp_path)))
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    founder = old.open(0)
    assert founder.wait_ready(30)
    notifier = host_of(founder)._supersede_notifier
    assert notifier is not None and len(notifier._threads) == 2
    caplog.set_level(logging.INFO)
    back = [old.open(1), old.open(2)]
    wait_until(lambda: all(map(old.has_stopped, back)), "both have stopped")
    new = founder.status().cluster_id
    assert said(caplog, logging.INFO, "leader of term") == []
    for number, node in enumerate(back, 1):
        address = old.addresses[number]
        stopped = rf"{address} was left behind: it has stopped.*goes on as {new}, founded by"
        with pytest.raises(RemovedError, match=stopped):
            node["k"]
        with pytest.raises(RemovedError, match=stopped):
            node["k"] = 1
        assert len(said(caplog, logging.WARNING, old.addresses[0], address, "has come back")) == 1
        node.close()
        for _ in range(2):
            with pytest.raises(RemovedError, match=f"must not be opened any more.*goes on as {new}, founded by"):
                old.open(number)
    founder["k"] = "after"
    caplog.clear()
    for number in (1, 2):
        shutil.rmtree(tmp_path / f"n{number}")
        joined = old.open(number, join=old.addresses[0])
        assert joined.get("k", linearizable=True) == "after"
    wait_until(lambda: all(member.voter for member in founder.members()), "both have a vote")
    assert len(founder.members()) == 3
    clients = wire_of(joined).clients
    called = clients._last
    looked = time.monotonic() + 1
    wait_until(lambda: time.monotonic() > looked, "it would have been called five times if it were still looked for")
    assert clients._last == called
    assert "before the quorum was lost" not in caplog.text


def test_an_old_cluster_that_lives_goes_on(tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """A majority that has a leader is not stopped by a recovery that was a mistake; all three say so, once."""
    old = Old(tmp_path, stack)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    living = [old.open(1), old.open(2)]
    leader_of(living)
    living[0]["k"] = "old"
    founder = old.open(0)
    founder["k"] = "new"
    first, *others = old.addresses

    def complaints(by: str) -> list[str]:
        return [line for line in said(caplog, logging.ERROR, "the old cluster lives") if line.startswith(f"{by}: ")]

    wait_until(
        lambda: all(complaints(address) for address in others) and len(complaints(first)) == 2, "all three say so"
    )
    patience = PATIENCE * Options().election_timeout
    asked = time.monotonic() + patience + 2
    wait_until(lambda: time.monotonic() > asked, "it was told for longer than the patience of who has no leader")
    living[1]["k"] = "still old"
    assert living[0].get("k", linearizable=True) == "still old" and founder.get("k", linearizable=True) == "new"
    assert [len(complaints(address)) for address in old.addresses] == [2, 1, 1]
    for address in others:
        assert len(said(caplog, logging.ERROR, f"at {address} before", "does not stop")) == 1


def test_an_old_member_gone_mad(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an old member answers, the founder's log has few lines about it, none of them long, or two."""
    old = Old(tmp_path, stack)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    mad, asked = old.open(1), []

    def answer(said: Supersede) -> None:
        asked.append(said)
        raise ReplidictError(f"no. {len(asked)}\nforged " + "x" * 1_000_000)

    host_of(mad).node.engine.superseded.hear = answer  # type: ignore[method-assign]
    monkeypatch.setattr(supersede_notifier, "TELL_EVERY", 0.01)
    old.open(0)
    wait_until(lambda: len(asked) > 50, "it was asked and answered")
    lines = said(caplog, logging.ERROR, "does not stop: no. ")
    assert 0 < len(lines) <= supersede_notifier.LINES
    assert all(line.isprintable() and len(line) < 2000 for line in lines)


def test_a_recovery_that_was_a_mistake_is_taken_back(tmp_path: Path, stack: ExitStack) -> None:
    """Without their notes, those that were left behind go on as the old cluster, and the founder's wiped disk joins."""
    old = Old(tmp_path, stack)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    founder = old.open(0)
    back = [old.open(1), old.open(2)]
    wait_until(lambda: all(map(old.has_stopped, back)), "both have stopped")
    founder.close()
    shutil.rmtree(tmp_path / "n0")
    for number, node in enumerate(back, 1):
        node.close()
        (tmp_path / f"n{number}" / "superseded").unlink()
    living = [old.open(1), old.open(2)]
    assert living[0].get("k", linearizable=True) == "before"
    living[1].remove_peer(old.addresses[0])
    joined = old.open(0, join=old.addresses[1])
    joined["k"] = "after"
    assert [member.address for member in joined.members()] == sorted(old.addresses)


def test_another_cluster_at_an_old_address_is_left_alone(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that took over an old member's address is not that member: it is asked once who it is, and goes on."""
    old = Old(tmp_path, stack)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    caplog.set_level(logging.INFO)
    other = stack.enter_context(ReplicatedDict[str, int](tmp_path / "other", address=old.addresses[1]))
    other["k"] = 1
    founder = old.open(0)
    wait_until(lambda: bool(said(caplog, logging.INFO, old.addresses[1], "is of another cluster")), "it is known")
    back = old.open(2)
    wait_until(lambda: old.has_stopped(back), "the one that comes back elsewhere is told all the same")
    other["k"] = founder["k"] = 2
    assert len(said(caplog, logging.INFO, old.addresses[1], "is of another cluster")) == 1
    assert wire_of(other).clients._last == 1


def test_a_founder_that_was_recovered_and_moved_knows_them_all(tmp_path: Path, stack: ExitStack) -> None:
    """Recovered a second time, at another address, it still tells the members of the first cluster; and a copy of what
    it was itself before."""
    old = Old(tmp_path, stack)
    shutil.copytree(tmp_path / "n0", tmp_path / "copy")
    (elsewhere,) = free_addresses(1)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    assert recover(tmp_path / "n0", "--address", elsewhere, "--yes").exit_code == 0
    (tmp_path / "n0").rename(tmp_path / "moved")
    (tmp_path / "copy").rename(tmp_path / "n0")
    founder = old.open(0, "moved", address=elsewhere)
    back = [old.open(0), old.open(1)]
    wait_until(lambda: all(map(old.has_stopped, back)), "both have stopped")
    with pytest.raises(RemovedError, match=f"goes on as {founder.status().cluster_id}, founded by {elsewhere}"):
        back[0]["k"]


def test_a_note_that_cannot_be_left(tmp_path: Path, stack: ExitStack) -> None:
    """A node that can't write the note down stops all the same, and says so; when it comes back, it is told again."""
    old = Old(tmp_path, stack)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    stack.enter_context(old.open(0))
    in_the_way = tmp_path / "n1" / "superseded.new"
    in_the_way.mkdir()
    back = old.open(1)
    wait_until(lambda: back.status().role == "stopped", "it has stopped")
    with pytest.raises(StorageError, match="superseded: could not be written"):
        back["k"]
    back.close()
    in_the_way.rmdir()
    again = old.open(1)
    wait_until(lambda: old.has_stopped(again), "it has stopped again")


def test_a_forked_child_calls_nobody(tmp_path: Path, stack: ExitStack) -> None:
    """The child of a founder lets go of the connections by which old members are told; the parent goes on."""
    old = Old(tmp_path, stack)
    assert recover(tmp_path / "n0", "--yes").exit_code == 0
    living = [old.open(1), old.open(2)]
    leader_of(living)
    founder = host_of(old.open(0))._supersede_notifier
    assert founder is not None
    wait_until(lambda: len(founder._clients) == 2, "both are told")
    assert in_child(lambda: [client._socket.fileno() for client in founder._clients]) == "[-1, -1]"
    assert all(client._socket.fileno() > 0 for client in founder._clients) and len(founder._clients) == 2


@pytest.mark.parametrize("mode", MODES)
def test_ever_other_words_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: Mode) -> None:
    """Whoever a client says that it was recovered as, the log of a cluster that lives has one line, on one line."""
    certificates = Certificates(tmp_path)
    with cluster(tmp_path, **given(mode, certificates)) as nodes:
        nodes[0]["k"] = 1
        status = nodes[0].status()
        address, cluster_id = str(status.address), str(status.cluster_id)
        caplog.clear()
        with Client(address, security=certificates.security(mode, address)) as client:

            def refused(why: str, host: str, node_id: str = "1" * 32) -> None:
                at = "2026-01-01\n00:00:00"
                with pytest.raises((ReplidictError, ValueError), match=why):
                    client.request(
                        lambda number, timeout: Supersede(
                            number, timeout, cluster_id, node_id, f"{host}:1", NUMBER_MAX, "0" * 32, "n1:7000", at
                        ),
                        Done,
                    )

            refused("not an address|bad address", "h:1\nforged")
            refused("32 hexadecimal digits", "h", "forged")
            for number in range(20):
                refused("recovered on 2026-01-01T00:00:00 from.*the old cluster lives", f"h{number}")
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == 1 and lines[0].isprintable()
        nodes[1]["k"] = 2


# -- who believes it, in simulated time -------------------------------------------------------------------------------

TIMEOUT = Options().election_timeout


def word(machine: Machine, **other: Any) -> Supersede:
    """What the node n1, recovered without this one, would tell it."""
    assert machine.node is not None
    engine = machine.node.engine
    known = {
        "cluster_id": engine.store.identity.cluster_id, "address": "n1:7000", "index": engine.members.index,
        "node_id": engine.members.node_ids.get("n1:7000") or engine.store.pins.get("n1:7000", ""),
    }  # fmt: skip
    at = "2026-01-01T00:00:00+00:00"
    return Supersede(**{"id": 1, "timeout": 1, "successor": "0" * 32, "founder": "n1:7000", "at": at, **known, **other})


def tell(machine: Machine, **other: Any) -> None:
    assert machine.node is not None
    machine.node.engine.superseded.hear(word(machine, **other))


def tell_for(seconds: float, cluster: Cluster, *machines: Machine, until: Callable[[], bool] = lambda: False) -> int:
    """Tell these so long, or until something is so. Returns how often they said that their cluster lives."""
    end, refused = cluster.loop.now + seconds, 0
    while cluster.loop.now < end and not until():
        for machine in machines:
            try:
                tell(machine)
            except RemovedError:
                raise
            except ReplidictError as error:
                refused += "the old cluster lives" in str(error)
        cluster.loop.run_until(cluster.loop.now + TIMEOUT / 10)
    return refused


def others_of(cluster: Cluster) -> list[Machine]:
    return [machine for address, machine in cluster.machines.items() if address != "n1:7000"]


def restarted(cluster: Cluster) -> list[Machine]:
    """All but n1, which have just started."""
    cluster.start()
    a_leader(cluster)
    for machine in cluster.machines.values():
        machine.crash()
    others = others_of(cluster)
    for machine in others:
        machine.start()
    return others


def test_one_that_abstains_is_enough() -> None:
    """Where a majority of the old cluster comes back, and one without which it is none is told: nobody is elected."""
    with new_cluster(1, 3, Options()) as cluster:
        told, other = restarted(cluster)
        tell_for(PATIENCE * TIMEOUT - 2 * TIMEOUT, cluster, told)
        assert leader(cluster) is None
        assert told.node is not None and told.node.engine.elections.abstains
        assert other.node is not None and not other.node.engine.elections.abstains


def test_a_candidate_that_is_told_counts_no_more() -> None:
    """Votes that are on their way when a candidate is told come to nothing."""
    for seed in range(20):
        with new_cluster(seed, 3, Options()) as cluster:
            one, other = restarted(cluster)
            assert one.node is not None and other.node is not None
            engines = one.node.engine, other.node.engine
            until(cluster, lambda: any(e.elections._asking_before is not None for e in engines), "one asks")  # noqa: B023
            asking = one if one.node.engine.elections._asking_before is not None else other
            tell_for(2 * TIMEOUT, cluster, asking)
            assert leader(cluster) is None


def test_a_word_that_is_not_repeated_is_forgotten() -> None:
    """When the founder says it no more, those that were told elect a leader; and the time for which it was told before
    does not count for what is told later."""
    with new_cluster(2, 3, Options()) as cluster:
        told, other = restarted(cluster)
        other.crash()
        for _ in range(3):
            tell_for(PATIENCE * TIMEOUT - TIMEOUT, cluster, told)
            cluster.loop.run_until(cluster.loop.now + WORD_COUNTS)
        tell(told)
        assert told.node is not None and told.node.engine.elections.abstains
        other.start()
        until(cluster, lambda: leader(cluster) is not None, "one is elected", WORD_COUNTS + 10 * TIMEOUT)


def test_who_is_told_long_enough_stops() -> None:
    """A node without a leader stops after the time that one would need to find it."""
    with new_cluster(3, 3, Options()) as cluster:
        told, _ = restarted(cluster)
        tell_for((PATIENCE - 1) * TIMEOUT, cluster, told)
        with pytest.raises(RemovedError, match="goes on as 00000"):
            tell_for(2 * TIMEOUT, cluster, told)


def test_a_restart_in_a_cluster_that_lives_is_none_that_comes_back() -> None:
    """Beside a recovery that was a mistake, a node may restart: its leader finds it, and it goes on."""
    with new_cluster(4, 5, Options()) as cluster:
        cluster.start()
        cluster.machines["n1:7000"].crash()
        machine = next(m for m in others_of(cluster) if m is not a_leader(cluster))
        machine.crash()
        machine.start()
        tell(machine)
        assert tell_for(2 * PATIENCE * TIMEOUT, cluster, machine) > PATIENCE
        assert machine.node is not None and not machine.node.engine.elections.abstains


def test_an_election_in_a_cluster_that_lives_goes_on() -> None:
    """Beside a recovery that was a mistake, a leader may die: those who are told meanwhile elect another."""
    with new_cluster(5, 5, Options()) as cluster:
        cluster.start()
        cluster.machines["n1:7000"].crash()
        for _ in range(2):
            first = a_leader(cluster)
            left = [machine for machine in others_of(cluster) if machine is not first]
            assert tell_for(TIMEOUT / 10, cluster, *left) == len(left)
            first.crash()
            until(cluster, lambda: leader(cluster) is None, "it has died")
            tell_for(PATIENCE * TIMEOUT, cluster, *left, until=lambda: leader(cluster) is not None)
            a_leader(cluster)
            first.start()


def test_a_leader_in_between_begins_the_wait_anew() -> None:
    """A node without a leader twice, told all the while, does not stop before the second time was long enough."""
    with new_cluster(6, 5, Options()) as cluster:
        cluster.start()
        cluster.machines["n1:7000"].crash()
        one, other, *lost = others_of(cluster)
        for _ in range(3):
            a_leader(cluster)
            for machine in lost:
                machine.crash()
            tell_for((PATIENCE - 2) * TIMEOUT, cluster, one, other)
            for machine in lost:
                machine.start()
            assert tell_for(4 * TIMEOUT, cluster, one, other)
        for machine in lost:
            machine.crash()
        with pytest.raises(RemovedError):
            tell_for((PATIENCE + 3) * TIMEOUT, cluster, one, other)


def test_a_leader_that_was_paused_has_a_leader() -> None:
    """A leader goes on, however long it has done nothing; and when it is none any more, it may stand again."""
    with new_cluster(7, 3, Options()) as cluster:
        cluster.start()
        first = a_leader(cluster)
        for machine in cluster.machines.values():
            if machine is not first:
                machine.crash()
        first.pause()
        cluster.loop.run_until(cluster.loop.now + PATIENCE * TIMEOUT)
        assert tell_for(TIMEOUT / 10, cluster, first) == 1
        first.resume()
        until(cluster, lambda: leader(cluster) is None, "it has stepped down")
        cluster.loop.run_until(cluster.loop.now + 1.1 * TIMEOUT)
        tell(first)
        assert first.node is not None and not first.node.engine.elections.abstains


@pytest.mark.parametrize(
    "other",
    [{"cluster_id": "f" * 32}, {"node_id": "f" * 32}, {"address": "n9:7000"}],
    ids=lambda other: next(iter(other)),
)
def test_who_is_not_believed(other: dict[str, Any]) -> None:
    """The founder is one who was a member under the identity known here; whoever else it says it was, nothing happens,
    unless it knew later members than this node."""
    with new_cluster(6, 3, Options()) as cluster:
        told, _ = restarted(cluster)
        with pytest.raises(ReplidictError, match="knows no such member"):
            tell(told, **other)
        assert told.node is not None and not told.node.engine.elections.abstains
        later = told.node.engine.members.index + 1
        if "cluster_id" not in other:
            tell(told, **other, index=later)
            assert told.node.engine.elections.abstains

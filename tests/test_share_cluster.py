"""Processes that share a node of a cluster: what becomes of what they do when another node leads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from replidict import LockLost, ReadTimeout, ReplicatedDict
from replidict.latch import Latch
from replidict.monotonic_clock import clock
from replidict.node import proposals
from replidict.node.host_link import HostLink
from tests.clusters import Dict, cluster, credentials, leader_of, node_of, run_by, wait_for_leader, wait_until
from tests.processes import own_addresses
from tests.share_support import QUICK, Worker, count
from tests.share_support import helpers_of_multiprocessing as helpers_of_multiprocessing

LONG = 60.0
MIB = 2**20


@contextmanager
def standing_still(d: Dict) -> Iterator[None]:
    """The node of this dict does nothing."""
    begun, over = Latch(), Latch()

    def stand() -> None:
        begun.set()
        over.wait()

    node_of(d).call(stand)
    begun.wait()
    try:
        yield
    finally:
        over.set()


@contextmanager
def attached_to(d: Dict) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](d._host.path, share=True, options=QUICK, timeout=LONG) as other:
        yield other


@pytest.fixture
def no_retry_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent again only because much time has passed."""
    monkeypatch.setattr(proposals, "RETRY_AFTER", 1e9)


@pytest.mark.usefixtures("no_retry_by_time")
def test_sent_again_to_the_next_leader(tmp_path: Path) -> None:
    """What an attached process has sent to a leader that never hears it is sent again, to the next one."""
    with cluster(tmp_path, share=True, options=QUICK, timeout=LONG) as nodes:
        leader = leader_of(nodes)
        host = next(node for node in nodes if node is not leader)
        with attached_to(host) as d:
            d["a"] = 1
            with standing_still(leader):
                assert d.submit("a", 2).result(LONG) > 0
            assert host.get("a", linearizable=True) == 2


@pytest.mark.usefixtures("no_retry_by_time")
def test_sent_again_to_the_next_host(tmp_path: Path) -> None:
    """A process that has taken over the node, which has no leader yet, sends when it has one: what the last host said
    of its way to the leader counts no more."""
    with cluster(tmp_path, share=True, options=QUICK, timeout=LONG) as nodes:
        host, *others = nodes
        how = {"address": host.status().address, "peers": host.status().peers, **credentials()}
        with ReplicatedDict[Any, Any](host._host.path, share=True, options=QUICK, timeout=LONG, **how) as d:
            d["a"] = 1
            with standing_still(others[0]), standing_still(others[1]):
                run_by(host).close(farewell=False)
                waiting = d.submit("a", 2)
                link = d._host.node.engine
                assert isinstance(link, HostLink)
                wait_until(lambda: d.status().sharing == "host" and link.accepted, "it runs the node")
            assert waiting.result(LONG) > 0


@pytest.mark.usefixtures("no_retry_by_time")
def test_sent_when_there_is_room(tmp_path: Path) -> None:
    """What finds the way to the leader full is sent when that has room again, once."""
    with cluster(tmp_path, share=True, options=QUICK, timeout=LONG) as nodes:
        leader = leader_of(nodes)
        wait_for_leader(nodes)
        host = next(node for node in nodes if node is not leader)
        with ExitStack() as opened:
            crowd = [opened.enter_context(attached_to(host)) for _ in range(8)]
            for d in crowd:
                d.increment("n")
            forwarding = node_of(host).engine.forwarding
            full = threading.Event()

            def send(command: bytes, send: Any = forwarding.send) -> bool:
                sent = bool(send(command))
                if not sent:
                    full.set()
                return sent

            forwarding.send = send  # type: ignore[method-assign]
            with standing_still(leader):
                waiting = [d.submit(number, "x" * MIB) for d in crowd for number in range(4)]
                assert full.wait(LONG)
            for each in waiting:
                assert each.result(LONG) > 0
            assert [int(d.increment("n")) for d in crowd] == list(range(9, 17))


def test_bounded_reads_without_a_question(tmp_path: Path) -> None:
    """A read that may be stale asks nobody if the node has said lately enough how fresh the copy is; else it asks."""
    with cluster(tmp_path, share=True, options=QUICK, timeout=LONG) as nodes, attached_to(nodes[0]) as d:
        d["a"] = 1
        wait_until(lambda: d._host.node.engine.read_index.fresh_as_of > 0, "the node has said how fresh the copy is")
        with standing_still(nodes[0]):
            assert d.get("a", max_staleness=600) == 1
            with pytest.raises(ReadTimeout):
                d.get("a", max_staleness=0, timeout=0.1)
        nodes[1]["a"] = 2
        assert d.get("a", max_staleness=0) == 2


def test_a_copy_that_is_behind_is_not_fresh(tmp_path: Path) -> None:
    """What the node says of a state that the copy has not reached yet is not believed of the copy."""
    with ReplicatedDict[Any, Any](tmp_path / "d", share=True, options=QUICK) as host, attached_to(host) as d:
        host["a"] = 1
        link = d._host.node.engine
        assert isinstance(link, HostLink)
        wait_until(lambda: link.fresh_as_of > 0, "the node has said how fresh the copy is")
        standing = link.standing
        assert standing is not None
        ahead = replace(standing.status, applied_index=standing.status.applied_index + 1000)
        link.standing = msgspec.structs.replace(standing, status=ahead)
        assert link.fresh_as_of == float("-inf")


def test_a_single_node_knows_nothing_of_the_future(tmp_path: Path) -> None:
    """What a node that is alone says of a copy holds up to then, and not for what is written later."""
    with ReplicatedDict[Any, Any](tmp_path / "d", share=True, options=QUICK) as host, attached_to(host) as d:
        host["a"] = 1
        wait_until(lambda: d._host.node.engine.read_index.fresh_as_of > 0, "the node has said how fresh the copy is")
        assert d._host.node.engine.read_index.fresh_as_of <= clock()


def test_attached_processes_across_elections(tmp_path: Path) -> None:
    """Leaders are killed while processes that are attached to other nodes write, watch, and hold a lock: no write is
    lost or doubled, each is read at once by who wrote it, and told once; the lock stays. Without a majority it is lost,
    and says so."""
    addresses = own_addresses(3)
    with ExitStack() as opened:
        hosts: dict[str, Worker] = {}

        def start(address: str) -> None:
            peers = [each for each in addresses if each != address]
            how = {"address": address, "peers": peers, **credentials()}
            hosts[address] = Worker("spawn", tmp_path / address, how)
            opened.callback(hosts[address].leave)
            hosts[address].end()

        for address in addresses:
            start(address)
        dicts = {
            address: opened.enter_context(
                ReplicatedDict[Any, Any](tmp_path / address, share=True, options=QUICK, timeout=LONG)
            )
            for address in addresses
        }
        for _ in range(2):
            leader = leader_of(list(dicts.values())).status().address
            assert leader is not None
            here, there = (d for address, d in dicts.items() if address != leader)
            total = work_while(hosts[leader].kill, here, there)
            start(leader)
            assert dicts[leader].get("n", linearizable=True) == total
        address, survivor = next(iter(dicts.items()))
        with pytest.raises(LockLost), survivor.lock("x", ttl=1.0) as held:
            for other in addresses:
                if other != address:
                    hosts[other].kill()
            assert held.lost.wait(LONG)
            held.check()


def work_while(something: Callable[[], object], here: Dict, there: Dict) -> int:
    """Count in both processes, with a lock and a watch, while something happens."""
    before = int(here.increment("n"))
    with here.lock("x") as held, here.watch("n") as watch, ThreadPoolExecutor() as threads:
        token = held.token
        counting = [threads.submit(count, d, "n", 100) for d in (here, there)]
        wait_until(lambda: here["n"] > before + 20, "they count")
        something()
        sums = sorted(total for counted in counting for total in counted.result(LONG))
        assert sums == list(range(before + 1, before + 201))
        told = [watch.next(LONG) for _ in sums]
        assert [change.events[0].value for change in told if change] == sums
        assert here.set("fenced", 1, fence=held) > 0 and held.token == token
    return sums[-1]

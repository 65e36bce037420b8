"""Real processes that are paused, killed while they count, or run out of disk (design, sections 2, 7 and 11)."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.clusters import free_addresses, wait_until
from tests.processes import Process, equal_copies, leader, processes, start_all
from tests.storage_support import small_disk


@pytest.mark.parametrize("lease_reads", [False, True], ids=["read index", "lease"])
def test_a_paused_leader_serves_nothing_stale(tmp_path: Path, lease_reads: bool) -> None:
    """A leader stopped for 5 s answers no linearizable read, when it goes on, with what was overwritten meanwhile
    (promise 2; thesis 6.4 and 6.4.1)."""
    with processes(tmp_path, options={"lease_reads": lease_reads}) as nodes:
        old = leader(nodes)
        others = [node for node in nodes if node is not old]
        old.do("set", "x", "before")
        assert old.do("get", "x", linearizable=True) == "before"
        old.pause()
        paused_at = time.monotonic()
        reads = [old.submit("get", "x", linearizable=True) for _ in range(200)]
        wait_until(lambda: others[0].call("set", "x", "after", timeout=5).ok, "a survivor writes")
        written_at = time.monotonic()
        wait_until(lambda: time.monotonic() > paused_at + 5, "5 s have passed")
        old.resume()
        reads += [old.submit("get", "x", linearizable=True) for _ in range(200)]
        answers = [read.result(60) for read in reads]
        seen = Counter(answer.value if answer.ok else answer.error for answer in answers if answer.call > written_at)
        assert seen["after"] >= 200
        assert seen.keys() <= {"after", "ReadTimeout"}


def test_a_counter_under_leader_kills(tmp_path: Path) -> None:
    """Compare-and-set increments from 8 threads on each of three nodes, while leaders are killed: the count is the
    number of successes, and at most one more for each outcome that nobody knows (promise 3)."""
    with processes(tmp_path) as nodes:
        nodes[0].do("set", "n", 0)
        for node in nodes:
            node.do("barrier")
        outcomes: Counter[str] = Counter()
        mutex = threading.Lock()
        stop = threading.Event()

        def count(node: Process) -> None:
            while not stop.is_set():
                seen = node.call("get", "n")
                if not seen.ok:
                    wait_until(lambda: stop.is_set() or node.alive, "it is back")
                    continue
                answer = node.call("compare_and_set", "n", seen.value, seen.value + 1, timeout=5)
                with mutex:
                    outcomes["unknown" if answer.ret is None else "done" if answer.value is True else "not"] += 1

        threads = [threading.Thread(target=count, args=(node,)) for node in nodes for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                done = outcomes["done"]
                wait_until(lambda done=done: outcomes["done"] > done + 50, "the count goes on")  # type: ignore[misc]
                victim = leader(nodes)
                victim.kill()
                done = outcomes["done"]
                wait_until(lambda done=done: outcomes["done"] > done + 5, "a survivor counts")  # type: ignore[misc]
                start_all(nodes)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        final = equal_copies(nodes)["n"]
        assert outcomes["done"] <= final <= outcomes["done"] + outcomes["unknown"], outcomes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("leads", [False, True], ids=["follower", "leader"])
def test_a_full_disk(tmp_path: Path, leads: bool) -> None:
    """A follower whose disk is full stops, and the cluster goes on; a leader's place is taken by another. With space
    again, the node comes back level, and nothing acknowledged is lost (promises 1 and 8)."""
    addresses = free_addresses(3)
    with small_disk(tmp_path / "small", "16m"):
        paths = [tmp_path / "small" / "n0", tmp_path / "n1", tmp_path / "n2"]
        nodes = [
            Process(path, address, [each for each in addresses if each != address], timeout=10)
            for path, address in zip(paths, addresses, strict=True)
        ]
        small, *others = nodes
        try:
            start_all(nodes)
            if leads:
                # A node becomes the leader when the others are not there to be it.
                while leader(nodes) is not small:
                    present = leader(nodes)
                    present.kill()
                    wait_until(lambda: any(n.status().get("is_leader") for n in nodes if n.alive), "another leads")
                    start_all(nodes)
            acknowledged = {f"k{i}": "x" * 1000 for i in range(200)}
            for key, value in acknowledged.items():
                small.do("set", key, value)
            ballast = tmp_path / "small" / "ballast"
            with ballast.open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(b"\0" * 4096)
                    except OSError:
                        break
            number = 0
            while small.status()["role"] != "stopped":
                answer = small.call("set", f"full{number}", "y" * 100_000)
                if answer.ok:
                    acknowledged[f"full{number}"] = "y" * 100_000
                number += 1
                assert number < 1000, "the disk never filled"
            assert small.call("get", "k0").error == "StorageError"
            assert small.call("set", "k0", 0).error == "StorageError"
            for other in others:
                other.do("set", f"from {other.path.name}", 1)
                acknowledged[f"from {other.path.name}"] = 1  # type: ignore[assignment]
            ballast.unlink()
            small.kill()
            start_all(nodes)
            copy = equal_copies(nodes)
            assert {key: copy.get(key) for key in acknowledged} == acknowledged
        finally:
            for node in nodes:
                node.kill()

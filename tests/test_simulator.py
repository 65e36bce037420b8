"""Whole clusters in simulated time: no seed breaks a promise, and each can be replayed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replidict.machine import commands as cmd
from replidict.options import Options
from replidict.protocol.peer_messages import AddMember, AppendEntries
from tests.simulator import Result, simulate
from tests.simulator.__main__ import main, show, summary
from tests.simulator.member_scenarios import change, made
from tests.simulator.run import new_cluster
from tests.simulator.scenarios import a_leader, until

SECONDS = float(os.environ.get("REPLIDICT_SIMULATE_SECONDS", "30"))
"""Real seconds for random seeds; CI takes 60."""

ROOT = Path(__file__).parents[1]


def test_no_seed_breaks_a_promise() -> None:
    """Under crashes, failing disks, partitions, pauses, drifting clocks and changes of the members all invariants hold
    (sections 2 and 11; thesis, chapter 4)."""
    began, seed, results = time.monotonic(), 0, list[Result]()
    while time.monotonic() - began < SECONDS:
        result = simulate(seed)
        assert result.violation is None, show(result, 100)
        results.append(result)
        seed += 1
    print(summary(results, time.monotonic() - began))
    assert len(results) < 20 or {result.changing for result in results} == {False, True}


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_quiet_cluster_answers_everything(nodes: int) -> None:
    """Without faults every write is acknowledged and one leader lasts from beginning to end (promise 3)."""
    result = simulate(12, nodes=nodes, changing=False, seconds=20, kinds=["clock rate"])
    assert result.violation is None, show(result, 100)
    assert not result.counts["mixed"], "another seed: an upgrade is a restart"
    assert result.counts["writes"] > 20
    assert result.counts["unknown"] == 0
    assert result.counts["leaders"] == 1


def test_a_seed_gives_the_same_run_to_the_byte() -> None:
    """The same seed gives the same trace, whatever the hash seed of the process."""
    code = (
        "from tests.simulator import simulate; r = simulate(12, seconds=20); print(r.digest, sorted(r.counts.items()))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
            capture_output=True, text=True,
        ).stdout
        for seed in ("1", "2", "77")
    }  # fmt: skip
    assert len(runs) == 1


def test_members_change_while_writes_go_on() -> None:
    """Members come, go and come back with new disks, and those that are there take all writes."""
    kinds = ["add a voter", "remove a follower", "remove the leader", "remove and join again"]
    result = simulate(5, nodes=5, changing=True, kinds=kinds)
    assert result.violation is None, show(result, 100)
    assert result.counts["changes"] > 20
    assert result.counts["removed"] > 5
    assert result.counts["writes"] > 100


def test_a_change_that_was_made_replaces_one_that_was_not() -> None:
    """A leader crashes with a change in its log that nobody else has, and the next one makes another change at the same
    place: when that is back, it goes by what is committed as soon as it hears of it, before its log does (4.1)."""
    with new_cluster(1, 3, Options()) as cluster:
        cluster.start()
        away = a_leader(cluster)
        assert away.node is not None
        mine = away.node.engine
        cluster.network.filter = lambda sender, receiver, message: (
            away.address not in (sender, receiver) or not isinstance(message, AppendEntries)
        )
        mine.replicated_log.append(cmd.NO_OP)  # the next leader begins with one as well
        change(away, AddMember("n4:7000", voter=False))
        until(cluster, lambda: "n4:7000" in mine.members.all and not mine.store.pending, "it is in its log")
        index = mine.members.index
        away.crash()
        made(cluster, AddMember("n5:7000", voter=False))
        latest = cluster.checker.members.latest
        assert latest.index == index and "n5:7000" in latest.all
        away.start()
        again = away.node.engine
        assert "n4:7000" in again.members.all
        until(cluster, lambda: again.members == latest, "it goes by what is committed")
        assert (again.log.last_index, again.log.deleted_entries) == (index, 0)
        cluster.network.filter = None
        a_leader(cluster)
        assert again.members == latest and again.log.deleted_entries == 2


def test_another_seed_gives_another_run() -> None:
    """Seeds explore: what two of them do differs."""
    assert simulate(1, seconds=5).digest != simulate(2, seconds=5).digest


def test_a_failing_seed_replays_exactly() -> None:
    """A violation comes again at the same step of the same seed, with the same trace to show."""
    runs = (simulate(seed, without="one-vote-a-term") for seed in range(25))
    first = next(run for run in runs if run.violation is not None)
    second = simulate(first.seed, without="one-vote-a-term")
    assert str(first.violation) == str(second.violation)
    assert (first.digest, first.trace) == (second.digest, second.trace)


def test_a_failure_is_shown_with_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m tests.simulator` names the seed, the invariant and the last steps, and its status is 1."""
    assert main(["--seeds", "5", "--jobs", "2", "--without", "vote-after-the-disk"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"seed \d on \d nodes", shown)
    assert "durability: " in shown
    assert "RequestVote(" in shown
    assert main(["--seeds", "1", "--jobs", "1", "--seconds", "5"]) == 0
    assert "1 seeds" in capsys.readouterr().out

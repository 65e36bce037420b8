"""A short campaign of `tests.campaigns.workers`."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.workers import Kill, Told, run, served_again


def test_a_short_campaign(tmp_path: Path) -> None:
    """On each of three hosts the gunicorn worker that runs the node is killed under load: no acknowledged write is lost
    or doubled, each worker reads its own writes and never goes back, and nothing is left."""
    found = run(tmp_path, seconds=6.0, workers=2, every=3.0, within=float("inf"), clients=4)
    assert found["violations"] == []
    assert found["kills"] >= 3
    assert found["added_and_kept"] and all(each["value"] for each in found["counters"].values())


def test_a_worker_that_is_killed_next() -> None:
    """A worker that is killed before it has served again was unserved until then, and not for ever."""
    account = Told()
    account.served = {0: [(1, 0.0, 0.5), (2, 0.0, 0.5), (3, 0.0, 0.5), (4, 0.0, 0.5), (2, 1.5, 4.0)]}
    kills = [Kill(0, 1, 1.0), Kill(0, 3, 6.0)]
    assert sorted(served_again(account, kills[0], kills, 5.0)) == [3.0, 5.0, float("inf")]

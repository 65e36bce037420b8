"""A short campaign of `tests.campaigns.workers`."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns.workers import run


def test_a_short_campaign(tmp_path: Path) -> None:
    """On each of three hosts the gunicorn worker that runs the node is killed under load: no acknowledged write is lost
    or doubled, each worker reads its own writes and never goes back, and nothing is left."""
    found = run(tmp_path, seconds=6.0, workers=2, every=3.0, within=float("inf"), clients=4)
    assert found["violations"] == []
    assert found["kills"] >= 3
    assert found["added_and_kept"] and all(each["value"] for each in found["counters"].values())

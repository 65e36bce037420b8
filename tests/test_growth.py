"""The short form of `tests.growth`: real processes form a cluster that grows and shrinks, under load and kills."""

from __future__ import annotations

from pathlib import Path

from tests.growth import run


def test_a_short_life(tmp_path: Path) -> None:
    """One node becomes three, one of them is replaced while it is down and one while it runs, two are left: with a
    kill -9 after each step nothing acknowledged is lost, nothing refused is there, and the nodes are equal."""
    found = run(tmp_path, most=3, replaced=2, left=2, seed=3)
    assert found["wrong"] == []
    assert found["acknowledged"] > 50
    assert sum(found["kills"].values()) >= 6

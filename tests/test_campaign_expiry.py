"""The campaign of expiry on real processes: what it would find, and a short one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import expiry
from tests.campaigns.check_expiry import Granted, Stored, check_kept, check_keys, check_leases

KEY = Stored("k", 2.0, call=10.0, ret=10.2)


def always(since: float, until: float) -> float:
    """There is always a leader."""
    return 0.0


@pytest.mark.parametrize(
    ("went", "what"),
    [
        (12.3, None),
        (11.9, "went 1.900 s after it was asked for"),
        (12.8, "went 0.60 s late"),
        (None, "never went"),
    ],
)
def test_what_goes_early_or_late_is_found(went: float | None, what: str | None) -> None:
    """A key may go neither before its ttl is over, nor half a second after it, nor stay."""
    found = check_keys([KEY], {} if went is None else {"k": went}, [], 100.0, always)
    assert found.violations == [] if what is None else what in found.violations[0]


def test_without_a_leader_nothing_has_to_go() -> None:
    """Half a second after there is one again, what was due is gone; and it is counted apart."""
    for went, wrong in ((14.0, 0), (14.8, 1)):
        found = check_keys([KEY], {"k": went}, [11.0], 100.0, lambda since, until: 2.0)
        assert len(found.violations) == wrong
        assert found.late == [] and len(found.late_disturbed) == 1


def test_what_was_not_acknowledged_may_be_missing() -> None:
    """It may have been stored or not; if it was, it may not go early."""
    unknown = Stored("k", 2.0, call=10.0, ret=None)
    assert check_keys([unknown], {}, [], 100.0, always).violations == []
    assert check_keys([unknown], {"k": 11.0}, [], 100.0, always).violations
    assert check_keys([KEY], {}, [], 12.0, always).violations == [], "nobody looked any more"


def test_leases_that_end_wrongly_are_found() -> None:
    """Of a lease whose holder lives nothing goes, and it is not told that it is lost; after its death it ends in
    time."""
    living, dead = Granted("l", 5.0, 10.0, None), Granted("l", 5.0, 10.0, 20.0)
    assert check_leases([living], {}, [], 100.0, always) == []
    assert "though its holder lived" in check_leases([living], {"l": 30.0}, [], 100.0, always)[0]
    assert "is lost" in check_leases([living], {}, ["l"], 100.0, always)[0]
    assert check_leases([dead], {"l": 25.0}, [], 100.0, always) == []
    assert "though its holder lived" in check_leases([dead], {"l": 19.0}, [], 100.0, always)[0]
    assert "5.60 s after its holder's death" in check_leases([dead], {"l": 25.6}, [], 100.0, always)[0]
    assert "never went" in check_leases([dead], {}, [], 100.0, always)[0]
    assert check_kept({"k": 5}, {}) == check_kept({"k": 5}, {"k": 4}) == []
    assert check_kept({"k": 5}, {"k": 6})


def test_a_short_campaign(tmp_path: Path) -> None:
    """While leaders are killed and paused nothing goes before its time, everything goes, and the leases of processes
    that live last (promise 11)."""
    summary = expiry.run(tmp_path, seconds=4.0, ttls=(0.5, 1.0), paused=0.7, late_allowed=True)
    assert summary["violations"] == []
    assert summary["keys with a ttl"] > 15 and summary["kills of the leader"] >= 1

"""The campaign of locks on real processes: what it would find, and a short one."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns import locks
from tests.campaigns.check_locks import Hold, Succession, Wait, check_fences, check_holders


def hold(token: int, granted: float, *passed: float, pid: int = 1, released: float | None = None) -> Hold:
    return Hold("x", token, pid, granted - 0.5, granted, list(passed), released)


def test_two_holders_are_found() -> None:
    """Two whose checks passed overlap; also if a third was between them, or the order of the tokens is another."""
    assert check_holders([hold(1, 1.0, 1.1, 1.9), hold(2, 2.0, 2.1), hold(3, 2.5, 2.6)]) == []
    assert check_holders([hold(1, 1.0), hold(2, 0.9, 2.1)]) == [], "no check passed"
    assert check_holders([hold(1, 1.0, 2.05), hold(2, 2.0, 2.1)])
    assert check_holders([hold(1, 1.0, 5.0), hold(2, 0.5), hold(3, 2.0, 2.1)])
    assert check_holders([hold(1, 1.0, 5.0), hold(2, 6.0, 6.1), hold(3, 4.0, 4.1)])
    assert check_holders([hold(2, 1.0, 1.1), hold(1, 2.0, 2.1)]), "a later one has a smaller token"
    assert check_holders([hold(1, 1.0, 1.1), hold(1, 2.0, 2.1, pid=2)]), "a token comes twice"


def test_a_write_of_an_earlier_holder_is_found() -> None:
    """In the order of the log, tokens of one lock do not go back."""
    assert check_fences({1: ("x", 1), 2: ("x", 3), 3: ("y", 2), 4: ("x", 3)}) == []
    assert check_fences({1: ("x", 1), 3: ("x", 2), 2: ("x", 3)})


def test_a_lock_that_stays_with_the_dead_is_found() -> None:
    """If somebody waited, the next one has it in time; another fault meanwhile may make it later."""
    dead, then = hold(1, 1.0, 9.9, pid=7), hold(2, 14.5, 14.6, pid=8)
    waits = [Wait("x", 8, 5.0, 14.5)]
    assert Succession([dead, then], waits, []).after_death({7: 10.0}, 2.0)[1]
    assert Succession([dead], [Wait("x", 8, 5.0, 20.0)], []).after_death({7: 10.0}, 2.0)[1]
    assert Succession([dead, hold(2, 13.0, pid=8)], waits, []).after_death({7: 10.0}, 2.0) == ([3.0], [])
    assert Succession([dead, then], [], []).after_death({7: 10.0}, 2.0)[1] == [], "nobody waited"
    assert Succession([dead, then], waits, []).after_death({}, 2.0) == ([], [])
    kill, other = (10.0, 11.0, frozenset([7])), (12.0, 13.0, frozenset([9]))
    assert Succession([dead, then], waits, [kill]).after_death({7: 10.0}, 2.0)[1]
    assert Succession([dead, then], waits, [kill, other]).after_death({7: 10.0}, 2.0)[1] == []


def test_hand_overs_are_timed() -> None:
    """From the release to the next one, if that waited and nothing befell anybody."""
    one, other = hold(1, 1.0, 1.1, released=2.0), hold(2, 2.25, 2.3)
    assert Succession([one, other], [], []).after_release() == [0.25]
    assert Succession([one, other], [], [(1.5, 1.6, frozenset([9]))]).after_release() == []
    assert Succession([one, hold(2, 3.0)], [], []).after_release() == [], "it did not wait yet"


def test_a_short_campaign(tmp_path: Path) -> None:
    """One holder is killed, and another stopped for longer than the ttl: at no time do two hold a lock, no late writer
    gets through, and nothing is left (promise 12)."""
    plan = ["kill the leader", "pause one"]
    summary = locks.run(tmp_path, seconds=0, seed=1, plan=plan, ttl=1.0, late_allowed=True)
    assert summary["violations"] == []
    assert summary["locks acquired"] > 5 and summary["fenced writes"] > 10

"""The campaign of watchers on real processes: what it would find, and a short one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import watch
from tests.campaigns.check_watch import Telling, Truth, Write, check_final, check_telling, check_writes


def change(revision: int, *events: tuple[str, str, Any, Any]) -> tuple[int, str, list[list[Any]]]:
    return revision, "changes", [list(event) for event in events]


HISTORY = [
    change(1, ("set", "a", ["one", 2], None), ("set", "k/b", ["one", 2], None)),
    change(2, ("set", "a", ["two", 1], ["one", 2])),
    change(3, ("set", "k/b", ["three", 2], ["one", 2]), ("delete", "a", None, ["two", 1])),
]
CONTENT = {"k/b": ["three", 2]}
SNAPSHOT = (2, "snapshot", [["set", "a", ["two", 1], None], ["set", "k/b", ["one", 2], None]])


def found(told: list[Any], **how: Any) -> list[str]:
    """What is wrong with this watch, beside one that is right."""
    right, other = Telling("right", told=HISTORY, after=0, until=3), Telling("other", told=told, **how)
    truth = Truth([right, other])
    assert check_telling(right, truth) == []
    return truth.violations + check_telling(other, truth)


def test_right_watches_pass() -> None:
    """Watches of all keys and of some, from the beginning, from a snapshot and behind a revision."""
    prefix = [change(1, ("set", "k/b", ["one", 2], None)), change(3, ("set", "k/b", ["three", 2], ["one", 2]))]
    assert found(HISTORY, after=0, until=3) == []
    assert found(prefix, wants=lambda key: key.startswith("k/"), after=0, until=3) == []
    assert found([SNAPSHOT, HISTORY[2]], until=3) == []
    assert found(HISTORY[1:], after=1, until=3) == []
    assert found([HISTORY[0], SNAPSHOT, HISTORY[2]], after=0, until=3) == []
    truth = Truth([Telling("right", told=HISTORY)])
    assert check_writes(truth, [Write("one"), Write("two", 2), Write("three", 3)], ["four"]) == ([], 0)
    assert check_final(truth, CONTENT) == []


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (HISTORY[:2], "revision 3 was not told"),
        ([HISTORY[0], HISTORY[2]], "revision 2 was not told"),
        ([*HISTORY, HISTORY[2]], "revision 3 comes after 3"),
        ([HISTORY[1], HISTORY[0], HISTORY[2]], "revision 1 comes after 2"),
        ([change(1, ("set", "a", ["one", 2], None)), *HISTORY[1:]], "was told"),
        ([SNAPSHOT, HISTORY[1], HISTORY[2]], "revision 2 comes after 2"),
        ([(2, "snapshot", SNAPSHOT[2][:1]), HISTORY[2]], "is not the state"),
    ],
    ids=["the last one dropped", "one dropped", "one twice", "out of order", "split", "twice with a snapshot", "part"],
)
def test_wrong_watches_are_found(told: list[Any], what: str) -> None:
    """A change that is dropped, told twice, out of order or in part, and a snapshot that is not the state."""
    assert any(what in each for each in found(told, after=0, until=3))


def test_a_wrong_watch_of_some_keys_is_found() -> None:
    """Also where it misses what it wants, is told what it does not want, or ends with something else."""
    wants = {"wants": lambda key: key == "a", "after": 0, "until": 3}
    first, second = change(1, ("set", "a", ["one", 2], None)), HISTORY[1]
    assert found([first, second, change(3, ("delete", "a", None, ["two", 1]))], **wants) == []
    assert any("revision 3 was not told" in each for each in found([first, second], **wants))
    assert any("of revision 1 it was told" in each for each in found([HISTORY[0], second], **wants))
    assert any("it makes 1 keys" in each for each in found([first, second], **wants))


def test_wrong_writes_are_found() -> None:
    """A command that was applied twice, in part, or although it was refused; one that was acknowledged and is not
    there; a dict that holds something else."""
    truth = Truth([Telling("one", told=[*HISTORY, change(4, ("set", "a", ["two", 1], None))])])
    assert check_writes(truth, [], [])[0] == ["two happened at revisions [2, 4]"]
    assert "never told" in check_writes(truth, [Write("five", 4)], [])[0][-1]
    assert "refused" in check_writes(truth, [], ["one"])[0][-1]
    assert "acknowledged as 3" in check_writes(truth, [Write("one", 3)], [])[0][-1]
    truth = Truth([Telling("one", told=[change(1, ("set", "a", ["one", 2], None))])])
    assert "no whole command" in check_writes(truth, [], [])[0][0]
    assert check_final(truth, {}) and check_final(Truth([]), {})
    assert check_writes(Truth([Telling("one", told=HISTORY[1:])]), [Write("one", 1)], []) == ([], 1)


def test_a_short_campaign(tmp_path: Path) -> None:
    """A node is killed and replaced: every watcher, in process and by HTTP, is told every change, once, whole and in
    order (promise 10)."""
    summary = watch.run(tmp_path, seconds=0, seed=1, plan=["replace one"])
    assert summary["violations"] == []
    assert summary["commands"] > 50 and summary["changes told"] > 250
    assert all(each["told"] > 20 for each in summary["over HTTP"].values())

"""The console blocks of the pages about the command: run as they stand, and what they say is what is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replidict.command.main import main
from replidict.http.connection_limits import HEAD_SECONDS, TAKING_SECONDS
from replidict.http.metrics import ROUTES
from replidict.http.problems import PROBLEMS
from replidict.http.request_bodies import SECONDS
from replidict.http.request_parameters import LIMIT, MAX_LIMIT, MAX_TIMEOUT, TIMEOUT
from replidict.http.server import KEEP_ALIVE_SECONDS
from tests.console import check, form, steps_of
from tests.serving import ROOT

PAGES = ["README.md", "docs/command.md", "docs/http.md", "docs/operations.md"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """Each command of a page, in order, in one shell, against real nodes, prints what the page shows."""
    check(ROOT / name, tmp_path)


def test_every_command_is_told() -> None:
    """Each command of `replidict` is run in docs/command.md, and every exit status is explained there."""
    page = (ROOT / "docs" / "command.md").read_text()
    said = " ".join(step.command for step in steps_of(page))
    assert [name for name in main.commands if not re.search(rf"replidict {name}\b", said)] == []
    assert re.findall(r"^\| (\d) \|", page, re.MULTILINE) == [str(status) for status in range(9)]


def test_all_of_http_is_told() -> None:
    """Every path, parameter and type of error is told in docs/http.md, with its status and title."""
    page = (ROOT / "docs" / "http.md").read_text()
    for name, (status, title) in PROBLEMS.items():
        assert f"| `{name}` | {status} | {title} |" in page
    assert {f"`{route}`" for route in ROUTES} - set(re.findall(r"`/\w*`", page)) == set()
    for parameter in ("consistency", "max_staleness", "timeout", "prefix", "limit", "after"):
        assert f"`{parameter}=" in page
    assert (MAX_LIMIT, LIMIT, TIMEOUT, MAX_TIMEOUT) == (1000, 100, 10.0, 60.0), "as the page says"
    assert (HEAD_SECONDS, SECONDS, TAKING_SECONDS, KEEP_ALIVE_SECONDS) == (10.0, 30.0, 30.0, 30), "as the page says"


def test_what_is_compared() -> None:
    """What differs from run to run is left out of the comparison; what a command says is not."""
    one = "node  localhost:9001 (22d46898adf5464ba2d41f308f8dce1d)\nterm  1\ncontent  4 keys\n"
    assert form(one) == form(one.replace("22d4", "33d4").replace("term  1", "term   7"))
    assert form(one) != form(one.replace("4 keys", "5 keys"))
    assert form(one) != form(one.replace("9001", "9002"))
    member = "localhost:9001  voter  leader             29  0.0 s ago   0.2.0\n"
    assert form(member) == form(member.replace("  29  0.0", " 130  1.5"))
    assert form(member) != form(member.replace("voter  ", "learner"))

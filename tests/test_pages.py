"""The console blocks of the pages about the command: run as they stand, and what they say is what is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replidict.command.main import main
from tests.console import check, form, steps_of
from tests.serving import ROOT

PAGES = ["command.md"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    """Each command of a page, in order, in one shell, against real nodes, prints what the page shows."""
    check(ROOT / "docs" / name, tmp_path)


def test_every_command_is_told() -> None:
    """Each command of `replidict` is run in docs/command.md, and every exit status is explained there."""
    page = (ROOT / "docs" / "command.md").read_text()
    said = " ".join(step.command for step in steps_of(page))
    assert [name for name in main.commands if not re.search(rf"replidict {name}\b", said)] == []
    assert re.findall(r"^\| (\d) \|", page, re.MULTILINE) == [str(status) for status in range(8)]


def test_what_is_compared() -> None:
    """What differs from run to run is left out of the comparison; what a command says is not."""
    one = "node  localhost:9001 (22d46898adf5464ba2d41f308f8dce1d)\nterm  1\ncontent  4 keys\n"
    assert form(one) == form(one.replace("22d4", "33d4").replace("term  1", "term   7"))
    assert form(one) != form(one.replace("4 keys", "5 keys"))
    assert form(one) != form(one.replace("9001", "9002"))

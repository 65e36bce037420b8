"""What the pages say is what the code does: every Python block in README.md and docs/ is run."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from examples.demo import free_addresses
from replidict import Options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LOOPBACK = re.compile(r"127\.0\.0\.1:\d+")


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line in the page and source of each Python block, with its addresses replaced by free ones."""
    named = sorted(set(LOOPBACK.findall(text)))
    free = dict(zip(named, free_addresses(len(named)), strict=True))
    blocks = []
    for match in BLOCK.finditer(text):
        source = LOOPBACK.sub(lambda address: free[address[0]], match[1])
        blocks.append((text.count("\n", 0, match.start(1)), source))
    return blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run, one after the other, and everything they assert holds."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    for line, source in python_blocks(page.read_text()):
        exec(compile("\n" * line + source, str(page), "exec"), namespace)


def test_python_blocks_are_found() -> None:
    """The search for blocks finds those that are there."""
    assert len(python_blocks((ROOT / "README.md").read_text())) == 2
    assert len(python_blocks((ROOT / "docs" / "tutorial.md").read_text())) >= 8


def test_readme_starts_with_the_two_commands() -> None:
    """The first commands a newcomer reads are the ones that show it and test it."""
    commands = re.findall(r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert [line.split("#")[0].split() for line in commands[0].splitlines()] == [["make", "demo"], ["make", "test"]]


def test_readme_is_short() -> None:
    """What is read before trying is under 200 lines, and everything else has its page."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_error_is_told() -> None:
    """Each public error is in docs/errors.md, with what to do about it."""
    import replidict

    page = (ROOT / "docs" / "errors.md").read_text()
    errors = [name for name in replidict.__all__ if isinstance(getattr(replidict, name), type)]
    errors = [name for name in errors if issubclass(getattr(replidict, name), Exception)]
    assert len(errors) == 15
    assert [name for name in errors if f"`{name}`" not in page] == []


def test_every_option_is_told() -> None:
    """Each option is in docs/options.md, with its default."""

    def said(value: object) -> str:
        if isinstance(value, str | bool):
            return f"`{value}`" if isinstance(value, bool) else f'`"{value}"`'
        if isinstance(value, int):
            unit, factor = ("MiB", 1 << 20) if value >= 1 << 20 else ("KiB", 1 << 10)
            return f"{value:,}" if value % factor else f"{value // factor} {unit}"
        return str(value)

    page = (ROOT / "docs" / "options.md").read_text()
    rows = [f"| `{field.name}` | {said(field.default)} |" for field in fields(Options)]
    assert [row for row in rows if row not in page] == []


def test_contributing_says_where_things_are() -> None:
    """CONTRIBUTING.md answers at least 25 times where something is, and each file that it names exists."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    answers = re.findall(r"^\| [A-Z][^|]*\? \| `([^`]+)` \|$", page, re.MULTILINE)
    assert len(answers) == page.count("? |") >= 25
    assert [file for file in answers if not (ROOT / file).exists()] == []


def test_words_are_explained_once_and_in_order() -> None:
    """Each word of the glossary has one line, and a reader finds it by the alphabet."""
    words = re.findall(r"^\| ([^|]+) \| [A-Z]", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 30
    assert words == sorted(set(words), key=lambda word: word.replace("-", " "))

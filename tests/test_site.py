"""The documentation as a site: every public name is in the reference, and no link within the project is dead."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import replidict.http
import replidict.testing
from tests.serving import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
LINK = re.compile(r"\]\(([^()\s]+)\)")
REFERENCE = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link may have behind `#`: the headings, as both the site and a code forge name them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Links of a page to other files of the project, or to headings, that are not there."""
    dead = []
    for link in LINK.findall(without_code(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there, and a heading of it."""
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    """A link to a page or a heading that is not there is one that this search finds."""
    (tmp_path / "there.md").write_text("# A heading\n")
    page = tmp_path / "page.md"
    page.write_text("[1](there.md) [2](there.md#a-heading) [3](gone.md) [4](there.md#gone) [5](https://example.org/)\n")
    assert dead_links(page) == ["gone.md", "there.md#gone"]


@pytest.mark.parametrize(
    "module", [replidict, replidict.aio, replidict.testing, replidict.http], ids=lambda module: module.__name__
)
def test_every_public_name_is_in_the_reference(module: ModuleType) -> None:
    """Each name that a module of the package exports is in docs/reference, where its docstring is shown."""
    names = [f"{module.__name__}.{name}" for name in module.__all__]
    assert len(names) > 0
    shown = re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE)
    assert [name for name in names if name not in shown] == []
    assert len(shown) == len(set(shown))


def test_every_adapter_is_in_the_reference() -> None:
    """Each public class and function of `replidict.contrib` is in docs/reference."""
    shown = re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE)
    public = [
        f"replidict.contrib.{file.stem}.{name}"
        for file in (ROOT / "replidict" / "contrib").glob("*.py")
        for name in re.findall(r"^(?:class|def) ([A-Za-z]\w*)", file.read_text(), re.MULTILINE)
    ]
    assert len(public) > 5
    assert [name for name in public if name not in shown] == []


def test_every_page_is_in_the_navigation() -> None:
    """Each page below docs is found from the menu of the site."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(page.relative_to(DOCS)) for page in DOCS.glob("**/*.md")]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.MULTILINE)] == []

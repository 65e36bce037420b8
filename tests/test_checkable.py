"""The type checker sees into the core: nothing that its parts hold on to is `Any`, where misspelled names go unseen."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import replidict

ROOT = Path(replidict.__file__).parent
MISSPELLED = "no_such_thing"


def classes(folder: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Every class of a folder, with its module."""
    for path in sorted((ROOT / folder).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                yield f"replidict.{folder}.{path.stem}", node


def attributes(node: ast.ClassDef) -> set[str]:
    """What its methods assign to `self`."""
    return {
        target.attr
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and ast.unparse(target.value) == "self"
    }


@pytest.mark.parametrize("folder", ["raft", "transport"])
def test_a_misspelled_name_is_found(folder: str, tmp_path: Path) -> None:
    """`engine.elections.no_such_thing`, and the like of every class and of all that it holds, is an error for mypy."""
    lines = []
    for module, node in classes(folder):
        lines.append(f"import {module}")
        names = ["it", *sorted(f"it.{attribute}" for attribute in attributes(node))]
        lines.append(f"def check{len(lines)}(it: {module}.{node.name}) -> None:  # type: ignore[type-arg]")
        lines += [f"    {name}.{MISSPELLED}" for name in names]
    written = tmp_path / "misspelled.py"
    written.write_text("\n".join(lines))
    mypy = [sys.executable, "-m", "mypy", "--no-warn-unused-ignores", str(written)]
    found = subprocess.run(mypy, cwd=ROOT.parent, capture_output=True, text=True)
    noticed = {int(line.split(":")[1]) for line in found.stdout.splitlines() if MISSPELLED in line}
    expected = {number for number, line in enumerate(lines, 1) if MISSPELLED in line}
    assert len(expected) > 50 and found.stderr == ""
    assert not [lines[number - 1].strip() for number in sorted(expected - noticed)]

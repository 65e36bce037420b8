"""What a type checker says of programs that use the public names: the right ones pass, and mistakes are found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """\
from collections.abc import Iterator
from typing import Any, assert_type

from replidict import TLS, ReplicatedDict, ReplidictError

d = ReplicatedDict[str, int]("d", peers=["b:1"])
ReplicatedDict[str, int]("d", peers=("b:1",))
ReplicatedDict[str, int]("d", peers={"b:1"})
ReplicatedDict[str, int]("d", peers=(each for each in ["b:1"]))
ReplicatedDict[str, int]("d", peers="b:1")  # wrong
ReplicatedDict[str, int]("d", peers=None)  # wrong
ReplicatedDict[str, int]("d", peers=[7001])  # wrong
TLS(cert="a", key="b", ca="c", names=["x"])
TLS(cert="a", key="b", ca="c", names="x")  # wrong

assert_type(d["a"], int)
assert_type(d.get("a"), int | None)
assert_type(d.get("a", 0), int)
assert_type(d.get("a", None, linearizable=True), int | None)
assert_type(d.pop("a"), int)
assert_type(d.pop("a", None), int | None)
assert_type(d.popitem(), tuple[str, int])
assert_type(d.setdefault("a", 1), int)
assert_type(d.delete("a", timeout=1), bool)
assert_type(d.set("a", 1), int)
d["a"] = "x"  # wrong
d.set("a", "x")  # wrong
d.setdefault("a", "x")  # wrong
d.setdefault("a")  # wrong
optional = ReplicatedDict[str, int | None]("d")
assert_type(optional.setdefault("a"), int | None)

d.update({"a": 1})
d.update([("a", 1)])
d.update({"a": 1}, b=2)
d.update(a=1)
d.update(d)
d.update({"a": "x"})  # wrong
d.update([("a", "x")])  # wrong
d.update(a="x")  # wrong
d.update({1: 1})  # wrong
numbers = ReplicatedDict[int, int]("d")
numbers.update({1: 1})
numbers.update(a=1)  # wrong
d |= {"a": 1}
d |= [("a", 1)]
d |= {"a": "x"}  # wrong

assert_type(d | {"a": 1}, dict[str, int])
assert_type(d | {1: "x"}, dict[str | int, int | str])
assert_type({"a": 1} | d, dict[str, int])
assert_type(d.copy(), dict[str, int])
assert_type(list(reversed(d.items())), list[tuple[str, int]])
assert_type(list(reversed(d.keys())), list[str])
assert_type(list(reversed(d.values())), list[int])


def stopped(error: ReplidictError) -> None:
    pass


d.on_stop(stopped)
d.on_stop(5)  # wrong
"""


def test_types(tmp_path: Path) -> None:
    """Each line that is marked as wrong is refused by `mypy --strict`, and no other line is."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(program)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    found = {int(line) for line in re.findall(r"program\.py:(\d+): error: ", done.stdout)}
    wrong = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")}
    assert found == wrong, done.stdout + done.stderr

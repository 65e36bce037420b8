"""The docstrings of the public names: their examples run, and they explain each argument, result, error and field.

Those of `replidict.aio` lean on the methods of the same names that threads call, so they say less.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import doctest
import inspect
import io
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import replidict
from replidict import ReplicatedDict, aio
from replidict.aio import async_dict, leadership, lease, lock, watch

CLASSES = {name: each for name in replidict.__all__ if isinstance(each := getattr(replidict, name), type)}

SECTIONS = re.compile(r"^(Args|Returns|Raises|Attributes|Example):$", re.MULTILINE)

NEVER_RAISES = {
    "Leadership.stop",
    "Lease.revoke",
    "ReplicatedDict.close",
    "ReplicatedDict.items",
    "ReplicatedDict.keys",
    "ReplicatedDict.on_stop",
    "ReplicatedDict.status",
    "ReplicatedDict.values",
    "Held.on_lost",
    "Transaction.items",
    "Transaction.keys",
    "Transaction.prepared",
    "Transaction.stale",
    "Transaction.values",
    "Watch.close",
}
"""Methods that raise nothing of their own; a view raises only when it is read."""


def own_classes(kind: type) -> list[type]:
    return [each for each in kind.__mro__ if each.__module__.startswith("replidict.")]


MODULES = sorted({each.__module__ for kind in CLASSES.values() for each in own_classes(kind)})


def methods() -> Iterator[tuple[str, Any]]:
    """Every public method of a public class that this package defines, properties and inherited ones included."""
    for name, kind in CLASSES.items():
        found: dict[str, Any] = {}
        for each in reversed(own_classes(kind)):
            found |= {key: value for key, value in vars(each).items() if not key.startswith("_")}
        for key, value in found.items():
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            if inspect.isfunction(value) or isinstance(value, property):
                yield f"{name}.{key}", value


METHODS = dict(methods())
PUBLIC: dict[str, Any] = {**CLASSES, **METHODS}


def sections_of(documented: Any) -> dict[str, str]:
    """The parts of a docstring in Google style, by their headings; what comes before them under ''."""
    first, *rest = SECTIONS.split(inspect.getdoc(documented) or "")
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def named_in(section: str) -> list[str]:
    """The names that a section explains, one a line, or several with commas between them."""
    lines = re.findall(r"^    (\w[\w, ]*):", section, re.MULTILINE)
    return [name.strip() for line in lines for name in line.split(",")]


def arguments_of(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in MODULES:
        yield from (test for test in finder.find(sys.modules[module]) if test.examples)


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name.removeprefix("replidict."))
def test_an_example_runs(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a docstring, with a fresh dict `d`, gives what it shows."""
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with ReplicatedDict[Any, Any]("d") as d:
        example.globs = {"d": d, "ReplicatedDict": ReplicatedDict}
        failures, _ = doctest.DocTestRunner().run(example, out=said.append)
    assert not failures, "".join(said)


def test_the_examples_are_found() -> None:
    """Every section "Example" of a public docstring has lines that are run."""
    shown = [name for name, each in PUBLIC.items() if "Example" in sections_of(each)]
    assert len(shown) > 40
    assert [name for name in shown if ">>>" not in sections_of(PUBLIC[name])["Example"]] == []
    assert not any("+SKIP" in (inspect.getdoc(each) or "") for each in PUBLIC.values())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_begins_with_a_sentence(name: str) -> None:
    """The first paragraph of a public docstring is one line, from a capital letter to a full stop."""
    documented = PUBLIC[name]
    first = (documented.__doc__ or "").split("\n\n")[0].strip()
    assert re.fullmatch(r"[A-Z\"`(].*[.]", first), f"{name}: {first!r}"


@pytest.mark.parametrize("name", [name for name, each in METHODS.items() if inspect.isfunction(each)])
def test_a_method_says_what_goes_in_and_out(name: str) -> None:
    """Each parameter is explained under its name, in order; so are what is returned, unless the first line says it, and
    what is raised."""
    method, said = METHODS[name], sections_of(METHODS[name])
    assert named_in(said.get("Args", "")) == arguments_of(method)
    begins = re.search(r"\breturn\b", said[""].strip().split("\n")[0], re.IGNORECASE)
    assert inspect.signature(method).return_annotation == "None" or "Returns" in said or begins
    assert ("Raises" in said) == (name not in NEVER_RAISES)
    errors = named_in(said.get("Raises", ""))
    assert [each for each in errors if not hasattr(replidict, each) and not hasattr(builtins, each)] == []


def test_the_constructor_is_told() -> None:
    """Each argument of the constructors that programs call is explained, and what they raise."""
    for kind in (ReplicatedDict, replidict.TLS):
        said = sections_of(kind)
        assert named_in(said["Args"]) == arguments_of(kind)
        assert {"Raises", "Example"} <= set(said)


@pytest.mark.parametrize(
    "name", [name for name, kind in CLASSES.items() if is_dataclass(kind) or hasattr(kind, "_fields")]
)
def test_each_field_is_told(name: str) -> None:
    """Each field of a public record is explained: by a text behind it, or under "Attributes" or "Args"."""
    kind: Any = CLASSES[name]
    wanted = [each.name for each in fields(kind)] if is_dataclass(kind) else list(kind._fields)
    said = sections_of(kind)
    told = set(named_in(said.get("Attributes", said.get("Args", ""))))
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            told.add(field.target.id)  # type: ignore[union-attr]
    assert [each for each in wanted if each not in told] == []


# -- coroutines -----------------------------------------------------------------------------------------------------

TWINS: list[tuple[type, type]] = [
    (async_dict.AsyncDict, ReplicatedDict),
    (leadership.Leadership, replidict.Leadership),
    (lease.Lease, replidict.Lease),
    (lock.Lock, replidict.Lock),
    (watch.Watch, replidict.Watch),
]
"""The classes of `replidict.aio`, each with the one whose methods its docstrings lean on."""


def aio_examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.iter_modules(aio.__path__, "replidict.aio."):
        yield from (test for test in finder.find(sys.modules[info.name]) if test.examples)


@pytest.mark.parametrize("example", list(aio_examples()), ids=lambda example: example.name.removeprefix("replidict."))
def test_an_example_with_await_runs(example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a docstring of `replidict.aio`, with a fresh dict `a`, gives what it shows."""
    monkeypatch.chdir(tmp_path)

    async def run() -> None:
        async with aio.open("d") as a:
            names = {"a": a, "replidict": replidict}
            for each in example.examples:
                code = compile(each.source, example.name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                with redirect_stdout(io.StringIO()) as said:
                    waiting = eval(code, names)
                    if inspect.iscoroutine(waiting):
                        await waiting
                assert said.getvalue() == each.want, each.source

    asyncio.run(run())


def test_the_examples_with_await_are_found() -> None:
    """Every section "Example" in `replidict.aio` has lines that are run."""
    shown = sum(
        "Example:" in (ast.get_docstring(node) or "")
        for path in Path(aio.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert len(list(aio_examples())) == shown > 7


@pytest.mark.parametrize(("kind", "twin"), TWINS, ids=lambda kind: kind.__name__)
def test_a_coroutine_says_what_goes_in(kind: type, twin: type) -> None:
    """The docstring of each public method of `replidict.aio` begins with a line of its own, and explains its
    parameters, all and in order, or leaves that to the method of the same name and the same parameters."""
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if name.startswith("_"):
            continue
        first = (method.__doc__ or "").split("\n\n")[0].strip()
        assert re.fullmatch(r"[A-Z`(].*[.]", first), f"{name}: {first!r}"
        explained = named_in(sections_of(method).get("Args", ""))
        if explained or not hasattr(twin, name):
            assert explained == arguments_of(method), name
        else:
            assert arguments_of(method) == arguments_of(getattr(twin, name)), name

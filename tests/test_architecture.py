"""The house is built as design section 4 draws it: each floor imports only what is below it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import replidict

ROOT = Path(replidict.__file__).parent

FLOORS = [
    ["__main__"],
    ["command"],
    ["http"],
    ["replicated_dict"],
    ["host"],
    ["automatic", "desk", "herald", "joining"],
    ["arguments", "backup", "client", "cluster", "futures", "plain", "views", "ticker", "workers"],
    ["waiting"],
    ["node"],
    ["proposals", "reads"],
    ["raft"],
    ["storage"],
    ["state_machine"],
    ["commands"],
    ["codec"],
    # Known to all: what can go wrong, what can be set, what is said; who may connect; and the shape of a log entry.
    ["raft.messages", "security", "options", "status"],
    ["errors"],
]
"""From the roof down. Modules of one floor may know each other only within one package."""

MAX_LINES = 470


def modules() -> list[str]:
    """Every module of the package, without its first name; the package itself is ''."""
    found = ["", *(info.name.removeprefix("replidict.") for info in pkgutil.walk_packages([str(ROOT)], "replidict."))]
    assert {"raft.engine", "storage.store", "codec"} <= set(found)
    return found


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parse(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def imports(module: str) -> Iterator[str]:
    """The modules that a module imports when it runs, by full name; what only type checkers see is left out."""
    for node in _running(parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if path_exists(inner) else node.module


def path_exists(name: str) -> bool:
    return name.startswith("replidict.") and path_of(name.removeprefix("replidict.")).exists()


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _running(node)


def floor_of(module: str) -> int:
    """The number of its floor, counted from the roof; the longest name that fits says which."""
    fitting = [
        (len(name), number)
        for number, floor in enumerate(FLOORS)
        for name in floor
        if module == name or module.startswith(f"{name}.")
    ]
    assert fitting, f"replidict.{module} stands on no floor: say in FLOORS where it belongs"
    return max(fitting)[1]


def test_imports_go_down() -> None:
    """A module imports only what is on a floor below its own, or beside it in its own package (section 4)."""
    wrong = []
    for module in modules():
        for imported in imports(module) if module else ():
            if imported.split(".")[0] != "replidict":
                continue
            other = imported.removeprefix("replidict").removeprefix(".")
            assert other, f"{module} imports the package itself, and with it the roof"
            package = module.partition(".")[0]
            neighbour = package in ("raft", "storage", "http", "command") and other.startswith(f"{package}.")
            if floor_of(other) < floor_of(module) or (floor_of(other) == floor_of(module) and not neighbour):
                wrong.append(f"{module} imports {other}")
    assert not wrong


@pytest.mark.parametrize("module", ["replidict", "replidict.command.main"])
def test_the_extra_is_extra(module: str) -> None:
    """Neither package nor command loads HTTP, or what `replidict[serve]` installs, before it is to be served."""
    extra = ["replidict.http", "starlette", "uvicorn", "h11", "anyio", "prometheus_client"]
    program = f"import sys, {module}; print([name for name in {extra} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_no_pickle() -> None:
    """No module imports, or calls, what could run code from the network or from disk (promise 7)."""
    banned = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "pysyncobj.pickle"}
    wrong = []
    for module in modules():
        found = {each for each in imports(module) if each in banned or each.split(".")[0] in banned}
        called = {node.id for node in ast.walk(parse(module)) if isinstance(node, ast.Name)}
        wrong += [f"{module}: {each}" for each in found | called & {"eval", "exec", "__import__"}]
    assert not wrong


def test_engine_alone_knows_private_names() -> None:
    """Only the engine touches PySyncObj's private names, so a new release is checked in one place (section 6)."""
    assert [module for module in modules() if "_SyncObj__" in path_of(module).read_text()] == ["raft.engine"]


def test_the_state_machine_knows_no_outside() -> None:
    """The state machine and what is below it import no clock, no randomness, no I/O (promise 5)."""
    banned = {"time", "random", "secrets", "os", "io", "socket", "sqlite3", "pathlib", "logging", "pysyncobj", "select"}
    for module in ("state_machine", "commands", "codec"):
        assert not {each.split(".")[0] for each in imports(module)} & banned, module


def test_modules_are_small() -> None:
    """No module is longer than a reader takes in at one sitting (section 4)."""
    lengths = {module: len(path_of(module).read_text().splitlines()) for module in modules()}
    assert not {module: length for module, length in lengths.items() if length > MAX_LINES}


def test_modules_open_with_what_they_are() -> None:
    """Every module opens with a docstring."""
    assert not [module for module in modules() if not ast.get_docstring(parse(module))]


def test_all_is_complete() -> None:
    """`__all__` lists exactly the public names of the package, and all of design section 3 is among them."""
    names = vars(replidict).items()
    public = {name for name, value in names if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert set(replidict.__all__) == public
    assert len(replidict.__all__) == len(public)
    assert public >= {
        "ReplicatedDict", "ReplidictError", "NotCommitted", "OutcomeUnknown", "ReadTimeout", "ClosedError",
        "StorageError", "EncodingError", "SecurityError", "Options", "TLS", "Codec", "Versioned", "Status",
    }  # fmt: skip


def test_init_only_names() -> None:
    """`__init__` has a docstring, imports and `__all__`, and nothing else."""
    docstring, *rest = parse("").body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        assert isinstance(node, ast.ImportFrom) or ast.unparse(node).startswith("__all__ = "), ast.unparse(node)


def _public() -> Iterator[tuple[str, object]]:
    for name in replidict.__all__:
        value = getattr(replidict, name)
        yield name, value
        if inspect.isclass(value) and name != "Codec":
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (callable(member) or isinstance(member, property)):
                    yield f"{name}.{attribute}", member


def test_public_names_are_described() -> None:
    """Every public name, and every public method of one, has a docstring of its own (section 3)."""
    for name, value in _public():
        own = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        assert own, f"{name} has no docstring"
        assert not own.startswith(f"{name}("), f"{name} has only the docstring that dataclass or NamedTuple made up"


def test_every_public_item_inside_is_described() -> None:
    """Every public class, function and method of every module has a docstring, unless it overrides one that has."""
    missing = []
    for module in modules():
        loaded = importlib.import_module(f"replidict.{module}" if module else "replidict")
        for node in ast.walk(parse(module)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                missing += [
                    f"{loaded.__name__}.{node.name}.{inner.name}"
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef)
                    and not inner.name.startswith("_")
                    and not ast.get_docstring(inner)
                    and not {"override", "overload"} & {ast.unparse(each) for each in inner.decorator_list}
                    and not any(ast.unparse(each).endswith(".setter") for each in inner.decorator_list)
                ]
        missing += [
            f"{loaded.__name__}.{node.name}"
            for node in parse(module).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert not missing


def test_the_error_tree() -> None:
    """The errors are siblings under one base, each also what a program without replidict would catch (section 3)."""
    tree = {
        replidict.NotCommitted: Exception, replidict.OutcomeUnknown: TimeoutError, replidict.ReadTimeout: TimeoutError,
        replidict.ClosedError: ValueError, replidict.StorageError: Exception, replidict.EncodingError: TypeError,
        replidict.SecurityError: Exception,
    }  # fmt: skip
    for error, builtin in tree.items():
        assert issubclass(error, builtin) and error.__bases__[0] is replidict.ReplidictError
        assert not any(issubclass(error, other) for other in tree if other is not error)

"""The house is as docs/design.md draws it: a folder imports only what is below it, and nothing goes in a circle."""

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
    ["testing"],
    ["contrib", "aio"],
    ["api"],
    ["server"],
    ["node"],
    ["raft", "client"],
    ["storage", "transport"],
    ["machine"],
    ["protocol"],
    [
        "background",
        "brief",
        "call",
        "errors",
        "forks",
        "large_encoding",
        "latch",
        "log_throttle",
        "logging_thread",
        "monotonic_clock",
        "options",
        "own_threads",
        "release",
        "security",
        "status",
        "thread_pool",
    ],
]
"""From the roof down. A module imports from its own folder and from the floors below, and nothing from beside it; only
modules of the ground may know each other."""

NEVER = {
    "machine": {"protocol"},
    "raft": {"storage", "machine", "protocol"},
    "storage": {"machine", "protocol"},
    "api": {"aio", "server", "node", "client", "storage", "machine", "protocol"},
    "aio": {"api", "server", "node", "client", "machine"},
    "http": {"api", "aio", "contrib.prometheus", "machine", "server.operations"},
    "command": {"client", "protocol", "storage", "machine"},
}
"""The folders that may not import all that is below them, and what they may import beside themselves and the ground."""

PURE = {"brief", "errors", "large_encoding", "release"}
"""What the state machine may import of the ground."""

COMPUTES = {
    "__future__", "abc", "array", "bisect", "builtins", "collections", "dataclasses", "datetime", "decimal", "enum",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "msgspec", "numbers", "operator", "re", "struct",
    "sys", "traceback", "typing", "typing_extensions", "uuid", "zlib", "zoneinfo", "sortedcontainers",
}  # fmt: skip
"""... and of Python and its packages."""

EXTRAS = {"django": {"django", "asgiref"}, "apscheduler": {"apscheduler"}, "tooz": {"tooz", "oslo_utils"}}
"""The adapters, and what is installed for each."""

SERVE = "command.serve"
"""The one module of the command that may import `http`."""

UPWARD = {("api.replicated_dict", "aio.async_dict")}
"""The one import that goes up, and in a circle: a dict names its face for coroutines, and loads it for `d.aio`."""

MAX_LINES = 450


def modules() -> list[str]:
    """Every module of the package, without its first name; the package itself is ''."""
    found = ["", *(info.name.removeprefix("replidict.") for info in pkgutil.walk_packages([str(ROOT)], "replidict."))]
    assert {"raft.engine", "storage.store", "machine.codec"} <= set(found)
    return found


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parse(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def imports(module: str) -> Iterator[str]:
    """The modules that a module imports, by full name, what only type checkers see included."""
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if path_exists(inner) else node.module


def path_exists(name: str) -> bool:
    return name.startswith("replidict.") and path_of(name.removeprefix("replidict.")).exists()


def inner_imports(module: str) -> set[str]:
    """The package's own modules among `imports`, without the package's name."""
    found = {name.removeprefix("replidict.") for name in imports(module) if name.startswith("replidict.")}
    if folder_of(module) != "contrib":
        assert "replidict" not in set(imports(module)), f"{module} imports the package itself, and with it the roof"
    return found


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def floor_of(module: str) -> int:
    """The number of its floor, counted from the roof."""
    numbers = [number for number, floor in enumerate(FLOORS) if folder_of(module) in floor]
    assert numbers, f"replidict.{module} stands on no floor: say in FLOORS where it belongs"
    return numbers[0]


def test_imports_go_down() -> None:
    """A module imports only from its own folder and from the floors below."""
    wrong = [
        f"{module} imports {other}"
        for module in modules()
        for other in (inner_imports(module) if module else ())
        if folder_of(other) != folder_of(module)
        and floor_of(other) <= floor_of(module)
        and not floor_of(other) == floor_of(module) == len(FLOORS) - 1
        and (module, other) not in UPWARD
    ]
    assert not wrong


def test_some_imports_are_never() -> None:
    """A folder that is named in NEVER imports only itself, the ground, and what stands there."""
    wrong = []
    for module in modules():
        folder = folder_of(module)
        if folder not in NEVER:
            continue
        allowed = {folder, *FLOORS[-1], *NEVER[folder], *(["http"] if module == SERVE else [])}
        wrong += [
            f"{module} imports {other}"
            for other in inner_imports(module)
            if folder_of(other) not in allowed and other not in allowed
        ]
    assert not wrong


def test_contrib_uses_what_everybody_may_use() -> None:
    """Adapters import the public names of the package and nothing of its inside, not even each other."""
    adapters = [module for module in modules() if folder_of(module) == "contrib"]
    assert len(adapters) > 1
    assert not [f"{module} imports {other}" for module in adapters for other in inner_imports(module)]


def test_each_extra_is_for_one_adapter() -> None:
    """What an extra of an adapter installs is imported by that adapter alone."""
    wrong = [
        f"{module} imports {name}"
        for module in modules()
        for name in imports(module)
        for adapter, names in EXTRAS.items()
        if name.split(".")[0] in names and module != f"contrib.{adapter}"
    ]
    assert not wrong


def test_nothing_goes_in_a_circle() -> None:
    """No module imports itself by way of others, what only type checkers see included."""
    known = {module: inner_imports(module) if module else set() for module in modules()}
    for module, other in UPWARD:
        known[module].remove(other)
    wrong = []
    for start in known:
        reached, waiting = set[str](), [start]
        while waiting:
            fresh = known.get(waiting.pop(), set()) - reached
            reached |= fresh
            waiting += fresh
        if start in reached:
            wrong.append(start)
    assert not wrong


@pytest.mark.parametrize("module", ["replidict", "replidict.command.main"])
def test_the_extra_is_extra(module: str) -> None:
    """Neither package nor command loads HTTP, or what `replidict[serve]` installs, before it is to be served."""
    extra = ["replidict.http", "starlette", "uvicorn", "h11", "anyio", "prometheus_client"]
    extra += ["replidict.contrib", *sorted(name for names in EXTRAS.values() for name in names)]
    program = f"import sys, {module}; print([name for name in {extra} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_no_pickle() -> None:
    """No module imports, or calls, what could run code from the network or from disk (promise 7)."""
    banned = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "pysyncobj.pickle"}
    wrong = []
    for module in modules():
        found = {each for each in imports(module) if each in banned or each.split(".")[0] in banned}
        found -= {"pickle"} if module == "contrib.apscheduler" else set()  # only when it is asked to
        called = {node.id for node in ast.walk(parse(module)) if isinstance(node, ast.Name)}
        wrong += [f"{module}: {each}" for each in found | called & {"eval", "exec", "__import__"}]
    assert not wrong


def test_engine_alone_knows_private_names() -> None:
    """Only the engine touches PySyncObj's private names, so a new release is checked in one place."""
    assert [module for module in modules() if "_SyncObj__" in path_of(module).read_text()] == ["raft.engine"]


def test_the_state_machine_knows_no_outside() -> None:
    """The state machine imports what computes, and no clock, no randomness, no threads and no I/O (promise 5)."""
    for module in (each for each in modules() if folder_of(each) == "machine"):
        own = {each for each in inner_imports(module) if folder_of(each) != "machine"}
        others = {each for each in imports(module) if folder_of(each) != "replidict"}
        assert own <= PURE, f"{module}: {own - PURE}"
        allowed = COMPUTES | {"threading"} if module == "machine.key_index" else COMPUTES  # other threads read that one
        assert {folder_of(each) for each in others} <= allowed, f"{module}: {others}"
        called = {
            node.func.id
            for node in ast.walk(parse(module))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"open", "print", "input", "exec", "eval", "__import__"}, module


def test_modules_are_small() -> None:
    """No module is longer than a reader takes in at one sitting."""
    lengths = {module: len(path_of(module).read_text().splitlines()) for module in modules()}
    assert not {module: length for module, length in lengths.items() if length > MAX_LINES}


def test_modules_open_with_what_they_are() -> None:
    """Every module opens with a docstring."""
    assert not [module for module in modules() if not ast.get_docstring(parse(module))]


def test_all_is_complete() -> None:
    """`__all__` lists exactly the public names of the package, and what a program needs at least is among them."""
    names = vars(replidict).items()
    public = {name for name, value in names if not name.startswith("_") and not isinstance(value, ModuleType)}
    assert sorted(replidict.__all__) == sorted({*public, "__version__"})
    assert public >= {
        "ReplicatedDict", "ReplidictError", "NotCommitted", "OutcomeUnknown", "ReadTimeout", "ClosedError",
        "StorageError", "EncodingError", "SecurityError", "Options", "TLS", "Codec", "Versioned", "Status",
    }  # fmt: skip


def test_init_only_names() -> None:
    """`__init__` has a docstring, imports and `__all__`, and nothing else; so has that of `aio`."""
    for module in ("", "aio"):
        docstring, *rest = parse(module).body
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
    """Every public name, and every public method of one, has a docstring of its own."""
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
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not inner.name.startswith("_")
                    and not ast.get_docstring(inner)
                    and not {"override", "overload"} & {ast.unparse(each) for each in inner.decorator_list}
                    and not any(ast.unparse(each).endswith(".setter") for each in inner.decorator_list)
                ]
        missing += [
            f"{loaded.__name__}.{node.name}"
            for node in parse(module).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert not missing


def test_the_error_tree() -> None:
    """The errors are siblings under one base, each also what a program without replidict would catch."""
    tree = {
        replidict.NotCommitted: Exception, replidict.OutcomeUnknown: TimeoutError, replidict.ReadTimeout: TimeoutError,
        replidict.ClosedError: ValueError, replidict.StorageError: Exception, replidict.EncodingError: TypeError,
        replidict.SecurityError: Exception,
    }  # fmt: skip
    for error, builtin in tree.items():
        assert issubclass(error, builtin) and error.__bases__[0] is replidict.ReplidictError
        assert not any(issubclass(error, other) for other in tree if other is not error)


def test_no_thread_of_a_node_calls_a_logging_handler() -> None:
    """What runs in a node's thread logs by `logging_thread`: only faces, and threads nobody waits for, log directly."""
    direct = {module for module in modules() if "logging.getLogger" in path_of(module).read_text()}
    allowed = {"logging_thread", "aio.leadership", "api.leadership", "server.stop_callbacks", "transport.tcp"}
    allowed.add("testing.simulation")  # which has nodes that fail on purpose be silent
    assert {module for module in direct if folder_of(module) not in ("command", "http")} == allowed

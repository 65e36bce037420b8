"""The seam to uvicorn: what `http/connection_limits.py` uses of it, and uvicorn does not promise."""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from replidict.http import connection_limits

PARAMETERS = {
    "connection_made": ["self", "transport"],
    "connection_lost": ["self", "exc"],
    "data_received": ["self", "data"],
    "eof_received": ["self"],
    "on_response_complete": ["self"],
    "send_400_response": ["self", "msg"],
    "shutdown": ["self"],
    "_unset_keepalive_if_required": ["self"],
}


def attributes_of(source: str, *path: str) -> set[str]:
    """The names `x` of all `path.x` in a source."""
    return {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == ".".join(path)
    }


def assigned_in(kind: type[object]) -> set[str]:
    """The attributes that a class gives to its instances when they are made."""
    targets: list[ast.expr] = []
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))):
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return {target.attr for target in targets if isinstance(target, ast.Attribute)}


def used() -> str:
    return Path(connection_limits.__file__).read_text()


def test_every_attribute_is_one_that_uvicorn_has() -> None:
    """Each attribute of a connection that this project reads is its own, or one that uvicorn gives it."""
    ours = assigned_in(connection_limits.Connection) | set(vars(connection_limits.Connection))
    theirs = attributes_of(used(), "self") - ours
    assert {"transport", "loop", "config", "cycle", "connections", "flow", "timeout_keep_alive_task"} <= theirs
    assert theirs - assigned_in(H11Protocol) - set(dir(H11Protocol)) == set()
    assert "conn" in assigned_in(H11Protocol), "the place where our reader of heads is put"


def test_a_cycle_and_its_flow_have_what_is_used() -> None:
    """What is read and set of a request under way, and of the flow control, is there."""
    of_cycle, of_flow = attributes_of(used(), "self", "cycle"), attributes_of(used(), "self", "flow")
    assert of_cycle and of_cycle <= assigned_in(RequestResponseCycle)
    assert of_flow and of_flow <= set(dir(FlowControl))


@pytest.mark.parametrize("name", PARAMETERS)
def test_methods_take_what_they_took(name: str) -> None:
    """A method that is overridden or called takes the parameters that it took when it was read."""
    assert list(inspect.signature(getattr(H11Protocol, name)).parameters) == PARAMETERS[name]


def test_uvicorn_calls_what_is_overridden() -> None:
    """The methods that only uvicorn itself calls are called by it: an override that nobody calls would do nothing."""
    source = inspect.getsource(inspect.getmodule(H11Protocol))  # type: ignore[arg-type]
    for call in ("self.send_400_response(", "self.on_response_complete", "self.conn.next_event()", "self.conn.send("):
        assert call in source

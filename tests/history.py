"""Histories of dict operations, recorded for `linearizability.check`, and what a dict does (`apply`).

A recorder writes one `Operation` per call, by these rules:

1. `call` is stamped before the operation starts and `ret` after it ended, on one clock that all clients share. Equal
   stamps count as concurrent: a coarse clock never raises a false alarm but hides violations, so count events instead.
2. An operation that surely did not happen (`NotCommitted`), and a read that failed, are left out.
3. An operation whose outcome is unknown has `ret=None`: it takes effect at any moment after its call, or never.
4. Keys and values are hashable and compared by `==`; None is not a value, because as a result it means "no such key".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

READS = frozenset({"get", "len", "snapshot"})
SPANNING = frozenset({"transact", "update", "clear", "snapshot", "popitem", "len"})  # these have no key
UNCHECKED = frozenset({"set", "update", "clear"})  # what they return is ignored: None, or a revision
POPS = frozenset({"pop", "popitem"})
TESTS = (
    frozenset({"transact", "delete", "add", "compare_and_set"}) | POPS
)  # a false result, or None, says that nothing changed

State = tuple[tuple[Any, Any], ...]  # the items of the dict, in its order


@dataclass(frozen=True, slots=True)
class Operation:
    """One call by one client. The results are those of dict, except that None means "no such key" or "empty".

    Arguments: `set` and `add` take a value, `compare_and_set` takes (expected, value), `update` a mapping or items.
    `transact` takes (what it read, what it wrote), both as items, of which None means "absent"; it does nothing, and
    gives False, if what it read is not so.
    Results: `delete`, `add` and `compare_and_set` say whether they did it; `snapshot` is a mapping, or items, in order.
    """

    client: int | str
    call: float
    ret: float | None
    kind: str
    key: Hashable = None
    argument: Any = None
    result: Any = None

    def __post_init__(self) -> None:
        if self.kind not in READS | SPANNING | UNCHECKED | TESTS or self.end < self.call:
            raise ValueError(f"of unknown kind, or returns before it is called: {self!r}")
        if self.kind == "update":
            object.__setattr__(self, "argument", tuple(dict(self.argument).items()))
        if self.kind == "transact":
            object.__setattr__(self, "argument", tuple(tuple(map(tuple, part)) for part in self.argument))
        if self.kind == "snapshot" and self.ret is not None:
            items = self.result.items() if isinstance(self.result, Mapping) else self.result
            object.__setattr__(self, "result", tuple(map(tuple, items)))
        if any(value is None for _, value in self.writes()):
            raise ValueError(f"None cannot be told from a missing key: {self!r}")

    def __str__(self) -> str:
        call = ", ".join(repr(part) for part in (self.key, self.argument) if part is not None)
        answer = " -> ?" if self.ret is None else "" if self.kind in UNCHECKED else f" -> {self.result!r}"
        return f"{self.client}: {self.kind}({call}){answer}"

    @property
    def end(self) -> float:
        return inf if self.ret is None else self.ret

    def only_reads(self) -> bool:
        """Whether its result says that it changes nothing, whatever the state."""
        failed = self.kind in TESTS and (self.result is None or (self.kind not in POPS and not self.result))
        return self.kind in READS or (self.ret is not None and failed)

    def writes(self) -> State:
        """The items that it may bring into the dict."""
        if self.only_reads() or self.kind not in {"set", "add", "compare_and_set", "update", "transact"}:
            return ()
        if self.kind == "transact":
            return tuple(item for item in self.argument[1] if item[1] is not None)
        value = self.argument[1] if self.kind == "compare_and_set" else self.argument
        return value if self.kind == "update" else ((self.key, value),)

    def saw(self) -> State:
        """The items that were in the dict when it came, by its result."""
        if self.ret is None or self.result is None:
            return ()
        if self.kind == "transact":
            return tuple(item for item in self.argument[0] if item[1] is not None) if self.result else ()
        if self.kind == "compare_and_set":
            return ((self.key, self.argument[0]),) if self.result else ()
        seen: dict[str, State] = {"get": ((self.key, self.result),), "snapshot": self.result, "popitem": (self.result,)}
        return seen.get("get" if self.kind == "pop" else self.kind, ())


def apply(state: State, op: Operation) -> tuple[State, Any]:
    """What a dict does: the state after `op`, and its result."""
    content, key, argument, result = dict(state), op.key, op.argument, None
    match op.kind:
        case "get":
            result = content.get(key)
        case "len":
            result = len(content)
        case "snapshot":
            result = state
        case "set":
            content[key] = argument
        case "add":
            result = key not in content
            content.setdefault(key, argument)
        case "compare_and_set":
            result = key in content and bool(content[key] == argument[0])
            content.update({key: argument[1]} if result else {})
        case "transact":
            reads, writes = argument
            result = all(content.get(read) == seen for read, seen in reads)
            for written, value in writes if result else ():
                content.pop(written, None) if value is None else content.update({written: value})
        case "pop" | "delete":
            result = content.pop(key, None)
            result = result if op.kind == "pop" else result is not None
        case "popitem":
            result = content.popitem() if content else None
        case "update":
            content.update(argument)
        case "clear":
            content.clear()
    return tuple(content.items()), result

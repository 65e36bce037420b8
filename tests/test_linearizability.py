"""The linearizability checker on histories whose verdict is known."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history import SPANNING, Operation
from tests.linearizability import check, partition_by_key


def op(client: int, call: float, ret: float | None, kind: str, *rest: Any, key: str | None = "x") -> Operation:
    """The last of `rest` is the result, what precedes it the argument."""
    argument = rest[0] if len(rest) == 2 else None
    return Operation(client, call, ret, kind, None if kind in SPANNING else key, argument, rest[-1] if rest else None)


def perform(content: dict[Any, Any], kind: str, key: Any, argument: Any) -> Any:
    """The operation on a dict: a second, independent specification."""
    match kind:
        case "get":
            return content.get(key)
        case "set":
            content[key] = argument
        case "add":
            return key not in content and content.setdefault(key, argument) == argument
        case "compare_and_set":
            matches = key in content and content[key] == argument[0]
            content |= {key: argument[1]} if matches else {}
            return matches
        case "delete":
            return content.pop(key, None) is not None
        case "pop":
            return content.pop(key, None)
        case "popitem":
            return content.popitem() if content else None
        case "update":
            content.update(argument)
        case "clear":
            content.clear()
        case "len":
            return len(content)
        case "snapshot":
            return tuple(content.items())
    return None


def replays(order: tuple[Operation, ...]) -> bool:
    """Whether `order` respects real time and a dict gives its results."""
    content: dict[Any, Any] = {}
    latest = float("-inf")
    for operation in order:
        if operation.end < latest:
            return False
        latest = max(latest, operation.call)
        result = perform(content, operation.kind, operation.key, operation.argument)
        if (
            operation.ret is not None
            and operation.kind not in {"set", "update", "clear"}
            and result != operation.result
        ):
            return False
    return True


def brute_force(history: list[Operation]) -> bool:
    """Try every order of every choice of the unknown operations."""
    returned = [operation for operation in history if operation.ret is not None]
    unknown = [operation for operation in history if operation.ret is None]
    chosen = (some for size in range(len(unknown) + 1) for some in combinations(unknown, size))
    return any(replays(order) for some in chosen for order in permutations([*returned, *some]))


def execution(
    rng: random.Random, count: int, clients: int, kinds: list[str], keys: str, values: int
) -> list[Operation]:
    """Operations that really took effect at one point each, with random intervals around the points.

    Values are unique if `values` is 0; one outcome in a hundred is unknown, and half of those never happen.
    """
    free, moments, content = [0.0] * clients, [], dict[Any, Any]()
    for _ in range(count):
        client = min(range(clients), key=lambda number: free[number] + rng.random())
        call = free[client] + rng.random()
        point = call + rng.expovariate(1)
        free[client] = point + rng.expovariate(1)
        moments.append((point, client, call, free[client]))
    history = []
    for number, (_, client, call, ret) in enumerate(sorted(moments)):
        kind, key = rng.choice(kinds), rng.choice(keys)
        value = rng.randrange(values) if values else number
        expected = content.get(key, 0) if rng.random() < 0.6 else rng.randrange(values or number + 1)
        arguments: dict[str, Any] = {"set": value, "add": value, "compare_and_set": (expected, value)}
        argument = dict.fromkeys(keys[:2], value) if kind == "update" else arguments.get(kind)
        unknown = rng.random() < 0.01
        result = None if unknown and rng.random() < 0.5 else perform(content, kind, key, argument)
        history.append(op(client, call, None if unknown else ret, kind, argument, None if unknown else result, key=key))
    return history


GOOD = {
    "an empty history": [],
    "reads of a missing key": [op(1, 0, 1, "get", None), op(1, 2, 3, "delete", False), op(1, 4, 5, "pop", None)],
    "concurrent writes seen in either order": [
        op(1, 0, 10, "set", 1, None),
        op(2, 0, 10, "set", 2, None),
        op(3, 11, 12, "get", 1),
        op(3, 13, 14, "get", 1),
    ],
    "a read that overlaps the write it misses": [op(1, 0, 5, "set", 1, None), op(2, 1, 2, "get", None)],
    "an unknown write that takes effect late": [
        op(1, 0, None, "set", 1, None),
        op(2, 1, 2, "set", 2, None),
        op(2, 3, 4, "get", 2),
        op(2, 5, 6, "get", 1),
    ],
    "an unknown write that never takes effect": [op(1, 0, None, "set", 1, None), op(2, 5, 6, "get", None)],
    "an unknown pop that explains a missing key": [
        op(1, 0, 1, "set", 1, None),
        op(2, 2, None, "pop"),
        op(1, 3, 4, "get", 1),
        op(1, 5, 6, "get", None),
    ],
    "one of two compare-and-sets wins": [
        op(1, 0, 1, "set", 0, None),
        op(1, 2, 5, "compare_and_set", (0, 1), True),
        op(2, 2, 5, "compare_and_set", (0, 2), False),
    ],
    "a snapshot between two updates": [
        op(1, 0, 1, "update", {"x": 1, "y": 1}, None),
        op(1, 2, 6, "update", {"x": 2, "y": 2}, None),
        op(2, 3, 5, "snapshot", {"x": 1, "y": 1}),
        op(2, 7, 8, "popitem", ("y", 2)),
        op(2, 9, 9.5, "len", 1),
        op(2, 10, 11, "clear", None),
        op(2, 12, 13, "popitem", None),
    ],
}
BAD = {
    "a stale read": [op(1, 0, 1, "set", 1, None), op(1, 2, 3, "set", 2, None), op(2, 4, 5, "get", 1)],
    "a lost update": [
        op(1, 0, 1, "set", 0, None),
        op(1, 2, 5, "compare_and_set", (0, 1), True),
        op(2, 6, 9, "compare_and_set", (1, 2), True),
        op(1, 10, 11, "get", 1),
    ],
    "a compare-and-set that is not atomic": [
        op(1, 0, 1, "set", 0, None),
        op(1, 2, 5, "compare_and_set", (0, 1), True),
        op(2, 2, 5, "compare_and_set", (0, 2), True),
    ],
    "an add that succeeds twice": [op(1, 0, 5, "add", 1, True), op(2, 0, 5, "add", 2, True)],
    "a pop applied twice": [op(1, 0, 1, "set", 1, None), op(1, 2, 5, "pop", 1), op(2, 2, 5, "pop", 1)],
    "a retried pop that also took the next value": [
        op(1, 0, 1, "set", 1, None),
        op(1, 2, 9, "pop", 1),
        op(2, 3, 4, "get", None),
        op(2, 5, 6, "set", 2, None),
        op(2, 10, 11, "get", None),
    ],
    "a read of a value never written": [op(1, 0, 1, "set", 1, None), op(2, 0, 5, "get", 7)],
    "a write seen, then unseen": [op(1, 0, 20, "set", 1, None), op(2, 1, 2, "get", 1), op(3, 3, 4, "get", None)],
    "an unknown write seen twice": [
        op(1, 0, None, "set", 1, None),
        op(2, 1, 2, "get", 1),
        op(2, 3, 4, "set", 2, None),
        op(2, 5, 6, "get", 1),
    ],
    "an unknown write seen before its call": [op(2, 1, 2, "get", 1), op(1, 3, None, "set", 1, None)],
    "real time violated between clients": [
        op(1, 0, 1, "set", 1, None),
        op(2, 2, 3, "set", 2, None),
        op(3, 0, 4, "get", 2),
        op(4, 5, 6, "get", 1),
    ],
    "a torn snapshot": [
        op(1, 0, 1, "update", {"x": 1, "y": 1}, None),
        op(1, 2, 6, "update", {"x": 2, "y": 2}, None),
        op(2, 3, 5, "snapshot", {"x": 2, "y": 1}),
    ],
    "two keys written in an order that a snapshot reverses": [
        op(1, 0, 1, "set", 1, None, key="x"),
        op(1, 2, 3, "set", 1, None, key="y"),
        op(2, 4, 5, "snapshot", [("y", 1), ("x", 1)]),
    ],
    "a popitem that is not the newest": [
        op(1, 0, 1, "update", {"x": 1, "y": 1}, None),
        op(1, 2, 3, "popitem", ("x", 1)),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    """Histories that an atomic dict can produce are accepted, with an order that replays on a dict."""
    verdict = check(GOOD[name])
    assert verdict.ok, verdict
    assert replays(verdict.order)
    assert brute_force(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    """Histories that no atomic dict can produce are rejected, and the explanation marks what does not fit."""
    verdict = check(BAD[name])
    assert verdict.outcome == "not linearizable"
    assert "\n! " in str(verdict)
    assert not brute_force(BAD[name])


def test_explanation() -> None:
    """A stale read is shown after the writes that it contradicts, in a timeline."""
    assert str(check(BAD["a stale read"])).splitlines() == [
        "not linearizable: some order explains the first 2 of 3 returns, none the first 3",
        "such an order ends with the unmarked ones and leaves {'x': 2}; ? is waiting; ! fits nowhere",
        "  1: set('x', 1)    [-]  0..1",
        "  1: set('x', 2)      [-]  2..3",
        "! 2: get('x') -> 1      [-]  4..5",
    ]


def test_undecided() -> None:
    """A search that runs out of time says so, and is neither a pass nor a violation."""
    rng = random.Random(1)
    verdict = check(execution(rng, 3000, 24, ["get", "set", "add", "delete"], "x", 5), seconds=0)
    assert verdict.outcome == "undecided"
    assert not verdict.ok


def test_initial_content() -> None:
    """A history may start from a dict that is not empty."""
    assert check([op(1, 0, 1, "get", 7)], initial={"x": 7, "y": 1}).ok
    assert check([op(1, 0, 1, "snapshot", {"x": 7})], initial={"x": 7}).ok
    assert not check([op(1, 0, 1, "get", 7)], initial={"y": 7}).ok


def test_refused() -> None:
    """What the checker could not judge is refused: unknown kinds, None as a value, and spanning operations per key."""
    with pytest.raises(ValueError, match="of unknown kind"):
        op(1, 0, 1, "frobnicate", None)
    with pytest.raises(ValueError, match="before it is called"):
        op(1, 2, 1, "get", None)
    with pytest.raises(ValueError, match="None cannot be told"):
        op(1, 0, 1, "set", None, None)
    with pytest.raises(ValueError, match="no single key"):
        partition_by_key([op(1, 0, 1, "clear", None)])


KEYED = ["get", "get", "set", "add", "compare_and_set", "delete", "pop"]
WHOLE = [*KEYED, "update", "clear", "snapshot", "popitem", "len"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([KEYED, WHOLE]), st.integers(1, 8), st.integers(0, 4))
def test_executions_are_accepted(seed: int, kinds: list[str], clients: int, values: int) -> None:
    """Whatever a dict really did at one point inside each interval is accepted."""
    history = execution(random.Random(seed), 60, clients, kinds, "xyz", values)
    verdict = check(history)
    assert verdict.ok, verdict
    if any(operation.kind in SPANNING for operation in history):
        assert replays(verdict.order)


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([KEYED, WHOLE]), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
def test_agrees_with_brute_force(seed: int, kinds: list[str], clients: int, values: int, unknown: int) -> None:
    """On small histories with changed results and forgotten outcomes, the verdict is that of trying every order."""
    rng = random.Random(seed)
    history = execution(rng, 6, clients, kinds, "xy", values)
    for index in rng.sample(range(6), unknown):
        history[index] = replace(history[index], ret=None, result=None)
    for index, operation in enumerate(history):
        if operation.ret is not None and rng.random() < 0.4:
            history[index] = replace(operation, result=mutated(rng, operation))
    assert check(history).ok == brute_force(history)


def mutated(rng: random.Random, operation: Operation) -> Any:
    """Another result for the operation, possible or not."""
    number, items = rng.randrange(6), operation.result if operation.kind == "snapshot" else ()
    other: dict[str, Any] = {"get": rng.choice([None, number]), "pop": rng.choice([None, number]), "len": number % 3}
    other["popitem"] = rng.choice([None, ("x", number), ("y", number)])
    other["snapshot"] = rng.choice([items[::-1], items[:1]])
    return other.get(operation.kind, not operation.result)


@pytest.mark.parametrize("clients", [8, 24])
def test_speed(clients: int) -> None:
    """Three thousand operations on one key, some thirty of them with unknown outcome, are accepted within seconds."""
    history = execution(random.Random(7), 3000, clients, KEYED, "x", 0)
    assert sum(operation.ret is None for operation in history) > 20
    verdict = check(history, seconds=20)
    assert verdict.ok, verdict
    assert replays(verdict.order)

"""`ReplicatedDict` is a dict: the same results, exceptions and order; and it is atomic, faithful and versioned."""

from __future__ import annotations

import copy
import datetime as dt
import math
import pickle
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict import (
    ClosedError,
    EncodingError,
    NotCommitted,
    Options,
    OutcomeUnknown,
    ReplicatedDict,
    ReplidictError,
    StorageError,
)
from replidict.node.update import in_part, update
from tests.clusters import Dict, alone

QUICK = Options(durability="process")
"""What these tests show does not hang on fsync, and there are thousands of writes."""


@pytest.fixture(params=["own", "attached"])
def d(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dict]:
    """One open, empty dict."""
    with alone(tmp_path / "d", request.param, options=QUICK) as opened:
        yield opened


def exact(value: Any) -> Any:
    """A form in which only what has the same value and the same types, all the way down, is equal."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [exact(each) for each in value]
    if isinstance(value, set | frozenset):
        return type(value).__name__, sorted(repr(exact(each)) for each in value)
    if isinstance(value, dict):
        return "dict", [(exact(key), exact(each)) for key, each in value.items()]
    return type(value).__name__, repr(value)


def in_threads(*targets: Callable[[], object]) -> None:
    """Run them at once; what one of them raises fails the test."""
    failed: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 -- raised again below
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


# -- against dict ---------------------------------------------------------------------------------------------------

_keys = st.sampled_from(
    [1, True, 1.0, Decimal(1), 0, False, -0.0, None, "", "a", "b", b"a", (), (1, "a"), (True, "a"), frozenset({1}),
     frozenset({True}), "é\ud800", 2**70, dt.date(2024, 2, 29), UUID(int=7)]
)  # fmt: skip
_unhashable: st.SearchStrategy[Any] = st.sampled_from([[], {}, set(), (1, [2]), bytearray(b"a")])
_any_keys = st.one_of(_keys, _keys, _keys, _keys, _keys, _unhashable)
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5),
    st.decimals(allow_nan=False), st.dates(), st.uuids(), st.timedeltas(),
)  # fmt: skip
_values = st.one_of(
    st.integers(0, 3),
    st.recursive(
        _scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(_keys, inner, max_size=3),
            st.frozensets(_scalars, max_size=3),
            st.sets(_scalars, max_size=3),
        ),
        max_leaves=6,
    ),
)
_pairs = st.lists(st.tuples(_keys, _values), max_size=5)


def _operation(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


_operations = st.one_of(
    _operation("set", _any_keys, _values),
    _operation("set", _keys, _values),
    _operation("add", _any_keys, _values),
    _operation("compare_and_set", _keys, _values, _values),
    _operation("replace", _keys, _values, st.booleans()),
    _operation("del", _any_keys),
    _operation("pop", _any_keys),
    _operation("pop_or", _any_keys, _values),
    _operation("popitem"),
    _operation("setdefault", _any_keys, _values),
    _operation("setdefault_none", _any_keys),
    _operation("update", _pairs),
    _operation("update_mapping", st.dictionaries(_keys, _values, max_size=4)),
    _operation("update_names", st.dictionaries(st.sampled_from(["a", "b", "self", "other"]), _values)),
    _operation("ior", _pairs),
    _operation("or", st.dictionaries(_keys, _values, max_size=4)),
    _operation("clear"),
    _operation("get", _any_keys, _values),
    _operation("getitem", _any_keys),
    _operation("in", _any_keys),
    _operation("in_keys", _any_keys),
    _operation("in_values", _values),
    _operation("in_items", _any_keys, _values),
    _operation("keys_and_set", st.frozensets(_keys, max_size=4)),
)


def perform(mapping: Any, operation: tuple[Any, ...]) -> Any:
    """Do one operation on a `dict` or a `ReplicatedDict`, with dict's own words where it has some."""
    name, *given_arguments = operation
    a, b, c = (*given_arguments, None, None, None)[:3]
    match name:
        case "set":
            mapping[a] = b
        case "add":
            return mapping.add(a, b) if isinstance(mapping, ReplicatedDict) else _add(mapping, a, b)
        case "compare_and_set":
            if isinstance(mapping, ReplicatedDict):
                return mapping.compare_and_set(a, b, c)
            return _replace_if(mapping, a, c, a in mapping and mapping[a] == b)
        case "replace":  # with the revision that is there, or with the one before it
            if not isinstance(mapping, ReplicatedDict):
                return _replace_if(mapping, a, b, c and a in mapping)
            found = mapping.versioned(a)
            return mapping.replace(a, b, revision=0 if found is None else found.revision - (not c))
        case "del":
            del mapping[a]
        case "pop" | "pop_or":
            hash(a)  # an empty dict's pop does not look
            return mapping.pop(a) if name == "pop" else mapping.pop(a, b)
        case "popitem":
            return mapping.popitem()
        case "setdefault":
            return mapping.setdefault(a, b)
        case "setdefault_none":
            return mapping.setdefault(a)
        case "update" | "update_mapping":
            return mapping.update(a)
        case "update_names":
            return mapping.update({"a": 0}, **a)
        case "ior":
            mapping |= a
        case "or":
            return [mapping | a, a | mapping]
        case "clear":
            return mapping.clear()
        case "get":
            return [mapping.get(a), mapping.get(a, b)]
        case "getitem":
            return mapping[a]
        case "in":
            return a in mapping
        case "in_keys":
            return a in mapping.keys()  # noqa: SIM118 -- the view is what is tested
        case "in_values":
            return a in mapping.values()
        case "in_items":
            return (a, b) in mapping.items()
        case "keys_and_set":
            keys = mapping.keys()
            # Which of 1, True and 1.0 is in the result is not defined, so it is compared as a set.
            return [keys == a, keys != a, keys <= a, keys < a, keys >= a, keys > a, keys.isdisjoint(a), *(
                each == set(mapping) & a if n == 0 else len(each)
                for n, each in enumerate((keys & a, a & keys, keys | a, keys - a, a - keys, keys ^ a)))]  # fmt: skip
    return None


def _add(mapping: dict[Any, Any], key: Any, value: Any) -> bool:
    absent = key not in mapping
    mapping.setdefault(key, value)
    return absent


def _replace_if(mapping: dict[Any, Any], key: Any, value: Any, condition: bool) -> bool:
    if condition:
        mapping[key] = value
    return condition


def outcome(mapping: Any, operation: tuple[Any, ...]) -> Any:
    """What it returned or raised; of a `TypeError`, dict's words are not ours."""
    try:
        return "returned", exact(perform(mapping, operation))
    except KeyError as error:
        return "raised", "KeyError", exact(error.args)
    except TypeError:
        return "raised", "TypeError"


def assert_same(d: Dict, model: dict[Any, Any]) -> None:
    """Equal in every way in which a dict can be looked at."""
    assert exact(list(d.items())) == exact(list(model.items()))
    assert exact(list(d)) == exact(list(model)) == exact(list(d.keys()))
    assert exact(list(d.values())) == exact(list(model.values()))
    assert exact(list(reversed(d))) == exact(list(reversed(model)))
    assert exact(list(reversed(d.items()))) == exact(list(reversed(model.items())))
    assert exact(list(reversed(d.values()))) == exact(list(reversed(model.values())))
    assert exact(d.snapshot()) == exact(d.copy()) == exact(dict(d)) == exact(model)
    assert type(d.copy()) is type(d.snapshot()) is dict
    assert len(d) == len(d.keys()) == len(d.items()) == len(d.values()) == len(model)
    assert bool(d) is bool(model)
    assert d == model and model == d and (d != model) is False
    no_mapping: Any = list(model.items())
    assert d != {**model, "one more": 1} and d != no_mapping


def test_like_dict(tmp_path: Path) -> None:
    """Whatever is done to it, it returns, raises and holds what dict does, also once reopened (promises 4, 6, 9)."""
    opened = [ReplicatedDict[Any, Any](tmp_path / "d", options=QUICK)]

    @settings(max_examples=120, deadline=None)
    @given(st.lists(_operations, max_size=25))
    def check(operations: list[tuple[Any, ...]]) -> None:
        d = opened[0]
        d.clear()
        model: dict[Any, Any] = {}
        for operation in operations:
            assert outcome(d, operation) == outcome(model, operation), operation
        assert_same(d, model)
        revision = d.revision
        d.close()
        opened[0] = d = ReplicatedDict[Any, Any](tmp_path / "d", options=QUICK)
        assert d.revision == revision
        assert_same(d, model)

    try:
        check()
    finally:
        opened[0].close()


def test_values_that_are_not_equal_to_themselves(d: Dict) -> None:
    """NaN comes back as NaN, and infinities and signed zeros as they were (promise 6)."""
    d.update({"nan": math.nan, "inf": math.inf, "zero": -0.0, "list": [math.nan]})
    assert math.isnan(d["nan"])
    assert d["inf"] == math.inf
    assert math.copysign(1, d["zero"]) == -1
    assert math.isnan(d["list"][0])


@pytest.mark.parametrize(("first", "second"), [(1, True), (True, 1.0), (1.0, Decimal(1)), ((0,), (False,))])
def test_equal_keys_of_other_types_stay_the_first_one(tmp_path: Path, first: Any, second: Any) -> None:
    """1, True and 1.0 are one key, and the one that came first is kept, as in dict, whatever is on disk (promise 6)."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d[first] = "first"
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d[second] = "second"
        assert exact(d.snapshot()) == exact({first: "second"})
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert exact(d.snapshot()) == exact({first: "second"})
        assert exact(d.popitem()) == exact((first, "second"))
        d[second] = "third"
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert exact(d.snapshot()) == exact({second: "third"})


@pytest.mark.parametrize("key", [[], {}, set(), bytearray(), ([],)])
def test_unhashable_keys(d: Dict, key: Any) -> None:
    """An unhashable key is a `TypeError`, as with dict; on writes an `EncodingError`, which is one."""
    d["a"] = 1
    before = d.revision
    reads: list[Callable[[], object]] = [lambda: d[key], lambda: d.get(key), lambda: key in d, lambda: d.versioned(key)]
    for read in reads:
        with pytest.raises(TypeError, match="unhashable"):
            read()
    writes: list[Callable[[], object]] = [
        lambda: d.set(key, 1), lambda: d.__setitem__(key, 1), lambda: d.__delitem__(key), lambda: d.pop(key),
        lambda: d.pop(key, None), lambda: d.setdefault(key), lambda: d.add(key, 1), lambda: d.update([(key, 1)]),
        lambda: d.compare_and_set(key, 1, 2), lambda: d.replace(key, 1, revision=1),
    ]  # fmt: skip
    for write in writes:
        with pytest.raises(EncodingError, match="hashable"):
            write()
    assert d.revision == before


def test_or_with_what_is_no_mapping(d: Dict) -> None:
    """`|` wants a mapping on both sides, as dict does; `|=` takes pairs as well."""
    d["a"] = 1
    pairs: Any = [("b", 2)]
    wrongs: list[Any] = [pairs, 5, None]
    for wrong in wrongs:
        with pytest.raises(TypeError):
            d | wrong
        with pytest.raises(TypeError):
            wrong | d
    same = d
    d |= pairs
    assert d is same
    assert d == {"a": 1, "b": 2}


@pytest.mark.parametrize("wrong", [5, None, [5], [(1, 2, 3)], [(1,)]])
def test_update_with_what_is_no_mapping(d: Dict, wrong: Any) -> None:
    """`update` refuses what dict's refuses, with the same exceptions, and changes nothing."""
    with pytest.raises((TypeError, ValueError)) as expected:
        {}.update(wrong)
    with pytest.raises(expected.type):
        d.update(wrong)
    assert d.revision == 0


def test_update_takes_what_has_keys(d: Dict) -> None:
    """`update` takes anything with `keys()`, a mapping, pairs, names, another replicated dict, and nothing."""

    class Keyed:
        def keys(self) -> list[str]:
            return ["x", "y"]

        def __getitem__(self, key: str) -> str:
            return key * 2

    d.update(Keyed())
    d.update(iter([("p", 1)]), self=2, other=3)
    d.update()
    d.update(d)
    assert list(d.items()) == [("x", "xx"), ("y", "yy"), ("p", 1), ("self", 2), ("other", 3)]


def test_update_with_a_timeout_is_refused(d: Dict) -> None:
    """`update(timeout=3)` could be a key or a time limit, so it is neither; the error says how to write either."""
    with pytest.raises(TypeError, match=r"update\(\{'timeout': \.\.\.\}\)"):
        d.update({"a": 1}, timeout=3)
    assert d.revision == 0
    d.update({"timeout": 3})
    assert d == {"timeout": 3}


def test_copies_are_plain_dicts(d: Dict) -> None:
    """`copy.copy` gives a plain dict, as `copy` does: no second name of the node, which would end with the first."""
    d["a"] = [1]
    for made in (copy.copy(d), d.copy()):
        assert type(made) is dict and made == {"a": [1]}
        made["b"] = 1
    assert "b" not in d


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps, lambda d: copy.deepcopy({"d": d})])
def test_it_cannot_be_pickled_or_copied_deeply(d: Dict, how: Callable[[Any], object]) -> None:
    """A running node can't be pickled, and there is no deep copy of it; the error says what to take instead."""
    with pytest.raises(TypeError, match=r"running node.*snapshot\(\)"):
        how(d)


def test_repr_shows_the_content(d: Dict) -> None:
    """`repr` shows what is in it, as dict's does, and so do its views."""
    d.update({"a": 1, "b": [1, 2]})
    assert "2 keys: {'a': 1, 'b': [1, 2]}" in repr(d)
    assert repr(d.keys()) == "Keys(['a', 'b'])"
    assert repr(d.values()) == "Values([1, [1, 2]])"
    assert repr(d.items()) == "Items([('a', 1), ('b', [1, 2])])"


def test_repr_is_short(d: Dict) -> None:
    """However many and large the values, `repr` is a few lines long, and ints of any size do not make it fail."""
    d.update({("k" * 1000, number): ["x" * 50_000, 10**5000, {"a": b"y" * 1000}] * 50 for number in range(50)})
    d[10**5000] = 10**5000
    for each in (d, d.keys(), d.values(), d.items()):
        assert 100 < len(repr(each)) < 10_000 and "..." in repr(each)
    assert "51 keys" in repr(d)


def test_notebooks_complete_keys(d: Dict) -> None:
    """IPython is told the keys for completion within `d[`."""
    d.update({"a": 1, 2: 3})
    assert d._ipython_key_completions_() == ["a", 2]


def test_every_public_method_has_a_docstring() -> None:
    """`help` says what each method does, those behind `[]`, `in`, `len` and `del` included."""
    public = [name for name in vars(ReplicatedDict) if not name.startswith("_") or name in DESCRIBED]
    assert [name for name in public if not (getattr(ReplicatedDict, name).__doc__ or "").strip()] == []
    for name in DESCRIBED:
        assert vars(ReplicatedDict)[name].__doc__, name


DESCRIBED = ["__getitem__", "__setitem__", "__delitem__", "__contains__", "__len__", "__iter__", "__reversed__"]


def test_not_hashable(d: Dict) -> None:
    """It has no hash, as dict has none: it is compared by what it holds."""
    with pytest.raises(TypeError, match="unhashable"):
        hash(d)


def test_views_show_what_is_there_now(d: Dict) -> None:
    """A view taken earlier shows later changes, as dict's views do."""
    keys, values, items = d.keys(), d.values(), d.items()
    d["a"] = 1
    assert (list(keys), list(values), list(items)) == (["a"], [1], [("a", 1)])
    assert "a" in keys and 1 in values and ("a", 1) in items
    del d["a"]
    assert (len(keys), len(values), len(items)) == (0, 0, 0)


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6))
def test_item_views_are_sets(other: set[tuple[int, int]]) -> None:
    """`items()` of hashable values is a set, with all of a set's operations, as dict's is."""
    d, model = _ITEM_VIEW_DICTS
    for view, expected in ((d.items(), model.items()), (d.keys(), model.keys())):
        assert (view & other, view | other) == (expected & other, expected | other)
        assert (view - other, view ^ other) == (expected - other, expected ^ other)
        assert (other & view, other | view, other - view) == (other & expected, other | expected, other - expected)
        assert [view <= other, view < other, view == other] == [expected <= other, expected < other, expected == other]
        assert [view >= other, view > other, view != other] == [expected >= other, expected > other, expected != other]
        assert view.isdisjoint(other) == expected.isdisjoint(other)


@pytest.fixture(autouse=True, scope="module")
def _item_view_dicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    model = {0: 0, 1: 2, 3: 1}
    with ReplicatedDict[int, int](tmp_path_factory.mktemp("views")) as d:
        d.update(model)
        _ITEM_VIEW_DICTS[:] = [d, model]
        yield
    _ITEM_VIEW_DICTS.clear()


_ITEM_VIEW_DICTS: list[Any] = []


def test_views_are_reversible(d: Dict) -> None:
    """All three views can be walked backwards, as dict's can."""
    d.update({"a": 1, "b": 2})
    assert list(reversed(d.keys())) == ["b", "a"]
    assert list(reversed(d.values())) == [2, 1]
    assert list(reversed(d.items())) == [("b", 2), ("a", 1)]


@pytest.mark.parametrize("other", [5, None, "ab", "a", (), ("a",), ("a", 1, 2), ["a", 1]])
def test_views_of_items_hold_pairs_only(d: Dict, other: Any) -> None:
    """What is no pair is not in `items()`, as with dict, and nothing is raised."""
    d["a"] = 1
    assert (other in d.items()) is (other in {"a": 1}.items())


# -- faithful -------------------------------------------------------------------------------------------------------


def test_reads_return_fresh_copies(d: Dict) -> None:
    """Changing a value that was read, or one that was written, never changes the dict (promise 6)."""
    value = {"list": [1], "set": {1}, "dict": {"a": [2]}}
    kept = {"list": [1], "set": {1}, "dict": {"a": [2]}}
    d["v"] = value

    def spoil(each: Any) -> None:
        each["list"].append(9)
        each["set"].clear()
        each["dict"]["a"].append(9)

    found = d.versioned("v")
    assert found is not None
    for read in (
        value, d["v"], d.get("v"), d.snapshot()["v"], d.copy()["v"], next(iter(d.values())), next(iter(d.items()))[1],
        d.setdefault("v", None), found.value, d.get("v", linearizable=True), (d | {})["v"],
    ):  # fmt: skip
        spoil(read)
        assert exact(d["v"]) == exact(kept)
    spoil(d.pop("v", None))
    fresh = d.setdefault("w", kept)
    spoil(fresh)
    assert exact(d["w"]) == exact(kept)


class Strange:
    """Of no kept type."""


class Text(str):
    """Would come back as a str."""


@pytest.mark.parametrize("value", [Strange(), Text("a"), [Strange()], {"a": Strange()}, {Text("a"): 1}, print, 1j])
def test_what_cannot_be_kept_is_refused(d: Dict, value: Any) -> None:
    """A value that can't be kept as it is raises `EncodingError` in every writing method, and changes nothing."""
    d["a"] = 1
    before = (d.revision, d.snapshot())
    writes: list[Callable[[], object]] = [
        lambda: d.set("b", value), lambda: d.__setitem__("a", value), lambda: d.setdefault("b", value),
        lambda: d.add("b", value), lambda: d.update({"b": 1, "c": value}), lambda: d.update(b=1, c=value),
        lambda: d.compare_and_set("a", 1, value), lambda: d.compare_and_set("a", value, 1),
        lambda: d.replace("a", value, revision=1),
    ]  # fmt: skip
    for write in writes:
        with pytest.raises(EncodingError):
            write()
    assert (d.revision, d.snapshot()) == before


# -- methods of its own ---------------------------------------------------------------------------------------------


def test_set_returns_the_revision(d: Dict) -> None:
    """Every write has a revision of its own, greater than the one before; `versioned` and `revision` give the same."""
    assert d.revision == 0
    revisions = [d.set("a", 1), d.set("a", 1), d.set("b", 2)]
    assert revisions == sorted(set(revisions))
    assert d.revision == revisions[-1]
    assert d.versioned("a") == (1, revisions[1])
    found = d.versioned("b", linearizable=True)
    assert found is not None
    assert (found.value, found.revision) == (2, revisions[2])
    assert d.versioned("absent") is None


def test_reads_and_writes_without_effect_leave_the_revision(d: Dict) -> None:
    """The revision counts changes: what changed nothing is not counted, and an update counts once."""
    d.clear()
    d.update()
    d.pop("a", None)
    assert not d.replace("a", 1, revision=0)
    assert d.revision == 0
    d.update(a=1, b=2, c=3)
    assert d.revision == 1
    found = [d.versioned(key) for key in "abc"]
    assert [each.revision for each in found if each] == [1, 1, 1]
    assert not d.add("a", 5)
    assert d.setdefault("a", 5) == 1
    assert not d.compare_and_set("a", 2, 5)
    with pytest.raises(KeyError):
        del d["absent"]
    assert d.revision == 1
    d.clear()
    assert d.revision == 2


def test_add(d: Dict) -> None:
    """`add` stores only where nothing is, also not None, and says whether it did."""
    assert d.add("a", None) is True
    assert d.add("a", 1) is False
    assert d["a"] is None


def test_compare_and_set(d: Dict) -> None:
    """`compare_and_set` compares by `==`, and takes NaN for equal to itself; an absent key equals nothing."""
    assert d.compare_and_set("a", None, 1) is False
    assert "a" not in d
    d["a"] = 1
    assert d.compare_and_set("a", 2, 3) is False
    assert d.compare_and_set("a", True, [1]) is True
    assert d.compare_and_set("a", (1,), "no") is False
    assert d.compare_and_set("a", [1.0], {"x": {1, 2}}) is True
    assert d.compare_and_set("a", {"x": {2, 1}}, math.nan) is True
    assert d.compare_and_set("a", math.nan, "found") is True


def test_replace(d: Dict) -> None:
    """`replace` stores only over the very revision, so a value that came back the same (ABA) does not fool it."""
    first = d.set("a", 1)
    d["a"] = 2
    third = d.set("a", 1)
    assert d.replace("a", "no", revision=first) is False
    assert d.replace("a", "yes", revision=third) is True
    assert d.replace("a", "no", revision=third) is False
    assert d["a"] == "yes"
    del d["a"]
    assert d.replace("a", "no", revision=d.revision) is False
    assert "a" not in d


@pytest.mark.parametrize("revision", [True, -1, 1.0, "1", None, 2**63])
def test_replace_with_what_is_no_revision(d: Dict, revision: Any) -> None:
    """What can't be a revision is a `ValueError` that names it."""
    with pytest.raises(ValueError, match="revision="):
        d.replace("a", 1, revision=revision)


def test_linearizable_and_bounded_reads_alone(d: Dict) -> None:
    """On a single node the strong reads give what the plain read gives."""
    assert d.wait_ready(5)
    assert d.get("a", linearizable=True) is None
    assert d.get("a", 5, max_staleness=0) == 5
    d["a"] = 1
    d.barrier()
    assert d.get("a", linearizable=True) == d.get("a", max_staleness=0) == d.get("a", max_staleness=10.0) == 1
    assert d.get("a", linearizable=True, timeout=5) == 1
    assert d.get("b", "default", linearizable=True) == "default"


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "1", True])
def test_wrong_times(d: Dict, wrong: Any) -> None:
    """A time that makes no sense is a `ValueError` that names it, in every call, and nothing is written."""
    calls: list[Callable[[], object]] = [
        lambda: d.set("a", 1, timeout=wrong), lambda: d.add("a", 1, timeout=wrong), lambda: d.pop("a", timeout=wrong),
        lambda: d.popitem(timeout=wrong), lambda: d.setdefault("a", timeout=wrong), lambda: d.clear(timeout=wrong),
        lambda: d.barrier(timeout=wrong), lambda: d.wait_ready(wrong),
        lambda: d.replace("a", 1, revision=1, timeout=wrong),
        lambda: d.compare_and_set("a", 1, 2, timeout=wrong), lambda: d.get("a", linearizable=True, timeout=wrong),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="timeout="):
            call()
    with pytest.raises(ValueError, match="max_staleness="):
        d.get("a", max_staleness=wrong)
    assert d.revision == 0


# -- limits ---------------------------------------------------------------------------------------------------------


def test_too_large(tmp_path: Path) -> None:
    """A key or value above its limit is an `EncodingError` that names the limit, and nothing is changed."""
    options = Options(durability="process", max_key_bytes=50, max_value_bytes=100)
    with ReplicatedDict[Any, Any](tmp_path / "d", options=options) as d:
        d["k" * 48] = b"v" * 98
        before = (d.revision, d.snapshot())
        with pytest.raises(EncodingError, match="max_value_bytes=100"):
            d["a"] = b"v" * 100
        with pytest.raises(EncodingError, match="max_key_bytes=50"):
            d["k" * 50] = 1
        with pytest.raises(EncodingError, match="max_key_bytes=50"):
            d.pop("k" * 50, None)
        with pytest.raises(EncodingError, match="max_value_bytes=100"):
            d.update({"a": 1, "b": b"v" * 100, "c": 3})
        with pytest.raises(EncodingError, match="max_value_bytes=100"):
            d.compare_and_set("a", b"v" * 100, 1)
        assert (d.revision, d.snapshot()) == before


def test_large_update_goes_in_order(tmp_path: Path) -> None:
    """An update above `max_command_bytes` goes as several commands in order; one within it is one (promise 4)."""
    options = Options(durability="process", max_command_bytes=1000)
    with ReplicatedDict[Any, Any](tmp_path / "d", options=options) as d:
        d.update((number, b"v" * 97) for number in range(9))
        assert d.revision == 1
        d.update((number, b"v" * 97) for number in range(100, 125))
        found = [d.versioned(key) for key in d]
        revisions = [each.revision for each in found if each]
        assert list(d) == [*range(9), *range(100, 125)]
        assert revisions == sorted(revisions)
        assert [revisions.count(each) for each in (1, 2, 3, 4)] == [9, 10, 10, 5]
        d["large"] = b"v" * 5000
        d.update({"larger": b"v" * 6000, "small": 1})
        assert (len(d["large"]), len(d["larger"]), d["small"]) == (5000, 6000, 1)


def test_large_update_in_part(tmp_path: Path) -> None:
    """When some commands of a large update are applied and the next is not, the error says neither that nothing is
    stored nor that it may be, but how much surely is (promise 3)."""
    options = Options(durability="process", max_command_bytes=1)
    with ReplicatedDict[Any, Any](tmp_path / "d", options=options, timeout=2.0) as d:
        d.clear()
        with pytest.raises(OutcomeUnknown, match=r"the first [\d,]+ of the 300,000 entries") as raised:
            d.update((number, None) for number in range(300_000))
        said = re.search(r"the first ([\d,]+)", str(raised.value))
        assert said is not None
        surely = int(said[1].replace(",", ""))
        assert list(d)[:surely] == list(range(surely))
        assert surely <= len(d) <= surely + 1
    assert "the others are not" in str(in_part(1, 2, NotCommitted("no leader")))
    assert "some of the others" in str(in_part(1, 2, OutcomeUnknown("no answer")))


@pytest.mark.parametrize(
    "error", [ClosedError("closed"), StorageError("the disk is full")], ids=lambda error: type(error)
)
def test_what_ends_the_node_in_an_update(error: ReplidictError) -> None:
    """When the node ends between two commands of a large update, the error is of the same kind, and says how much of it
    is stored; if nothing is, it is as it was."""
    parts = [([(b"a", b"1"), (b"b", b"2")], 4), ([(b"c", b"3")], 2)]
    steps = update(parts, 3, 5.0, lambda: 0.0)
    next(steps)
    with pytest.raises(type(error)) as raised:
        steps.throw(error)
    assert raised.value is error
    steps = update(parts, 3, 5.0, lambda: 0.0)
    next(steps)
    steps.send(None)
    with pytest.raises(type(error), match=rf"{error}; the first 2 of the 3 entries of this update are stored"):
        steps.throw(error)


def test_the_time_of_an_update_begins_when_it_is_encoded(tmp_path: Path) -> None:
    """A source of pairs that takes longer than the timeout does not have its update fail before it was sent."""

    def slow() -> Iterator[tuple[str, int]]:
        yield "a", 1
        time.sleep(2.1)

    with ReplicatedDict[Any, Any](tmp_path / "d", options=QUICK, timeout=2.0) as d:
        d.update(slow())
        assert d.snapshot() == {"a": 1}


# -- atomic, while others write -------------------------------------------------------------------------------------


@pytest.fixture
def _switch_often() -> Iterator[None]:
    """Threads change places as often as they can, so that a gap between two steps is found."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switch_often")
def test_readers_never_see_half_an_update(d: Dict) -> None:
    """Whoever reads while updates are applied sees all of each or none of it (promise 4)."""
    keys = [f"k{number}" for number in range(40)]
    d.update(dict.fromkeys(keys, 0))
    stop = threading.Event()

    def write() -> None:
        try:
            for number in range(1, 200):
                d.update(dict.fromkeys(keys, number))
        finally:
            stop.set()

    def read_moments() -> None:
        while not stop.is_set():
            assert len(set(d.snapshot().values())) == 1
            assert len(set(d.values())) == 1
            assert len({value for _, value in d.items()}) == 1

    def read_pairs() -> None:
        while not stop.is_set():
            first, last = d[keys[-1]], d[keys[0]]  # opposite to the order of writing
            assert first <= last
            last, first = d.get(keys[0], 0), d.get(keys[-1], 0)
            assert last <= first

    in_threads(write, read_moments, read_pairs, read_pairs)


@pytest.mark.usefixtures("_switch_often")
def test_len_never_counts_half_an_update(d: Dict) -> None:
    """`len` and `in` see an update whole or not at all (promise 4)."""
    stop = threading.Event()
    names = [f"k{number}" for number in range(30)]

    def write() -> None:
        try:
            for _ in range(150):
                d.update(dict.fromkeys(names, 1))
                d.clear()
        finally:
            stop.set()

    def read() -> None:
        while not stop.is_set():
            assert len(d) in (0, len(names))
            assert len(list(d)) in (0, len(names))

    in_threads(write, read, read)


def test_iteration_sees_one_moment(d: Dict) -> None:
    """What an iterator gives is what was there when it began, whatever is written meanwhile (promise 9)."""
    before = {number: [number] for number in range(10)}
    d.update(before)
    keys, values, items, backwards = iter(d), iter(d.values()), iter(d.items()), reversed(d)
    assert next(keys) == 0
    d.clear()
    d.update({"new": 1})
    assert list(keys) == list(range(1, 10))
    assert list(values) == list(before.values())
    assert dict(items) == before
    assert list(backwards) == list(range(9, -1, -1))
    assert list(d) == ["new"]


def test_iterating_while_others_write_never_raises(d: Dict) -> None:
    """Iteration, views and comparisons go on unharmed while other threads add and remove keys (promise 9)."""
    stop = threading.Event()

    def write(name: str) -> None:
        try:
            for number in range(40):
                d[name, number] = number
                d.pop((name, number - 5), None)
                d.update({(name, "x"): 1, (name, "y"): 2})
                if number % 10 == 9:
                    d.clear()
        finally:
            stop.set()

    def read() -> None:
        while not stop.is_set():
            for key in d:
                assert isinstance(key, tuple)
            assert all(isinstance(value, int) for value in d.values())
            assert len(dict(d.items())) >= 0
            assert d != {"never": 1}
            assert isinstance(d | {}, Mapping)
            assert list(reversed(d)) is not None
            assert repr(d)

    in_threads(lambda: write("a"), lambda: write("b"), read, read)


def test_every_write_of_many_threads_is_there(d: Dict) -> None:
    """Many threads may write at once: every write is there, each with its own revision, none done twice (promise 3)."""
    revisions: list[int] = []

    def write(name: int) -> None:
        revisions.extend([d.set((name, number), number) for number in range(10)])

    in_threads(*(lambda name=name: write(name) for name in range(64)))
    assert d == {(name, number): number for name in range(64) for number in range(10)}
    assert sorted(revisions) == list(range(1, 641))


def test_exactly_one_wins(d: Dict) -> None:
    """Of many threads that `add`, `pop` or `popitem` the same, each key goes to exactly one (promises 3 and 4)."""
    added: list[bool] = []
    popped: list[object] = []
    names: list[object] = []

    def fight() -> None:
        for number in range(5):
            added.append(d.add(("added", number), 1))
            popped.append(d.pop(("popped", number), None))

    def take() -> None:
        names.extend([d.popitem()[0] for _ in range(5)])

    d.update({("popped", number): "found" for number in range(5)})
    in_threads(*[fight] * 8)
    assert added.count(True) == 5
    assert popped.count("found") == 5
    d.update(dict.fromkeys(range(50), "x"))
    in_threads(*[take] * 8)
    assert sorted(names) == list(range(10, 50))  # type: ignore[type-var]  # the last ones in, no others


def test_a_codec_that_gives_no_bytes_is_refused(tmp_path: Path) -> None:
    """What a codec of the user's gives is checked before it is sent: it must not spoil the writes beside it."""

    class Text:
        def encode(self, value: Any, /) -> Any:
            return str(value)

        def decode(self, data: bytes, /) -> Any:
            return data

    with ReplicatedDict[Any, Any](tmp_path / "d", codec=Text(), options=QUICK) as d:
        with pytest.raises(EncodingError, match="must give bytes"):
            d["a"] = 1
        assert len(d) == 0

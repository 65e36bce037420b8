"""Transactions, increments and scans of a dict: several keys, one moment, once (promise 13)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replidict import (
    ClosedError,
    EncodingError,
    NotCommitted,
    Options,
    ReplicatedDict,
    ReplidictError,
    Transaction,
    TransactionConflict,
)
from tests.clusters import Dict, alone, cluster
from tests.test_dict import QUICK, in_threads

T = Transaction[Any, Any]


@pytest.fixture(params=["own", "attached"])
def d(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dict]:
    """One open dict with two accounts."""
    with alone(tmp_path / "d", request.param, options=QUICK) as opened:
        opened.update({"a": 1, "b": 2})
        yield opened


def entries(d: Dict) -> int:
    return d.status().applied_index


# -- whole, once, at one moment --------------------------------------------------------------------------------------


def test_all_writes_are_one_revision(d: Dict) -> None:
    """What a body writes appears at once, with one revision, which the transaction tells afterwards."""
    before = d.revision
    with d.transaction() as t:
        t["a"], t["c"] = t["b"], 3
        del t["b"]
        assert d.snapshot() == {"a": 1, "b": 2}
        with pytest.raises(ReplidictError, match="not been applied yet"):
            _ = t.revision
    assert d.snapshot() == {"a": 2, "c": 3}
    assert t.revision == d.revision == before + 1
    assert [d.versioned(key).revision for key in ("a", "c")] == [t.revision] * 2  # type: ignore[union-attr]


def test_a_body_that_raises_writes_nothing(d: Dict) -> None:
    """An error out of what is current reaches the caller, and nothing is written."""

    def body(t: T) -> None:
        t["a"] = 5
        raise ZeroDivisionError

    before = entries(d)
    with pytest.raises(ZeroDivisionError):
        d.transact(body)
    with pytest.raises(ZeroDivisionError), d.transaction() as t:
        body(t)
    assert d.snapshot() == {"a": 1, "b": 2} and entries(d) == before
    with pytest.raises(ReplidictError, match="never was"):
        _ = t.revision


def test_a_time_limit_of_update_is_no_key(d: Dict) -> None:
    """`update(timeout=...)` in a transaction is refused, as on the dict, and stores nothing."""
    with pytest.raises(TypeError, match="could be a key or a time limit"), d.transaction() as t:
        t.update({"of a limit": 1}, timeout=3)
    assert "of a limit" not in d and "timeout" not in d
    with d.transaction() as t:
        t.update({"of a limit": 1}, another=2)
    assert (d["of a limit"], d["another"]) == (1, 2)


def test_a_conflict_names_the_keys(d: Dict) -> None:
    """When a key that was read was changed by others, nothing is written, and the error has the keys."""
    with pytest.raises(TransactionConflict, match="'a' changed") as caught, d.transaction() as t:
        t["b"] = t["a"] + 1
        d["a"] = 7
    assert caught.value.keys == ("a",) and isinstance(caught.value, NotCommitted)
    assert d.snapshot() == {"a": 7, "b": 2}


def test_a_conflict_in_the_log_names_the_keys(d: Dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it does when only the log shows it, because this node's copy was behind."""
    monkeypatch.setattr(Transaction, "stale", lambda self: False)
    with pytest.raises(TransactionConflict, match="'a' changed") as caught, d.transaction() as t:
        t["b"] = t["a"] + 1
        d["a"] = 7
    assert caught.value.keys == ("a",)
    assert d.snapshot() == {"a": 7, "b": 2}


@pytest.mark.parametrize("in_the_log", [False, True])
def test_the_same_value_again_is_a_change(d: Dict, in_the_log: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was written again, or deleted and stored again, with the value that was read is another one."""
    if in_the_log:
        monkeypatch.setattr(Transaction, "stale", lambda self: False)
    for change in (lambda: d.set("a", 1), lambda: (d.pop("a"), d.set("a", 1)), lambda: d.pop("a")):
        d["a"] = 1
        with pytest.raises(TransactionConflict), d.transaction() as t:
            t["b"] = t["a"]
            change()


@pytest.mark.parametrize("in_the_log", [False, True])
def test_absence_is_read_too(d: Dict, in_the_log: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was found absent must be absent in the end."""
    if in_the_log:
        monkeypatch.setattr(Transaction, "stale", lambda self: False)
    for ask in (lambda t: "new" in t, lambda t: t.get("new"), lambda t: t.pop("new", None)):
        d.pop("new", None)
        with pytest.raises(TransactionConflict) as caught, d.transaction() as t:
            assert not ask(t)
            t["a"] = 5
            d["new"] = 1
        assert caught.value.keys == ("new",)


@pytest.mark.parametrize("in_the_log", [False, True])
def test_a_phantom_is_a_change(d: Dict, in_the_log: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that counted, iterated over or scanned the dict conflicts with any change of any key."""
    if in_the_log:
        monkeypatch.setattr(Transaction, "stale", lambda self: False)
    for ask in (
        len,
        list,
        reversed,
        dict,
        lambda t: t.scan("x"),
        lambda t: t.keys() == {"a"},
        lambda t: 5 in t.values(),
    ):
        with pytest.raises(TransactionConflict) as caught, d.transaction() as t:
            ask(t)
            t["n"] = 1
            d["phantom"] = random.random()
        assert caught.value.keys == ()


def test_no_body_sees_two_moments(d: Dict) -> None:
    """A read that finds an earlier one changed ends the body at once; no `except Exception` of it stops that."""
    for second in (
        lambda t: t["b"], lambda t: t["a"], lambda t: "c" in t, len, list, lambda t: t.scan(), lambda t: t.pop("b"),
    ):  # fmt: skip
        reached = False
        with pytest.raises(TransactionConflict), d.transaction() as t:
            assert t["a"] is not None
            d["a"] = d["a"] + 1
            try:
                second(t)
            except Exception:  # noqa: BLE001 -- what a careless body does
                reached = True
            reached = True
        assert not reached


def test_a_body_that_takes_every_error_conflicts(d: Dict) -> None:
    """A body that goes on after it was ended has read two moments, and conflicts in the end."""
    with pytest.raises(TransactionConflict), d.transaction() as t:
        assert t["a"] == 1
        d["a"] = 2
        try:
            _ = t["b"]
        except BaseException:  # noqa: BLE001 -- what a careless body does
            t["c"] = 1
    assert "c" not in d


def test_what_was_counted_is_of_the_same_moment(d: Dict) -> None:
    """After `len`, a change of any key ends the body at the next read; what was gone through stays as it was."""
    with pytest.raises(TransactionConflict), d.transaction() as t:
        assert len(t) == 2
        d["new"] = 1
        assert "new" in t  # never reached
        pytest.fail("it saw two moments")
    with d.transaction() as t:
        assert list(t) == ["a", "b", "new"]
        del d["new"]
        assert t["new"] == 1 and len(t) == 3 and t.scan("n") == [("new", 1)]


def test_a_body_runs_again_after_a_conflict(d: Dict) -> None:
    """`transact` calls the function until what it read is current, and returns what that call returned."""
    runs: list[int] = []

    def body(t: T, by: int) -> int:
        value: int = t["a"] + by
        runs.append(value)
        if len(runs) < 4:
            d["a"] = d["a"] + 10
        t["b"] = value
        return value

    assert d.transact(body, 5) == 36
    assert runs == [6, 16, 26, 36] and d["b"] == 36


def test_a_body_that_fails_on_what_is_not_current_runs_again(d: Dict) -> None:
    """An error that comes of values that are no longer current is none of the caller's."""
    runs: list[int] = []

    def body(t: T) -> None:
        runs.append(t["a"])
        if len(runs) == 1:
            d["a"] = 0
            raise ZeroDivisionError
        t["b"] = "done"

    d.transact(body)
    assert runs == [1, 0] and d["b"] == "done"
    with pytest.raises(TransactionConflict) as caught, d.transaction() as t:
        assert t["a"] == 0
        d["a"] = 1
        raise ZeroDivisionError
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_it_is_bounded(d: Dict) -> None:
    """`attempts` counts the calls, and `timeout` bounds them all; the error says so, with the keys."""
    runs: list[int] = []

    def body(t: T) -> None:
        runs.append(t["a"])
        d["a"] = d["a"] + 1
        t["b"] = 0

    with pytest.raises(TransactionConflict, match="in all 3 attempts") as caught:
        d.transact(body, attempts=3)
    assert len(runs) == 3 and caught.value.keys == ("a",)
    began = time.monotonic()
    with pytest.raises(TransactionConflict, match=r"within 0\.3 s"):
        d.transact(body, timeout=0.3)
    assert len(runs) > 4 and time.monotonic() - began < 5
    assert d["b"] == 2
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="attempts="):
            d.transact(body, attempts=wrong)  # type: ignore[arg-type]


def test_a_coroutine_function_is_refused(d: Dict) -> None:
    """A function that would have to be awaited is refused before it is called."""

    async def body(t: T) -> None: ...

    with pytest.raises(TypeError, match="await"):
        d.transact(body)  # type: ignore[unused-coroutine]


def test_who_only_reads_sends_nothing(d: Dict) -> None:
    """A transaction without writes makes no log entry; it tells the revision of which it read."""
    before = entries(d)
    with d.transaction() as t:
        assert (t["a"], len(t)) == (1, 2)
    with d.transaction(linearizable=True) as u:
        assert u["b"] == 2
    assert d.transact(lambda t: sum(t.values())) == 3
    assert entries(d) == before and t.revision == u.revision == d.revision


def test_writes_alone_never_conflict(d: Dict) -> None:
    """A body that read nothing depends on nothing."""
    with d.transaction() as t:
        t.update(a=5, c=6)
        d["a"] = 9
    assert d.snapshot() == {"a": 5, "b": 2, "c": 6}


def test_what_is_too_large_is_never_split(tmp_path: Path) -> None:
    """A transaction with more than fits a command is refused, with both sizes; one large value is none."""
    with ReplicatedDict[Any, Any](tmp_path / "d", options=Options(max_command_bytes=1000)) as d:
        with (
            pytest.raises(EncodingError, match=r"has 1\d\d\d bytes, encoded, more than the 1000"),
            d.transaction() as t,
        ):
            t["a"], t["b"] = "x" * 600, "y" * 600
        assert d.snapshot() == {}
        with d.transaction() as t:
            t["a"] = "x" * 5000
        with pytest.raises(EncodingError, match="more than the 1000"), d.transaction() as t:
            for key in range(300):
                t.get(key)
            t["b"] = 1
        assert list(d) == ["a"]


def test_after_the_end_it_is_refused(d: Dict) -> None:
    """A transaction that has ended neither reads nor takes writes that nobody would make."""
    with d.transaction() as t:
        t["a"] = 5
    for use in (lambda: t["a"], lambda: t.set("b", 1), lambda: len(t), lambda: list(t), lambda: t.scan()):
        with pytest.raises(ReplidictError, match="has ended"):
            use()
    d.close()
    with pytest.raises(ClosedError), d.transaction() as t:
        _ = t["a"]
    with pytest.raises(ClosedError):
        d.scan()


def test_a_dict_that_is_closed_meanwhile(d: Dict) -> None:
    """A dict that is closed inside the body ends it with the error of any other call."""
    with pytest.raises(ClosedError), d.transaction() as t:
        t["a"] = t["b"]
        d.close()


# -- as a dict is ----------------------------------------------------------------------------------------------------

_keys = st.sampled_from(["a", "b", "c", 1, True, 1.0])
_steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["set", "setdefault", "pop", "increment"]), _keys, st.integers(0, 9)),
        st.tuples(
            st.sampled_from(
                ["get", "in", "del", "pop!", "popitem", "clear", "len", "iterate", "reverse", "items", "scan"]
            ),
            _keys, st.none(),
        ),
    ),
    max_size=12,
)  # fmt: skip


def _do(m: MutableMapping[Any, Any], step: tuple[str, Any, Any]) -> Any:
    kind, key, value = step
    try:
        match kind:
            case "set":
                m[key] = value
            case "setdefault":
                return m.setdefault(key, value)
            case "pop":
                return m.pop(key, value)
            case "pop!":
                return m.pop(key)
            case "increment":
                if isinstance(m, dict):
                    m[key] = m.get(key, 0) + value
                    return m[key]
                return m.increment(key, value)  # type: ignore[attr-defined]
            case "get":
                return m[key]
            case "in":
                return key in m
            case "del":
                del m[key]
            case "popitem":
                return m.popitem()
            case "clear":
                m.clear()
            case "len":
                return len(m)
            case "iterate":
                return [repr(key) for key in m]
            case "reverse":
                return list(reversed(m))
            case "items":
                return list(m.items()), list(m.values()), list(reversed(m.keys()))  # type: ignore[call-overload]
            case "scan":
                if isinstance(m, dict):
                    return sorted((key, value) for key, value in m.items() if isinstance(key, str) and key > "a")[:1]
                return m.scan(after="a", limit=1)  # type: ignore[attr-defined]
    except KeyError as error:
        return repr(error)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path_factory.mktemp("d") / "d", options=QUICK) as opened:
        yield opened


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_keys, st.integers(0, 9)), _steps)
def test_it_is_a_dict_with_its_own_writes(shared: Dict, content: dict[Any, int], steps: list[Any]) -> None:
    """Inside, every operation gives what a plain dict gives, own writes and their order included; afterwards the dict
    is that dict."""
    shared.clear()
    shared.update(content)
    model = dict(content)
    with shared.transaction() as t:
        for step in steps:
            assert _do(t, step) == _do(model, step)
        assert list(map(repr, t.items())) == list(map(repr, model.items()))
    assert list(map(repr, shared.items())) == list(map(repr, model.items()))


def test_values_are_copies(d: Dict) -> None:
    """What is read, or was written, is not changed through the object that the body has."""
    d["list"] = [1]
    with d.transaction() as t:
        t["list"].append(2)
        mine = [5]
        t["mine"] = mine
        mine.append(6)
        assert t["mine"] == [5]
    assert d["list"] == [1] and d["mine"] == [5]


def test_bad_keys_and_values_are_refused_inside(d: Dict) -> None:
    """A key or value that can't be kept is refused where it is given, and nothing is written."""
    uses: list[Callable[[T], object]] = [
        lambda t: t.set(object(), 1), lambda t: t.set("a", object()), lambda t: t[float("nan")],
        lambda t: t.increment("a", "1"), lambda t: t.increment("a", True), lambda t: t.scan(None),  # type: ignore[arg-type]
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(TypeError), d.transaction() as t:
            t["b"] = 9
            use(t)
    assert d["b"] == 2


# -- under load ------------------------------------------------------------------------------------------------------


def test_money_is_conserved(tmp_path: Path) -> None:
    """Threads on three nodes move amounts between hot accounts: every snapshot, scan and transaction, anywhere and at
    any time, has the same total, and each transfer is made once."""
    accounts = [f"account {number}" for number in range(6)]
    with cluster(tmp_path, 3, options=QUICK) as nodes:
        nodes[0].update(dict.fromkeys(accounts, 100))
        nodes[0].barrier()
        for node in nodes:
            node.barrier()
        over = threading.Event()
        moved = [0] * 6

        def move(node: Dict, number: int) -> None:
            rng = random.Random(number)

            def transfer(t: T, source: str, target: str) -> None:
                if t[source] < 1:
                    raise LookupError
                t[source] -= 1
                t[target] += 1
                t[f"count {number}"] = t.get(f"count {number}", 0) + 1

            for _ in range(25):
                source, target = rng.sample(accounts, 2)
                try:
                    node.transact(transfer, source, target)
                    moved[number] += 1
                except LookupError:
                    pass

        def audit(node: Dict) -> None:
            def total(t: T) -> int:
                return sum(t[name] for name in accounts)

            while not over.wait(0.01):
                seen = node.snapshot()
                assert sum(seen[name] for name in accounts) == 600
                assert sum(value for _, value in node.scan("account ")) == 600
                assert node.transact(total) == 600

        def movers() -> None:
            try:
                in_threads(*(lambda number=number: move(nodes[number % 3], number) for number in range(6)))
            finally:
                over.set()

        in_threads(movers, *(lambda node=node: audit(node) for node in nodes))
        nodes[1].barrier()
        assert [nodes[1][f"count {number}"] for number in range(6)] == moved


def test_write_skew_never_happens(d: Dict) -> None:
    """Two bodies that each read what the other writes are never both done on the old values."""

    def leave(t: T, who: str) -> None:
        if t["a"] + t["b"] > 1:
            t[who] = 0

    for _ in range(40):
        d.update({"a": 1, "b": 1})
        in_threads(lambda: d.transact(leave, "a"), lambda: d.transact(leave, "b"))
        assert d["a"] + d["b"] == 1


def test_increments_are_exact(tmp_path: Path) -> None:
    """Increments from threads on three nodes are each added once, and each caller gets a number of its own."""
    with cluster(tmp_path, 3, options=QUICK) as nodes:
        seen: list[Any] = []
        in_threads(
            *(lambda node=node: seen.extend(node.increment("n") for _ in range(20)) for node in nodes for _ in range(4))
        )
        assert sorted(seen) == list(range(1, 241))


# -- increment -------------------------------------------------------------------------------------------------------


def test_increment(d: Dict) -> None:
    """It returns the new value, of int, float or Decimal, and begins with the default."""
    assert d.increment("a") == 2 == d["a"]
    assert d.increment("a", -5) == -3
    assert d.increment("f", 0.5, default=1) == 1.5
    assert d.increment("m", Decimal("0.10"), default=Decimal("5.00")) == Decimal("5.10") == d["m"]
    assert str(d["m"]) == "5.10"


def test_increment_refuses(d: Dict) -> None:
    """A value or an amount of another kind is a TypeError, and a sum that can't be kept an OverflowError, both with the
    key; nothing changes."""
    d.update({"text": "1", "flag": True, "huge": 1.7e308, "m": Decimal(1)})
    before = d.snapshot(), d.revision
    for key, by in (("text", 1), ("flag", 1), ("m", 0.5), ("a", "1"), ("a", True), ("a", None)):
        with pytest.raises(TypeError) as caught:
            d.increment(key, by)  # type: ignore[arg-type]
        assert repr(key) in str(caught.value) or key == "a"
        with pytest.raises(TypeError), d.transaction() as t:
            t.increment(key, by)
    with pytest.raises(OverflowError, match="'huge'"):
        d.increment("huge", 1.7e308)
    with pytest.raises(OverflowError, match="'huge'"), d.transaction() as t:
        t.increment("huge", 1.7e308)
    assert (d.snapshot(), d.revision) == before
    with pytest.raises(TypeError):
        d.increment("new", default="0")  # type: ignore[arg-type]


def test_increment_of_ints_that_python_does_not_print(d: Dict) -> None:
    """Ints of any size are added, and an error's text can do without their digits."""
    huge = 10**5000
    d["huge"] = huge
    assert d.increment("huge") == huge + 1
    with pytest.raises(OverflowError):
        d.increment("huge", 0.5)
    with pytest.raises(TypeError):
        d.increment(huge, "x")  # type: ignore[arg-type]
    d[huge] = "text"
    with pytest.raises(TypeError):
        d.increment(huge)


# -- scan ------------------------------------------------------------------------------------------------------------


def test_scan(d: Dict) -> None:
    """Texts that begin so, in order, page by page; other keys and prefixes that end with the last code point, too."""
    last = "\U0010ffff"
    d.update({"user/2": 2, "user/10": 10, "user": 0, "userx": 1, 5: 5, (1,): 6, "é": 7, last: 8, last + "a": 9, "": 10})
    assert [key for key, _ in d.scan("user/")] == ["user/10", "user/2"]
    assert d.scan("user/", limit=1) == [("user/10", 10)]
    assert d.scan("user/", after="user/10") == [("user/2", 2)]
    assert d.scan("user/", after="a") == d.scan("user/", after=None)
    assert d.scan("user/", after="z") == [] == d.scan(limit=0)
    assert [key for key, _ in d.scan(last)] == [last, last + "a"]
    assert [key for key, _ in d.scan()] == sorted(key for key in d if isinstance(key, str))
    for wrong in ({"prefix": 1}, {"prefix": b""}, {"after": 5}):
        with pytest.raises(TypeError):
            d.scan(**wrong)
    for limit in (-1, True, 1.5):
        with pytest.raises(ValueError, match="limit="):
            d.scan(limit=limit)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["set", "del", "update", "clear", "transact"]), st.text(max_size=2)), max_size=9)
)
def test_the_order_is_kept_through_every_change(shared: Dict, steps: list[tuple[str, str]]) -> None:
    """After any changes, a scan gives what sorting everything gives."""
    shared.clear()
    shared.scan()
    for kind, key in steps:
        if kind == "set":
            shared[key] = 1
        elif kind == "del":
            shared.pop(key, None)
        elif kind == "update":
            shared.update({key: 2, key + "x": 3, 7: 4})
        elif kind == "clear":
            shared.clear()
        else:
            with shared.transaction() as t:
                t.pop(key, None)
                t[key + "y"] = 5
        assert shared.scan() == sorted((key, value) for key, value in shared.items() if isinstance(key, str))

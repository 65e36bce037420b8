"""A stored value that this machine can't decode: nothing is lost, the errors name its key, and the rest can be read."""

from __future__ import annotations

import datetime as dt
import sys
import threading
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from replidict import DecodingError, EncodingError, Options, ReplicatedDict
from replidict.command.keys import _decoded
from replidict.command.main import main
from replidict.machine.codec import decode, encode, encode_key
from replidict.node import feature_level
from replidict.release import FIRST, THIS
from tests.clusters import Dict, free_addresses, wait_until
from tests.http_support import assert_problem, client_of
from tests.test_dict import in_threads

QUICK = Options(durability="process")


class Picky:
    """A codec of this machine's, which can't decode the value "odd"; `before` is called before each decoding."""

    def __init__(self) -> None:
        self.before: Callable[[], object] = lambda: None
        self.error: Exception = KeyError("of the codec")

    def encode(self, value: Any, /) -> bytes:
        return encode(value)

    def decode(self, data: bytes, /) -> Any:
        before, self.before = self.before, lambda: None
        before()
        if (value := decode(data)) == "odd":
            raise self.error
        return value


@pytest.fixture
def codec() -> Picky:
    return Picky()


@pytest.fixture(params=[FIRST, THIS], ids=["level 1", "this level"])
def d(request: pytest.FixtureRequest, tmp_path: Path, codec: Picky, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dict]:
    """A dict with such a value between two others, with and without members of the last release."""
    monkeypatch.setattr(feature_level, "THIS", request.param)
    with ReplicatedDict[Any, Any](tmp_path / "d", codec=codec, options=QUICK) as opened:
        wait_until(lambda: opened.status().feature_level == request.param.level, "the level is raised")
        opened.update({"first": 1, "k": "odd", "last": 3})
        yield opened


READS: dict[str, Callable[[Dict], object]] = {
    "[]": lambda d: d["k"],
    "get": lambda d: d.get("k"),
    "get, linearizable": lambda d: d.get("k", linearizable=True),
    "versioned": lambda d: d.versioned("k"),
    "snapshot": lambda d: d.snapshot(),
    "copy": lambda d: d.copy(),
    "items": lambda d: list(d.items()),
    "items, reversed": lambda d: list(reversed(d.items())),
    "values": lambda d: list(d.values()),
    "values, reversed": lambda d: list(reversed(d.values())),
    "in values": lambda d: "x" in d.values(),
    "==": lambda d: d == {"first": 1},
    "|": lambda d: d | {},
    "setdefault": lambda d: d.setdefault("k", 1),
    "pop": lambda d: d.pop("k"),
    "pop with a default": lambda d: d.pop("k", None),
}


def test_errors_name_the_key(d: Dict) -> None:
    """Whatever needs the value raises `DecodingError` with its key, whatever the codec raised, and changes nothing."""
    revision = d.revision
    for name, read in READS.items():
        with pytest.raises(DecodingError, match=r"value of key 'k' can't be .*of the codec.*Nothing was ch") as told:
            pytest.fail(f"{name} gave {read(d)}")
        assert isinstance(told.value, EncodingError)
        assert (told.value.key, told.value.data) == ("k", encode("odd"))
        assert d.revision == revision and list(d) == ["first", "k", "last"], name


def test_running_out_of_memory_is_no_fault_of_the_value(d: Dict, codec: Picky) -> None:
    """`MemoryError` stays what it is."""
    codec.error = MemoryError()
    for read in (lambda: d["k"], lambda: d.get("k"), d.snapshot):
        with pytest.raises(MemoryError):
            read()


def test_the_rest_can_be_read(d: Dict) -> None:
    """Keys, `in`, `len` and the other values are there as ever; `repr` shows all, and raises nothing."""
    rest = {}
    for key in d:
        try:
            rest[key] = d[key]
        except DecodingError:
            continue
    assert rest == {"first": 1, "last": 3} and len(d) == 3 and "k" in d
    for shown in (repr(d), repr(d.items()), repr(d.values())):
        assert "can't be decoded" in shown and "3" in shown


def test_it_can_be_removed_and_replaced_unread(d: Dict) -> None:
    """`del`, `delete`, assignment and `clear` need no look at the value."""
    del d["k"]
    assert d == {"first": 1, "last": 3}
    d["k"] = "odd"
    assert d.delete("k") is True and d.delete("k") is False
    d["k"] = "odd"
    d["k"] = 2
    assert d["k"] == 2
    d["k"] = "odd"
    d.clear()
    assert d == {}


def test_popitem(d: Dict) -> None:
    """`popitem` leaves a last value that it can't decode, and names its key."""
    assert d.popitem() == ("last", 3)
    with pytest.raises(DecodingError, match="'k'"):
        d.popitem()
    assert "k" in d
    d.delete("k")
    assert d.popitem() == ("first", 1)
    with pytest.raises(KeyError):
        d.popitem()


def test_setdefault_stores_nothing_that_it_cannot_give_back(d: Dict) -> None:
    """A default that this machine can't decode is refused before it is stored."""
    with pytest.raises(DecodingError, match="'new'"):
        d.setdefault("new", "odd")
    assert "new" not in d


# -- while others write ---------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path, codec: Picky) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path / "d", codec=codec, options=QUICK) as opened:
        wait_until(lambda: opened.status().feature_level == THIS.level, "the level is raised")
        yield opened


@pytest.mark.parametrize("pop", [lambda d: d.pop("k"), lambda d: d.popitem()], ids=["pop", "popitem"])
def test_what_was_decoded_is_what_is_removed(alone: Dict, codec: Picky, pop: Callable[[Dict], object]) -> None:
    """A value written between the decoding and the removal is not removed, but looked at as the first one was."""
    alone["k"] = 1
    codec.before = lambda: alone.set("k", "odd")
    with pytest.raises(DecodingError):
        pop(alone)
    assert list(alone) == ["k"]
    alone["k"] = 2
    codec.before = lambda: alone.set("k", 3)
    assert pop(alone) in (3, ("k", 3))
    assert len(alone) == 0


def test_the_last_is_the_last_when_it_is_removed(alone: Dict, codec: Picky) -> None:
    """`popitem` removes what is last at that moment: not what was, when a key comes or goes in between."""
    alone.update({"a": 1, "b": 2})
    codec.before = lambda: alone.set("c", 3)
    assert alone.popitem() == ("c", 3)
    codec.before = lambda: alone.delete("b")
    assert alone.popitem() == ("a", 1)
    assert alone == {}


def test_a_key_that_comes_and_goes(alone: Dict, codec: Picky) -> None:
    """`pop` of a key that goes meanwhile raises KeyError."""
    alone["k"] = 1
    codec.before = lambda: alone.delete("k")
    with pytest.raises(KeyError):
        alone.pop("k")
    alone["k"] = 1
    codec.before = lambda: alone.delete("k")
    assert alone.pop("k", "gone") == "gone"


def test_each_is_popped_by_one(alone: Dict) -> None:
    """Of many threads that pop the same keys, exactly one gets each."""
    alone.update({number: number for number in range(60)})
    got: list[int] = []

    def work() -> None:
        got.extend(value for number in range(60) if (value := alone.pop(number, None)) is not None)

    def items() -> None:
        for _ in range(20):
            try:
                got.append(alone.popitem()[1])
            except KeyError:
                return

    threads = [threading.Thread(target=target) for target in (work, work, items, items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(60)) and alone == {}


def test_on_level_1_what_is_lost_is_handed_over(tmp_path: Path, codec: Picky, monkeypatch: pytest.MonkeyPatch) -> None:
    """With members of the last release a value that slipped in is removed; the error says so and has its bytes."""
    monkeypatch.setattr(feature_level, "THIS", FIRST)
    with ReplicatedDict[Any, Any](tmp_path, codec=codec, options=QUICK) as d:
        for pop in (lambda: d.pop("k"), d.popitem):
            d["k"] = 1
            codec.before = lambda: d.set("k", "odd")
            with pytest.raises(DecodingError, match="the value of key 'k' was removed") as told:
                pop()
            assert (told.value.key, told.value.data) == ("k", encode("odd"))
            assert "k" not in d


# -- elsewhere ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_time_zones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Makes this a machine without time zone data."""
    paths = zoneinfo.TZPATH

    def remove() -> None:
        zoneinfo.ZoneInfo.clear_cache(only_keys=["Asia/Kathmandu"])  # other tests hold on to other zones
        zoneinfo.reset_tzpath([])
        for name in ["tzdata", *(each for each in sys.modules if each.startswith("tzdata."))]:
            monkeypatch.setitem(sys.modules, name, None)

    yield remove
    zoneinfo.reset_tzpath(paths)
    zoneinfo.ZoneInfo.clear_cache(only_keys=["Asia/Kathmandu"])


def test_without_time_zone_data(tmp_path: Path, no_time_zones: Callable[[], None]) -> None:
    """`pop` of a time in a zone that this machine does not know leaves it there."""
    with ReplicatedDict[Any, Any](tmp_path, options=QUICK) as d:
        d["t"] = dt.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Asia/Kathmandu"))
        no_time_zones()
        with pytest.raises(DecodingError, match=r"the value of key 't'.*Asia/Kathmandu"):
            d.pop("t")
        assert "t" in d


def test_over_http(d: Dict) -> None:
    """HTTP says that it is this node's fault, not the request's; DELETE removes the value unread."""
    with client_of(d) as client:
        assert "'k'" in assert_problem(client.get("/kv/k"), "undecodable", 500)
        assert client.get("/kv/first").text == "1"
        assert client.get("/kv").json()["keys"] == ["first", "k", "last"]
        assert client.delete("/kv/k").status_code == 204
        assert "k" not in d


def test_in_the_command(tmp_path: Path, codec: Picky, no_time_zones: Callable[[], None]) -> None:
    """`replidict get` names the key, whether the node can't decode the value or the command can't."""
    address = free_addresses(1)[0]

    def told(key: str) -> str:
        settings = {"REPLIDICT_NODE": address}
        done = CliRunner(env=settings).invoke(main, ["get", key])
        assert done.exit_code == 1 and done.stdout == ""
        return done.stderr

    with ExitStack() as stack:
        d = stack.enter_context(ReplicatedDict[Any, Any](tmp_path / "1", address=address, codec=codec, options=QUICK))
        d.set("k", "odd", timeout=30)
        assert "the value of key 'k' can't be decoded" in told("k")
        d["object"] = [1]
        codec.decode = lambda data: object()  # type: ignore[method-assign]
        assert "the value of key 'object' can't be decoded" in told("object")
    with ReplicatedDict[Any, Any](tmp_path / "2", address=address, options=QUICK) as d:
        d.set("t", dt.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("Asia/Kathmandu")), timeout=30)
        no_time_zones()
        assert "the value of key 't' can't be decoded" in told("t")


def test_a_key_that_the_command_cannot_decode(capsys: pytest.CaptureFixture[str]) -> None:
    """`replidict keys` lists the others, and says on standard error which one is left out."""
    assert list(_decoded(iter([encode_key("a"), b"\xc7\x00\x7f", encode_key("b")]))) == ["a", "b"]
    assert "a key is left out" in (said := capsys.readouterr().err) and "x7f" in said


def test_many_pop_at_once(tmp_path: Path) -> None:
    """Each of many threads that pop from one dict gets a pair of its own by one write: none has to try again."""
    with ReplicatedDict[int, int](tmp_path, options=QUICK) as d:
        wait_until(lambda: d.status().feature_level == THIS.level, "the level is raised")
        d.update({n: n for n in range(200)})
        before = d.status().commit_index
        popped: list[tuple[int, int]] = []
        in_threads(*[lambda: popped.extend(d.popitem() for _ in range(25))] * 8)
        assert sorted(popped) == [(n, n) for n in range(200)] and not d
        assert d.status().commit_index - before <= 200

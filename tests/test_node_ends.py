"""Whatever is raised in a node's thread ends it as any failure does: it says so, tells who waits, and can be closed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replidict import EncodingError, ReplicatedDict, StorageError
from tests.clusters import wait_until

ENDS: list[Callable[[], BaseException]] = [
    SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, ValueError, RecursionError,
]  # fmt: skip


class Codec:
    """Raises in the node's own thread alone, where it was not when the write was checked."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        self._error = error

    def encode(self, value: Any, /) -> bytes:
        return json.dumps(value).encode()

    def decode(self, data: bytes, /) -> Any:
        if threading.current_thread().name.startswith("replidict "):
            raise self._error()
        return json.loads(data)


class Plain(Codec):
    """Raises nothing."""

    def __init__(self) -> None:
        pass

    def decode(self, data: bytes, /) -> Any:
        return json.loads(data)


@pytest.mark.parametrize("error", ENDS, ids=lambda error: error.__name__)
def test_what_is_raised_in_apply_ends_the_node(tmp_path: Path, error: type[BaseException]) -> None:
    """The write is not acknowledged, the node serves nothing more and says so, and `close` returns; a node on which
    that is not raised then has the write (promises 5 and 8)."""
    d = ReplicatedDict[str, Any](tmp_path, codec=Codec(error))
    d["k"] = 1
    later = d.submit("other", 1)
    assert later.result(10) == 2
    with pytest.raises(StorageError, match=error.__name__):
        d.compare_and_set("k", 1.0, 2)
    wait_until(lambda: d.status().role == "stopped", "it says so")
    for call in (lambda: d["k"], lambda: len(d), lambda: d.set("k", 3), lambda: d.get("k", linearizable=True)):
        with pytest.raises(StorageError, match="has stopped"):
            call()
    d.close()
    with ReplicatedDict[str, Any](tmp_path, codec=Plain()) as there:
        assert there["k"] == 2


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_is_raised_in_a_call_ends_the_node(tmp_path: Path, error: type[BaseException]) -> None:
    """A thread that waits for a call of the node's thread is told as well."""
    d = ReplicatedDict[str, int](tmp_path)

    def fail() -> None:
        raise error("bad")

    future = d._host.node.call(fail)
    with pytest.raises(StorageError, match=f"has stopped: {error.__name__}: bad"):
        future.result(10)
    wait_until(lambda: d.status().role == "stopped", "it says so")
    d.close()


def test_a_codec_that_can_not_compare_is_refused_at_once(tmp_path: Path) -> None:
    """What would stop every node is refused before it is proposed."""

    class OneWay(Codec):
        def decode(self, data: bytes, /) -> Any:
            raise ValueError("one way only")

    with ReplicatedDict[str, Any](tmp_path, codec=OneWay(ValueError)) as d:
        d["k"] = 1
        with pytest.raises(EncodingError, match="one way only; nothing was changed"):
            d.compare_and_set("k", 2, 3)
        d["k"] = 2
        assert d.revision == 2


def test_own_threads_have_a_stack_of_their_own(tmp_path: Path) -> None:
    """A program whose threads have the smallest stack can use keys as deep as can be, and keeps its own choice."""
    key: Any = 1
    for _ in range(60):
        key = (key,)
    before = threading.stack_size(64 * 1024)
    try:
        with ReplicatedDict[Any, int](tmp_path) as d:
            d[key] = 1
            assert d.submit(key, 2).result(10) == 2
            assert d[key] == 2
            assert threading.stack_size() == 64 * 1024
    finally:
        threading.stack_size(before)

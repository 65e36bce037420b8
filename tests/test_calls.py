"""What other threads have a node do between two of its steps: done, or refused with the reason, never forgotten."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from replidict import ClosedError, ReplicatedDict, StorageError
from replidict.call import Call
from tests.clusters import wait_until


def test_a_call_runs_in_the_nodes_thread_and_answers(tmp_path: Path) -> None:
    """A call is made in the node's own thread, wakes it, and gives what it returned or raised to who asked."""
    with ReplicatedDict[str, int](tmp_path / "d") as d:
        node = d._host.node
        assert node.call(lambda: threading.current_thread().name).result(30) == "replidict local"
        with pytest.raises(ZeroDivisionError):
            node.call(lambda: 1 // 0).result(30)
        d["k"] = 1
        assert d["k"] == 1, "the caller's mistake does not end the node"


def test_a_storage_error_in_a_call_ends_the_node(tmp_path: Path) -> None:
    """What says that the disk is not to be trusted ends the node, whoever found it out (promise 8)."""
    with ReplicatedDict[str, int](tmp_path / "d") as d:

        def fail() -> None:
            raise StorageError("the disk is gone")

        failed = d._host.node.call(fail)
        with pytest.raises(StorageError, match="disk is gone"):
            failed.result(30)
        wait_until(lambda: d.status().role == "stopped", "the node has stopped")
        with pytest.raises(StorageError, match="disk is gone"):
            d["k"] = 1


def test_no_call_is_left_unanswered(tmp_path: Path) -> None:
    """Calls from many threads while the node closes are all answered, or refused at once with why it stopped."""
    d = ReplicatedDict[str, int](tmp_path / "d")
    node = d._host.node
    asked: list[Call[int]] = []
    refused: list[BaseException] = []

    def ask() -> None:
        while not refused:
            try:
                asked.append(node.call(lambda: 1))
            except ClosedError as error:
                refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(asked) > 1000, "many calls are under way")
    d.close()
    for thread in threads:
        thread.join(30)
    assert refused
    for future in asked:
        error = future.exception(30)
        assert error is None or isinstance(error, ClosedError)

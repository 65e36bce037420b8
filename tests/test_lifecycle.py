"""How a dict ends: closed, forgotten, forked, without a majority, on a full disk; and that nothing ever hangs."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import queue
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replidict import (
    ClosedError,
    NotCommitted,
    Options,
    OutcomeUnknown,
    ReadTimeout,
    ReplicatedDict,
    ReplidictError,
    StorageError,
)
from replidict.machine.changes import Item
from replidict.machine.key_map import Overlay
from replidict.protocol.peer_messages import SnapshotPiece
from replidict.raft.install_snapshot import INCOMING, _Incoming
from replidict.raft.progress import Peer
from replidict.transport import dialing
from tests.clusters import Dict, cluster, free_addresses, host_of, leader_of, open_member, wait_until

# Python warns of any fork of a program with threads; what becomes of such a child is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

OVERRUN = 0.5
"""Seconds by which a call may outlive its timeout here, where other processes take the processor away for long;
how little it is on a quiet machine is for the benchmarks to say."""


@pytest.fixture
def d(tmp_path: Path) -> Iterator[Dict]:
    with ReplicatedDict[Any, Any](tmp_path / "d") as opened:
        opened.update({"a": 1, "b": [2]})
        yield opened


READS: dict[str, Callable[[Dict], object]] = {
    "getitem": lambda d: d["a"],
    "getitem, absent": lambda d: d["absent"],
    "get": lambda d: d.get("a"),
    "get, linearizable": lambda d: d.get("a", linearizable=True),
    "get, bounded": lambda d: d.get("a", max_staleness=100),
    "versioned": lambda d: d.versioned("a"),
    "versioned, linearizable": lambda d: d.versioned("a", linearizable=True),
    "in": lambda d: "a" in d,
    "len": len,
    "bool": bool,
    "iter": iter,
    "list": list,
    "reversed": reversed,
    "items": lambda d: list(d.items()),
    "values": lambda d: list(d.values()),
    "keys": lambda d: list(d.keys()),
    "in items": lambda d: ("a", 1) in d.items(),
    "in values": lambda d: 1 in d.values(),
    "len of a view": lambda d: len(d.values()),
    "==": lambda d: d == {},
    "|": lambda d: d | {},
    "snapshot": lambda d: d.snapshot(),
    "copy": lambda d: d.copy(),
    "barrier": lambda d: d.barrier(),
    "wait_ready": lambda d: d.wait_ready(),
}

WRITES: dict[str, Callable[[Dict], object]] = {
    "set": lambda d: d.set("a", 1),
    "setitem": lambda d: d.__setitem__("a", 1),
    "delitem": lambda d: d.__delitem__("a"),
    "add": lambda d: d.add("a", 1),
    "compare_and_set": lambda d: d.compare_and_set("a", 1, 2),
    "replace": lambda d: d.replace("a", 1, revision=1),
    "pop": lambda d: d.pop("a"),
    "pop with default": lambda d: d.pop("a", None),
    "popitem": lambda d: d.popitem(),
    "setdefault": lambda d: d.setdefault("a"),
    "update": lambda d: d.update(a=1),
    "|=": lambda d: d.__ior__({"a": 1}),
    "clear": lambda d: d.clear(),
}

OTHERS: dict[str, Callable[[Dict], object]] = {
    "submit": lambda d: d.submit("a", 1),
    "members": lambda d: d.members(),
    "remove_peer": lambda d: d.remove_peer("127.0.0.1:1"),
    "transfer_leadership": lambda d: d.transfer_leadership(),
    "backup": lambda d: d.backup("never made"),
}

EVERYTHING = READS | WRITES | OTHERS


def raised_by(call: Callable[[], object]) -> type[BaseException] | None:
    """What kind of exception it raises; None if it returns."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 -- it is the answer
        return type(error)
    return None


# -- close ----------------------------------------------------------------------------------------------------------


def test_after_close_everything_is_a_closed_error(d: Dict) -> None:
    """After close() every operation raises `ClosedError`, which is a `ValueError` as it is for files."""
    views = d.items(), d.values(), d.keys()
    d.close()
    assert {name: raised_by(lambda call=call: call(d)) for name, call in EVERYTHING.items()} == dict.fromkeys(  # type: ignore[misc]
        EVERYTHING, ClosedError
    )
    for view in views:
        with pytest.raises(ClosedError, match="closed"):
            list(view)
    with pytest.raises(ValueError, match="closed"):
        d["a"] = 1


def test_each_call_raises_an_error_of_its_own(d: Dict) -> None:
    """What ended a node is raised anew by every call afterwards: no traceback grows with the calls before."""

    def raised(call: Callable[[Dict], object]) -> ClosedError:
        with pytest.raises(ClosedError) as info:
            call(d)
        return info.value

    d.close()
    for name, call in EVERYTHING.items():
        first, second = raised(call), raised(call)
        assert first is not second, name
        assert len(traceback.extract_tb(first.__traceback__)) == len(traceback.extract_tb(second.__traceback__)), name


def test_close_again(d: Dict) -> None:
    """close() may be called any number of times, also after the `with` block."""
    with d:
        d.close()
        d.close()
    d.close()


def test_status_after_close(d: Dict) -> None:
    """status() and repr() answer on a closed dict, too, and say that it is."""
    assert "2 keys" in repr(d)
    before = d.status()
    assert (before.role, before.is_leader, before.keys) == ("leader", True, 2)
    d.close()
    status = d.status()
    assert (status.role, status.is_leader, status.leader) == ("stopped", False, None)
    assert (status.node_id, status.revision) == (before.node_id, before.revision)
    assert "closed" in repr(d)


def test_an_iterator_outlives_close(d: Dict) -> None:
    """An iterator that began before close() goes on to the end of its moment (promise 9)."""
    keys, items = iter(d), iter(d.items())
    d.close()
    assert list(keys) == ["a", "b"]
    assert list(items) == [("a", 1), ("b", [2])]


def test_close_from_many_threads(tmp_path: Path) -> None:
    """Any number of threads may close at once; each returns when it is done: the directory is free then."""
    for _ in range(5):
        d = ReplicatedDict[Any, Any](tmp_path / "d")
        freed: list[bool] = []

        def close(d: Dict = d, freed: list[bool] = freed) -> None:
            d.close()
            freed.append(d.status().role == "stopped")

        threads = [threading.Thread(target=close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert freed == [True] * 8
        ReplicatedDict[Any, Any](tmp_path / "d").close()


def test_close_inside_a_with_block_that_raises(tmp_path: Path) -> None:
    """A `with` block that raises closes the dict, and what was written before is there."""
    with pytest.raises(ZeroDivisionError), ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d["a"] = 1
        raise ZeroDivisionError
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert d == {"a": 1}


def test_close_while_others_write(tmp_path: Path) -> None:
    """close() while others write: each write returns, or gets `ClosedError` or `OutcomeUnknown`; none hangs."""
    for attempt in range(5):
        d = ReplicatedDict[Any, Any](tmp_path / str(attempt))
        acknowledged: list[Any] = []
        surely_not: list[Any] = []
        ends: list[type[BaseException]] = []
        started = threading.Barrier(17)

        def write(
            name: int,
            d: Dict = d,
            acknowledged: list[Any] = acknowledged,
            surely_not: list[Any] = surely_not,
            ends: list[type[BaseException]] = ends,
            started: threading.Barrier = started,
        ) -> None:
            started.wait()
            number = 0
            while True:
                number += 1
                try:
                    d[name, number] = number
                    acknowledged.append((name, number))
                except ReplidictError as error:
                    ends.append(type(error))
                    if isinstance(error, ClosedError):
                        surely_not.append((name, number))
                    return

        threads = [threading.Thread(target=write, args=(name,)) for name in range(16)]
        for thread in threads:
            thread.start()
        started.wait()
        wait_until(lambda acknowledged=acknowledged: len(acknowledged) > 50, "some are written")  # type: ignore[misc]
        d.close()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert len(ends) == 16 and set(ends) <= {ClosedError, OutcomeUnknown}
        with ReplicatedDict[Any, Any](tmp_path / str(attempt)) as d:
            found = set(d)
            assert set(acknowledged) <= found
            assert not set(surely_not) & found, "ClosedError means: surely not applied"


def test_close_while_others_read(d: Dict) -> None:
    """close() while others read: each read gives its answer or `ClosedError`, and nothing else."""
    ends: list[type[BaseException]] = []

    def read(call: Callable[[Dict], object]) -> None:
        while True:
            try:
                call(d)
            except Exception as error:  # noqa: BLE001 -- it is the answer
                ends.append(type(error))
                return

    calls = [READS[name] for name in ("getitem", "get, linearizable", "len", "items", "==", "barrier", "in")]
    threads = [threading.Thread(target=read, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    d.barrier()
    d.close()
    for thread in threads:
        thread.join(30)
    assert ends == [ClosedError] * len(calls)


def test_waiters_are_told_of_a_close(tmp_path: Path) -> None:
    """A call that waits for a missing majority is told at once when the dict is closed."""
    with _without_quorum(tmp_path, timeout=60) as lone:
        ends: list[type[BaseException] | None] = []
        calls = [WRITES["set"], READS["barrier"], READS["get, linearizable"], WRITES["popitem"]]
        threads = [
            threading.Thread(target=lambda call=call: ends.append(raised_by(lambda: call(lone))), daemon=True)
            for call in calls
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(host_of(lone).node.proposals._queue) == 2, "the writes wait")
        lone.close()
        for thread in threads:
            thread.join(30)
        assert ends == [ClosedError] * 4


def test_the_waker_never_writes_to_a_closed_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is about to wake the node is not overtaken by a close: the number may be another file's by then."""
    d = ReplicatedDict[Any, Any](tmp_path / "d")
    closing = threading.Thread(target=d.close)
    real_write = os.write
    seen: list[bool] = []

    def write(descriptor: int, data: bytes) -> int:
        if threading.current_thread() is threading.main_thread() and not seen:
            closing.start()
            closing.join(0.1)  # if it closes the pipe, it does so now
            try:
                os.fstat(descriptor)
                seen.append(True)
            except OSError:
                seen.append(False)
        return real_write(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    waker = host_of(d)._waker
    waker.sleeping = True
    try:
        waker.wake()
    finally:
        monkeypatch.undo()
        closing.join(30)
    assert seen == [True]
    waker.sleeping = True
    waker.wake()  # afterwards it is no error, and nothing is written


@pytest.mark.parametrize("left", [0, 1], ids=["none", "one"])
def test_no_thread_to_run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Where the system has no thread left, opening fails at once and leaves nothing: it can be tried again."""
    (address,) = free_addresses(1)
    real_start = threading.Thread.start
    started: list[str] = []

    def start(thread: threading.Thread) -> None:
        if len(started) == left:
            raise RuntimeError("can't start new thread")
        started.append(thread.name)
        real_start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            ReplicatedDict[Any, Any](tmp_path / "d", address=address)
    assert len(started) == left
    with ReplicatedDict[Any, Any](tmp_path / "d", address=address) as again:
        again["a"] = 1


def test_no_thread_to_look_up_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread left, a peer's name can't be looked up; the node goes on, and tries again."""
    (address,) = free_addresses(1)
    tried: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        tried.append(thread.name)
        raise RuntimeError("can't start new thread")

    with (
        ReplicatedDict[Any, Any](
            tmp_path / "d", address=address, peers=["127.0.0.1:1", "a.invalid:1"], secret="s" * 32
        ) as d,
        monkeypatch.context() as patched,
    ):
        patched.setattr(threading.Thread, "start", refuse)
        wait_until(
            lambda: tried.count("replidict-lookup") >= 3 or d.status().role == "stopped",
            "the name is looked for again and again",
        )
        assert d.status().role != "stopped"


def test_not_copied_and_not_pickled(d: Dict) -> None:
    """An open dict can't be pickled: it is a node, not a value. `snapshot()` gives the value."""
    with pytest.raises(TypeError):
        pickle.dumps(d)
    assert d.snapshot() == {"a": 1, "b": [2]}


# -- forgotten ------------------------------------------------------------------------------------------------------


def test_forgotten(tmp_path: Path) -> None:
    """A dict that was never closed warns with `ResourceWarning`, naming its directory, and lets go of everything."""
    forgotten = [ReplicatedDict[Any, Any](tmp_path / "d")]
    forgotten[0]["a"] = 1
    with pytest.warns(ResourceWarning, match=rf"{tmp_path}.*not closed"):
        forgotten.clear()
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert d == {"a": 1}


def test_closed_is_not_forgotten(tmp_path: Path) -> None:
    """A dict that was closed is collected without a word."""
    d = ReplicatedDict[Any, Any](tmp_path / "d")
    d.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del d
        gc.collect()


def test_a_failed_constructor_is_not_forgotten(tmp_path: Path) -> None:
    """A constructor that raised leaves nothing to be forgotten."""
    with ReplicatedDict[Any, Any](tmp_path / "d"), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StorageError):
            ReplicatedDict[Any, Any](tmp_path / "d")
        gc.collect()


def test_forgotten_collected_by_its_own_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A forgotten dict in a cycle may be collected in its own thread; it ends in order there, and no thread hangs."""
    d = ReplicatedDict[Any, Any](tmp_path / "d")
    d["a"] = 1
    host = host_of(d)
    engine, before = host.node.engine, host.node.engine.on_step
    thread = host._ticker._thread
    collect = threading.Event()

    def on_step() -> None:
        before()
        if collect.is_set():
            gc.collect()

    engine.on_step = on_step
    cycle: list[Any] = [d]
    cycle.append(cycle)
    wake = host._waker.wake
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del d, cycle, host
            collect.set()
            wake()
            ended = thread.join(30)
    finally:
        gc.enable()
    assert [each.category for each in caught] == [ResourceWarning]
    assert ended
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    engine.on_step = before
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert d == {"a": 1}


_FORGET = """
import sys
from replidict import ReplicatedDict
path, *addresses = sys.argv[1:]
d = ReplicatedDict(path, address=addresses[0] if addresses else None, peers=addresses[1:])
if not addresses[1:]:
    d["a"] = 1
print("written", flush=True)
"""


def run(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script; it must end by itself."""
    return subprocess.run(
        [sys.executable, *options.pop("flags", []), "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("addresses", [0, 1, 3])
def test_interpreter_exits_when_forgotten(tmp_path: Path, addresses: int) -> None:
    """The interpreter exits though close() was forgotten, with a warning, also with peers that are not there."""
    ended = run(_FORGET, str(tmp_path / "d"), *free_addresses(addresses), flags=["-W", "always"])
    assert (ended.returncode, ended.stdout) == (0, "written\n")
    assert "ResourceWarning" in ended.stderr and "not closed" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_forgotten_with_warnings_as_errors(tmp_path: Path) -> None:
    """With warnings as errors a forgotten dict is closed all the same: its directory can be opened again."""
    script = """
import gc, sys
from replidict import ReplicatedDict
d = ReplicatedDict(sys.argv[1])
del d
gc.collect()
with ReplicatedDict(sys.argv[1]) as d:
    d["a"] = 1
print("opened again", flush=True)
"""
    ended = run(script, str(tmp_path / "d"), flags=["-W", "error"])
    assert (ended.returncode, ended.stdout) == (0, "opened again\n")
    assert "ResourceWarning" in ended.stderr


def test_exit_while_threads_write(tmp_path: Path) -> None:
    """The interpreter exits though daemon threads are in the middle of writing."""
    script = """
import sys, threading
from replidict import ReplicatedDict
d = ReplicatedDict(sys.argv[1])
def write(name):
    number = 0
    while True:
        number += 1
        d[name, number] = number
for name in range(4):
    threading.Thread(target=write, args=(name,), daemon=True).start()
while len(d) < 50:
    pass
print("enough", flush=True)
"""
    ended = run(script, str(tmp_path / "d"))
    assert (ended.returncode, ended.stdout) == (0, "enough\n")


# -- fork -----------------------------------------------------------------------------------------------------------


class Child:
    """A forked child that does something, tells its result by a pipe, waits to be released, and exits."""

    def __init__(self, work: Callable[[], object], *, stays: bool = False) -> None:
        result, told = os.pipe()
        wait, self._release = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.alarm(20)  # whatever hangs, ends
                os.close(result)
                os.close(self._release)
                try:
                    said = repr(work())
                except BaseException as error:  # noqa: BLE001 -- told to the parent
                    said = f"raised {error!r}"
                os.write(told, said.encode())
                os.close(told)
                if stays:
                    os.read(wait, 1)
            finally:
                os._exit(0)
        os.close(told)
        os.close(wait)
        with os.fdopen(result) as pipe:
            if not select.select([pipe], [], [], 60)[0]:  # it hangs before it could set its alarm
                os.kill(self.pid, signal.SIGKILL)
            self.said = pipe.read()

    def end(self) -> None:
        """Let it exit, in order."""
        os.close(self._release)
        _, status = os.waitpid(self.pid, 0)
        assert status == 0


def in_child(work: Callable[[], object]) -> str:
    child = Child(work)
    child.end()
    return child.said


def test_fork_child_gets_closed_error(d: Dict) -> None:
    """In a forked child everything raises `ClosedError`, close() does nothing, and status() and repr() answer."""

    def work() -> object:
        kinds = {raised_by(lambda call=call: call(d)) for call in EVERYTHING.values()}  # type: ignore[misc]
        d.close()
        d.close()
        return kinds == {ClosedError}, d.status().address, "closed" in repr(d)

    assert in_child(work) == repr((True, None, True))


def test_fork_leaves_the_parent_unharmed(d: Dict, tmp_path: Path) -> None:
    """The parent goes on as if there had been no fork, whatever the child did with the dict and however it ended."""

    def work() -> object:
        try:
            d["from"] = "child"
        except ClosedError:
            pass
        gc.collect()
        return raised_by(d.close)

    for _ in range(3):
        assert in_child(work) == "None"
        d["parent"] = "goes on"
        assert d.get("parent", linearizable=True) == "goes on"
    expected = d.snapshot()
    assert "from" not in expected
    d.close()
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert d == expected


def test_fork_and_ordinary_exit(tmp_path: Path) -> None:
    """A child that ends as programs do, with all that runs at exit, disturbs neither parent nor file."""
    script = """
import os, sys
from replidict import ReplicatedDict
with ReplicatedDict(sys.argv[1]) as d:
    d["a"] = 1
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    d["b"] = 2
with ReplicatedDict(sys.argv[1]) as d:
    print(dict(d))
"""
    ended = run(script, str(tmp_path / "d"), flags=["-W", "ignore::DeprecationWarning"])  # see pytestmark
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "{'a': 1, 'b': 2}\n", "")


def test_fork_child_opens_its_own(d: Dict, tmp_path: Path) -> None:
    """A child can open a dict of its own, and that of the parent once the parent has closed it."""

    def work() -> object:
        with ReplicatedDict[Any, Any](tmp_path / "own") as own:
            own["a"] = "child's"
            found = own["a"]
        try:
            ReplicatedDict[Any, Any](tmp_path / "d").close()
        except StorageError as error:
            return found, "in use" in str(error)
        return "opened the parent's"

    assert in_child(work) == repr(("child's", True))
    assert d["a"] == 1


def test_fork_the_directory_is_free_when_the_parent_closes(d: Dict, tmp_path: Path) -> None:
    """A child that lives on holds neither lock nor file: the directory is free as soon as the parent has closed."""
    child = Child(lambda: None, stays=True)
    d.close()
    with ReplicatedDict[Any, Any](tmp_path / "d") as again:
        again["c"] = 3
    child.end()
    with ReplicatedDict[Any, Any](tmp_path / "d") as again:
        assert again == {"a": 1, "b": [2], "c": 3}


def test_port_is_free_when_the_parent_closes(tmp_path: Path) -> None:
    """A child that lives on does not listen: the parent's address can be had as soon as the parent has closed."""
    addresses = free_addresses(3)
    nodes = [open_member(tmp_path, addresses, number) for number in range(3)]
    leader_of(nodes)
    nodes[0]["a"] = 1
    child = Child(lambda: [raised_by(lambda node=node: node["a"]) for node in nodes], stays=True)  # type: ignore[misc]
    assert child.said == repr([ClosedError] * 3)
    nodes[0]["b"] = 2  # the cluster goes on
    for node in nodes:
        node.close()
    for address in addresses:
        host, port = address.split(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0, "the child still takes calls"
    nodes = [open_member(tmp_path, addresses, number) for number in range(3)]
    try:
        for node in nodes:
            assert node.wait_ready(30)
            assert node == {"a": 1, "b": 2}
    finally:
        for node in nodes:
            node.close()
    child.end()


def test_fork_does_not_disturb_the_cluster(tmp_path: Path) -> None:
    """A fork costs no connection, no leadership and no log entry: the child's copies of the sockets say nothing."""
    with cluster(tmp_path) as nodes:
        leader = leader_of(nodes)
        term = leader.status().term
        wait_until(lambda: all(len(node.status().connected) == 2 for node in nodes), "all are connected")
        connections = [[peer.connections for peer in host_of(node).node.engine.peers.values()] for node in nodes]
        for number in range(3):
            assert in_child(lambda: [raised_by(node.close) for node in nodes]) == repr([None] * 3)
            for node in nodes:
                node[number] = number
        assert leader.status().is_leader and leader.status().term == term
        assert connections == [[peer.connections for peer in host_of(n).node.engine.peers.values()] for n in nodes]


def test_fork_during_apply(d: Dict) -> None:
    """A fork while an update is applied leaves the child nothing of it to read, and nothing that it waits for."""
    machine = host_of(d).node.machine

    def work() -> object:
        kinds = {raised_by(lambda call=call: call(d)) for call in EVERYTHING.values()}  # type: ignore[misc]
        d.close()
        return kinds | {raised_by(d.members)} == {ClosedError}

    machine.readable = Overlay(machine.items, {"a": Item(b"", b"", 1, 1)})
    said = in_child(work)
    machine.readable = machine.items
    assert said == "True"
    assert d["a"] == 1


def test_fork_while_others_write(d: Dict) -> None:
    """A fork in the middle of heavy use: the parent's writers notice nothing, and the child does not hang."""
    stop = threading.Event()
    written: list[Any] = []
    both_closed = repr([ClosedError] * 2)

    def write(name: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            d.update({(name, number): number, (name, -number): number})
            written.append((name, number))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = len(written)
            assert in_child(lambda: [raised_by(lambda: len(d)), raised_by(lambda: d.set("x", 1))]) == both_closed
            wait_until(lambda before=before: len(written) > before + 10, "the parent writes on")  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert set(written) <= set(d)
    assert "x" not in d


# -- no majority ----------------------------------------------------------------------------------------------------


def _without_quorum(root: Path, **arguments: Any) -> Dict:
    """A node whose peers are not there."""
    return open_member(root, free_addresses(3), 0, **arguments)


def timed(call: Callable[[], object]) -> tuple[type[BaseException] | None, float]:
    began = time.monotonic()
    kind = raised_by(call)
    return kind, time.monotonic() - began


def test_without_quorum_nothing_was_sent(tmp_path: Path) -> None:
    """Without a majority a write is `NotCommitted`, surely; a strong read `ReadTimeout`; all in time (promise 3)."""
    with _without_quorum(tmp_path, timeout=0.15) as lone:
        for name, call in WRITES.items():
            kind, seconds = timed(lambda call=call: call(lone))  # type: ignore[misc]
            assert kind is NotCommitted, name
            assert 0.15 <= seconds < 0.15 + OVERRUN, name
        for name in ("get, linearizable", "versioned, linearizable", "barrier"):
            kind, seconds = timed(lambda name=name: READS[name](lone))  # type: ignore[misc]
            assert kind is ReadTimeout, name
            assert 0.15 <= seconds < 0.15 + OVERRUN, name
        kind, seconds = timed(lambda: lone.get("a", max_staleness=0.1))
        assert kind is ReadTimeout and seconds < 0.15 + OVERRUN
        assert lone.wait_ready(0.1) is False
        assert (lone.get("a"), "a" in lone, len(lone), lone.snapshot()) == (None, False, 0, {})  # its own copy answers
        assert lone.status().leader is None


def test_a_timeout_of_its_own(tmp_path: Path) -> None:
    """`timeout=` of a call stands over that of the dict; 0 means: not at all."""
    with _without_quorum(tmp_path, timeout=300) as lone:
        for timeout in (0, 0.1):
            calls: list[Callable[[], object]] = [
                lambda timeout=timeout: lone.set("a", 1, timeout=timeout),  # type: ignore[misc]
                lambda timeout=timeout: lone.pop("a", None, timeout=timeout),  # type: ignore[misc]
                lambda timeout=timeout: lone.clear(timeout=timeout),  # type: ignore[misc]
                lambda timeout=timeout: lone.barrier(timeout=timeout),  # type: ignore[misc]
                lambda timeout=timeout: lone.get("a", linearizable=True, timeout=timeout),  # type: ignore[misc]
            ]
            for call in calls:
                kind, seconds = timed(call)
                assert kind in (NotCommitted, ReadTimeout)
                assert timeout <= seconds < timeout + OVERRUN


def test_timeout_zero_where_all_is_well(d: Dict) -> None:
    """A write with no time at all may be applied or not, and says only what it knows; what it says is so."""
    for number in range(20):
        try:
            d.set(("zero", number), 1, timeout=0)
            expected = {True}
        except NotCommitted:
            expected = {False}
        except OutcomeUnknown:
            expected = {True, False}
        d.barrier()
        d["another"] = 1  # everything sent before it is applied by now
        assert (("zero", number) in d) in expected


def test_many_who_give_up(tmp_path: Path) -> None:
    """64 threads that wait in vain end in time, all of them, and leave nothing behind that would be sent later."""
    with _without_quorum(tmp_path, timeout=0.5) as lone:
        ends: list[tuple[type[BaseException] | None, float]] = []
        threads = [
            threading.Thread(target=lambda name=name: ends.append(timed(lambda: lone.set(name, b"x" * 10_000))))
            for name in range(64)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert {kind for kind, _ in ends} == {NotCommitted} and len(ends) == 64
        assert max(seconds for _, seconds in ends) < 0.5 + 2 * OVERRUN  # 64 threads want the processor at one moment
        assert not host_of(lone).node.proposals._queue


def test_not_committed_is_never_applied(tmp_path: Path) -> None:
    """What was `NotCommitted` is not applied later either, when the majority comes back (promise 3)."""
    addresses = free_addresses(3)
    with open_member(tmp_path, addresses, 0, timeout=0.2) as lone:
        with pytest.raises(NotCommitted):
            lone["never"] = 1
        with open_member(tmp_path, addresses, 1) as second:
            assert lone.wait_ready(30)
            lone.set("later", 1, timeout=30)
            second.barrier(timeout=30)
            assert lone == second == {"later": 1}


def test_sent_without_quorum_is_unknown(tmp_path: Path) -> None:
    """A write that was sent, and whose majority then went away, is `OutcomeUnknown`, in time (promise 3)."""
    addresses = free_addresses(3)
    # A long election timeout, so that the leader still believes in itself when the write comes.
    options = Options(election_timeout=2.0, heartbeat=0.2)
    nodes = [open_member(tmp_path, addresses, number, options=options) for number in range(3)]
    try:
        leader = leader_of(nodes)
        leader["a"] = 1
        for node in nodes:
            if node is not leader:
                node.close()
        waiting: list[type[BaseException] | None] = []
        waiter = threading.Thread(
            target=lambda: waiting.append(raised_by(lambda: leader.set("w", 1, timeout=60))), daemon=True
        )
        waiter.start()
        wait_until(lambda: len(host_of(leader).node.proposals._in_flight) == 1, "it is sent")
        kind, seconds = timed(lambda: leader.set("b", 2, timeout=0.3))
        assert kind is OutcomeUnknown
        assert 0.3 <= seconds < 0.3 + OVERRUN
        kind, seconds = timed(lambda: leader.get("a", linearizable=True, timeout=0.3))
        assert kind is ReadTimeout
        assert 0.3 <= seconds < 0.3 + OVERRUN
        assert leader["a"] == 1
        wait_until(lambda: not leader.status().is_leader, "it steps down")
        kind, _ = timed(lambda: leader.set("c", 3, timeout=0.2))
        assert kind is NotCommitted
        leader.close()
        waiter.join(30)
        assert waiting == [OutcomeUnknown], "a write that was sent is not surely lost because its node is closed"
    finally:
        for node in nodes:
            node.close()


# -- crashes and disks ----------------------------------------------------------------------------------------------


def test_reads_at_once_after_a_crash(tmp_path: Path) -> None:
    """A single node that was killed has every acknowledged write from the constructor on, for plain reads, too."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        for number in range(300):
            d[number] = number
        shutil.copytree(tmp_path / "d", tmp_path / "killed")  # as the file is when the process dies now
    with ReplicatedDict[Any, Any](tmp_path / "killed") as d:
        assert len(d) == 300
        assert d == {number: number for number in range(300)}


_FULL_DISK = """
import json, os, resource, sys, threading, time
from replidict import ReplicatedDict, StorageError

path, acknowledged = sys.argv[1], []
d = ReplicatedDict(path, timeout=30)
for number in range(20):
    d[number] = number
    acknowledged.append(number)
size = os.path.getsize(path + "/replidict.db-wal")
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, resource.RLIM_INFINITY))
ends = []

def write(name):
    number = 0
    while True:
        number += 1
        key = f"{name} {number}"
        began = time.monotonic()
        try:
            d[key] = "x" * 1000
            acknowledged.append(key)
        except Exception as error:
            ends.append((type(error).__name__, time.monotonic() - began))
            return

threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
hang = any(thread.is_alive() for thread in threads)
deadline = time.monotonic() + 10
def kind(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
while kind(lambda: d[0]) is None and time.monotonic() < deadline:
    pass
after = [kind(call) for call in (lambda: d[0], lambda: len(d), lambda: list(d), lambda: d.get(0, linearizable=True),
                                 lambda: d.set("a", 1), lambda: d.barrier(), lambda: 0 in d)]
try:
    d["a"] = 1
except StorageError as error:
    message = str(error)
role = d.status().role
d.close()
closed = kind(lambda: d[0])
print(json.dumps([acknowledged, ends, hang, after, message, role, closed]), flush=True)
"""


def test_full_disk(tmp_path: Path) -> None:
    """When the disk is full, all are told at once, reads end, too, and what was acknowledged is there later."""
    ended = run(_FULL_DISK, str(tmp_path / "d"))
    assert ended.returncode == 0, ended.stderr
    acknowledged, ends, hang, after, message, role, closed = json.loads(ended.stdout)
    assert not hang
    assert [kind for kind, _ in ends] == ["StorageError"] * 8
    assert max(seconds for _, seconds in ends) < 10, "told at once, and not when their 30 seconds were over"
    assert after == ["StorageError"] * 7
    assert "could not write" in message and "space" in message
    assert role == "stopped"
    assert closed == "StorageError"
    assert "this node has stopped" in ended.stderr
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert d.wait_ready(30)
        assert set(acknowledged) <= set(d)
        d["space"] = "is back"


def test_an_io_error_ends_one_node_and_not_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose disk fails stops acknowledging and says why; the others go on without it (promise 8)."""
    with cluster(tmp_path) as nodes:
        leader = leader_of(nodes)
        leader["a"] = 1
        store = host_of(leader).node.store
        failing = StorageError("the disk is gone")

        def fail(*_: object) -> None:
            raise failing

        monkeypatch.setattr(store, "commit", fail)
        kind, _ = timed(lambda: leader.set("b", 2))
        assert kind is StorageError
        wait_until(lambda: raised_by(lambda: leader["a"]) is StorageError, "reads end as well")
        with pytest.raises(StorageError, match="disk is gone"):
            leader["a"]
        others = [node for node in nodes if node is not leader]
        assert leader_of(others) is not leader
        others[0]["c"] = 3
        assert others[1].get("c", linearizable=True) == 3


def test_who_asked_is_told_of_a_node_that_stops(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks of `on_stop` hear once why a node has stopped by itself, its directory free again; so do late ones."""
    told: queue.Queue[Any] = queue.Queue()
    d = ReplicatedDict[str, int](tmp_path / "d")
    d.wait_ready(30)

    def reopen(error: ReplidictError) -> None:
        d.close()
        with ReplicatedDict[str, int](tmp_path / "d") as again:
            again["reopened"] = 1
        told.put((error, threading.current_thread()))

    def wrong(error: ReplidictError) -> None:
        raise ZeroDivisionError("of the callback")

    d.on_stop(wrong)
    d.on_stop(reopen)
    failing = StorageError("the disk is gone")

    def fail() -> None:
        raise failing

    engine = host_of(d).node.engine
    engine.on_step = fail
    engine.stirred = True
    with pytest.raises((StorageError, OutcomeUnknown)):
        d["a"] = 1
    error, thread = told.get(timeout=30)
    assert error is failing and thread is not threading.current_thread()
    d.on_stop(told.put)
    assert told.get(timeout=30) is failing
    assert told.empty()
    assert [record for record in caplog.records if "on_stop" in record.getMessage() and record.exc_info]


def test_nobody_is_told_of_a_node_that_is_closed(tmp_path: Path) -> None:
    """Who closes the dict knows it: callbacks of `on_stop` are not called, now or later."""
    told: list[ReplidictError] = []
    d = ReplicatedDict[str, int](tmp_path)
    d.on_stop(told.append)
    d.close()
    d.on_stop(told.append)
    assert not [each for each in threading.enumerate() if each.name.startswith("on_stop")] and told == []


def test_an_internal_error_ends_the_node(d: Dict, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever ends the node is logged once and told to everybody, now and later; nobody waits for a dead thread."""

    def fail() -> None:
        raise ZeroDivisionError("a mistake")

    engine = host_of(d).node.engine
    engine.on_step = fail
    engine.stirred = True
    with pytest.raises((StorageError, OutcomeUnknown), match="a mistake"):
        d["a"] = 2
    wait_until(lambda: raised_by(lambda: len(d)) is StorageError, "reads end as well")
    assert {raised_by(lambda call=call: call(d)) for call in EVERYTHING.values()} == {StorageError}  # type: ignore[misc]
    d.close()  # a line may come a moment late, but not after that
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1
    assert d.status().role == "stopped"


def test_all_pieces_of_an_update_have_one_timeout(tmp_path: Path) -> None:
    """However many commands an `update` is split into, it ends within the one timeout."""
    options = Options(max_command_bytes=1)
    with ReplicatedDict[int, int](tmp_path, timeout=0.05, options=options) as d:
        assert d.wait_ready(30)
        with pytest.raises((NotCommitted, OutcomeUnknown)):
            d.update({number: number for number in range(30_000)})
        assert len(d) < 30_000


def test_closing_ends_whatever_the_disk_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A snapshot that can't be put away, on a full disk, is logged; `close` returns, and frees the directory."""
    d: Dict = ReplicatedDict(tmp_path)
    d["key"] = "value"
    snapshots = host_of(d).node.engine.snapshots
    incoming = _Incoming(Peer("a:1"), SnapshotPiece(1, 1, 1, "a", 1, b"", 0, b""), tmp_path / INCOMING)
    incoming.file.close()
    incoming.file = open("/dev/full", "wb")  # type: ignore[assignment]  # noqa: SIM115
    incoming.file.write(b"what does not fit")
    snapshots._incoming = incoming
    closing = threading.Thread(target=d.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive(), "close() hangs"
    assert "could not remove a snapshot" in caplog.text
    again: Dict = ReplicatedDict(tmp_path)
    assert again == {"key": "value"}
    again.close()
    assert not (tmp_path / INCOMING).exists()


def test_a_full_disk_shows_where_a_snapshot_is_written(tmp_path: Path) -> None:
    """What the disk refuses of an arriving snapshot is an error at once, and not when the file is closed."""
    (tmp_path / "full").symlink_to("/dev/full")
    incoming = _Incoming(Peer("a:1"), SnapshotPiece(1, 1, 1, "a", 1, b"", 0, b""), tmp_path / "full")
    with pytest.raises(OSError, match="No space left"):
        incoming.take(b"what does not fit")
    incoming.file.close()


def test_whoever_waits_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer hears that the node was closed before the node has let go of everything, here of a lookup that hangs."""
    hanging, asked, told = threading.Event(), threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def lookup(host: str, port: int, **how: Any) -> Any:
        if host.endswith(".test") and not how["flags"] & socket.AI_NUMERICHOST:
            asked.set()
            assert hanging.wait(120)
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return real(host, port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(dialing, "LOOKUP_JOIN", 120.0)
    own = free_addresses(1)[0].replace("127.0.0.1", "localhost")
    d: Dict = ReplicatedDict(tmp_path, address=own, peers=["a.test:7000"], secret="a secret of this test")

    def write() -> None:
        with pytest.raises(ClosedError):
            d.set("key", "value", timeout=120)
        told.set()

    assert asked.wait(30)
    threads = [threading.Thread(target=write), threading.Thread(target=d.close)]
    threads[0].start()
    wait_until(lambda: bool(host_of(d).node.proposals._queue), "the write waits")
    threads[1].start()
    at_once = told.wait(30)
    hanging.set()
    for thread in threads:
        thread.join()
    assert at_once

"""One dict for all processes of a machine: the same promises for each, whoever runs the node, and whoever dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from replidict import ClosedError, LockLost, NotCommitted, Options, ReplicatedDict, ReplidictError, StorageError
from replidict.node.node import Node
from replidict.server.shared_node import SharedNode
from replidict.transport import unix
from tests.clusters import Dict, free_addresses, wait_until
from tests.share_support import QUICK, attached, begin_watch, count, len_of, look, put, role, running, told, workers
from tests.share_support import helpers_of_multiprocessing as helpers_of_multiprocessing


def opened(path: Path, **how: Any) -> Dict:
    return ReplicatedDict[Any, Any](path, **{"share": True, "options": QUICK, **how})


def in_child(body: Any) -> str:
    """What a forked child makes of something, as text: `repr`, or the name of the error."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = repr(body())
        except BaseException as error:  # noqa: BLE001 -- told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def test_two_of_one_process(tmp_path: Path) -> None:
    """The second process attaches to the first; each reads its own writes at once, and after a barrier all others'."""
    with opened(tmp_path / "d") as host, opened(tmp_path / "d") as other:
        assert (host.status().sharing, other.status().sharing) == ("host", "attached")
        other["b"] = [1]
        assert other["b"] == [1]
        host.barrier()
        assert host["b"] == [1]
        host.update({"c": 2, "d": 3})
        assert other.get("d", linearizable=True) == 3
        assert list(other) == list(host) == ["b", "c", "d"]
        assert other.revision == host.revision == 2
        assert host.status().attached == ()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_share(tmp_path: Path, method: str) -> None:
    """Processes of every kind use one dict, and it goes on when the one that ran the node leaves."""
    with workers(tmp_path / "d", method, method) as (first, second):
        assert (first.do(role), second.do(role)) == ("host", "attached")
        first.do(put, "k", 1)
        assert second.do(count, "n", 3) == [1, 2, 3]
        assert first.do(attached) == (second.pid,)
        first.leave()
        assert second.do(count, "n", 2) == [4, 5]
        assert (second.do(look, "k"), second.do(role)) == (1, "host")


def test_forked_children_attach(tmp_path: Path) -> None:
    """A child of the process that runs the node, and one of an attached process, use the dict as it is: they attach on
    first use, and leave the parent's alone."""
    with opened(tmp_path / "d") as host, opened(tmp_path / "d") as other:
        host["a"] = 1

        def use() -> object:
            other["b"] = 2
            return host["a"], host.get("b", linearizable=True), host.status().sharing, len(other)

        assert in_child(use) == "(1, 2, 'attached', 2)"
        assert other.get("b", linearizable=True) == 2
        assert in_child(lambda: host.revision) == "2"


def test_forked_child_of_a_dict_that_is_not_shared(tmp_path: Path) -> None:
    """Without `share=True` a dict belongs to the parent, as ever."""
    with opened(tmp_path / "d", share=False) as d:
        d["a"] = 1
        assert in_child(lambda: d["a"]).startswith("ClosedError")
        assert d.status().sharing is None


def test_what_a_parent_holds_is_not_its_childs(tmp_path: Path) -> None:
    """Locks, leases and watches are the parent's: in the child they are lost or closed, and a lock can be used anew."""
    with opened(tmp_path / "d") as d, d.lock("x") as held, d.lease() as lease, d.watch() as watch:
        lock = d.lock("y")

        def use() -> object:
            with pytest.raises(LockLost):
                held.check()
            with pytest.raises(NotCommitted):
                lease.check()
            with pytest.raises(ClosedError):
                watch.next(1.0)
            with lock:
                return lease.lost.is_set(), held.lost.is_set()

        assert in_child(use) == "(True, True)"
        held.check()
        lease.check()
        assert watch.next(0) is None


def test_killed_hosts_lose_and_double_nothing(tmp_path: Path) -> None:
    """While processes count, the one that runs the node is killed, and the next one, too: each increment is there once,
    in the process that made it as soon as it returns."""
    path, each = tmp_path / "d", 150
    with workers(path, *["spawn"] * 4) as crowd:
        for worker in crowd:
            worker.begin(count, "n", each)
        living = {worker.pid: worker for worker in crowd}
        for _ in range(2):
            wait_until(lambda: running(path) in living, "somebody runs the node")
            living.pop(running(path)).kill()
        sums = [total for worker in living.values() for total in worker.end()]
        assert len(set(sums)) == len(sums) == 2 * each
        (final,) = next(iter(living.values())).do(count, "n", 1)
        assert max(sums) < final <= 4 * each + 1


def test_a_dead_process_holds_no_lease(tmp_path: Path) -> None:
    """A killed process's lease and lock are gone within a second, though their ttl is a minute."""
    with opened(tmp_path / "d") as d, workers(tmp_path / "d", "spawn") as (worker,):
        worker.do(_hold)
        assert d.get("mine", linearizable=True) == 1
        assert not d.lock("x").acquire(blocking=False)
        worker.kill()
        begun = time.monotonic()
        with d.lock("x"):
            assert d.get("mine", linearizable=True) is None
        assert time.monotonic() - begun < 5.0, "long before the ttl of a minute"


def test_who_dies_under_another_host(tmp_path: Path) -> None:
    """A lock that was granted under one host is gone at once with its holder, who dies under the next one."""
    (address,) = free_addresses(1)
    path = tmp_path / "d"
    with (
        workers(path, "spawn", address=address) as (host,),
        workers(path, "spawn") as (holder,),
        opened(path, address=address) as d,
    ):
        holder.do(_hold)
        host.kill()
        assert holder.do(put, "a", 1)
        assert d.status().sharing == "host"
        holder.kill()
        with d.lock("x"):
            assert d.get("mine", linearizable=True) is None


_held: list[object] = []


def _hold(d: Dict) -> None:
    lease, lock = d.lease(60.0), d.lock("x", ttl=60.0)
    assert lock.acquire()
    d.set("mine", 1, lease=lease)
    _held.extend([lease, lock])


def test_what_is_held_outlasts_the_host(tmp_path: Path) -> None:
    """Locks, leases and watches of an attached process go on when another process runs the node, without a gap."""
    path = tmp_path / "d"
    with (
        workers(path, "spawn") as (host,),
        opened(path) as d,
        d.lock("x") as held,
        d.lease() as lease,
        d.watch(prefix="n") as watch,
    ):
        host.do(count, "n", 3)
        host.kill()
        d["n2"] = 1
        assert d.status().sharing == "host"
        held.check()
        lease.check()
        d.set("fenced", 1, fence=held)
        changes = [watch.next(5.0) for _ in range(4)]
        found = [(event.key, event.value) for change in changes if change for event in change.events]
        assert found == [("n", 1), ("n", 2), ("n", 3), ("n2", 1)]


def test_the_copy_is_the_state(tmp_path: Path) -> None:
    """What an attached process holds is all that the node holds, sessions, leases and locks included: both have the
    same digest at the same entry, whether the copy has followed the log or was sent the state."""
    path = tmp_path / "d"
    with opened(path) as host, opened(path) as early, host.lease(), early.lock("x"), early.semaphore("y", 2):
        early.update(dict.fromkeys(range(2000), "v" * 1000))
        early.set("t", 1, ttl=1000.0)
        host.clear()
        host.update({("k", key): [key] for key in range(100)})
        del early["k", 7]
        with opened(path) as late:
            shared = host._host
            assert isinstance(shared, SharedNode) and shared._host is not None
            nodes: list[Node] = [shared._host.node, *(d._host.node for d in (host, early, late))]
            wait_until(lambda: len({node.machine.applied_index for node in nodes}) == 1, "all have applied the same")
            assert len({node.call_and_wait(partial(_digest, node)) for node in nodes}) == 1


def _digest(node: Node) -> tuple[int, bytes]:
    return node.machine.applied_index, node.machine.digest()


@pytest.mark.parametrize("retain", [10, 20_000])
def test_one_that_lags(tmp_path: Path, retain: int) -> None:
    """A process that was stopped for a while goes on from the log, and its watch misses nothing. If the log was cut off
    meanwhile it is sent the state: then the watch is told that it has lost something, and nothing wrong."""
    options = Options(durability="process", log_retain=retain)
    with opened(tmp_path / "d", options=options) as d, workers(tmp_path / "d", "spawn", options=options) as (worker,):
        worker.do(begin_watch)
        os.kill(worker.pid, signal.SIGSTOP)
        for n in range(2500):
            d[f"n{n % 7}"] = "x" * 4000
        os.kill(worker.pid, signal.SIGCONT)
        assert worker.do(put, "k", 1) == 2501
        assert worker.do(len_of) == 8
        assert worker.do(told) == (2501 if retain > 2501 else "HistoryLost")


def test_a_socket_that_was_left_behind(tmp_path: Path) -> None:
    """What a killed process left in the directory is replaced by the next one that runs the node."""
    path = tmp_path / "d"
    path.mkdir()
    for name in (unix.NAME, f"{unix.NAME}.new"):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path / name))
    with opened(path) as host, opened(path) as other:
        other["a"] = 1
        assert host.get("a", linearizable=True) == 1
        assert (path / unix.NAME).stat().st_mode & 0o777 == 0o600
    assert not list(path.glob(f"{unix.NAME}*"))


def test_a_long_path(tmp_path: Path) -> None:
    """A directory whose path is longer than a socket's name may be is shared as any other."""
    path = tmp_path / ("x" * 100) / ("y" * 100)
    with opened(path) as host, opened(path) as other:
        other["a"] = 1
        assert host.get("a", linearizable=True) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(tmp_path: Path) -> None:
    """A process of another user is not heard, even where the modes of files would let it in."""
    path = tmp_path / "d"
    with opened(path) as d:
        d["a"] = 1
        for each in (path, *path.parents):
            if each.owner() == path.owner() and each.name.startswith(("d", "test_", "popen-", "pytest-")):
                each.chmod(0o777)
        (path / unix.NAME).chmod(0o777)

        def knock() -> object:
            os.setuid(12345)
            with unix.call(path) as sock:
                sock.settimeout(10.0)
                return sock.recv(1)

        assert in_child(knock) == "b''"
        assert not d.status().attached


def test_attach_only(tmp_path: Path) -> None:
    """Without an address, a process uses the node of a cluster that another one runs, and never runs it itself."""
    (address,) = free_addresses(1)
    path = tmp_path / "d"
    with opened(path, address=address) as host, opened(path) as other:
        other["a"] = 1
        assert other.status().address == address
        host.close()
        with pytest.raises(NotCommitted, match="no leader"):
            other.set("a", 2, timeout=0.3)
        with opened(path, address=address):
            assert other.get("a", linearizable=True) == 1
    with pytest.raises(ReplidictError, match="no process of this machine"):
        opened(path, timeout=0.3)


def test_another_node_in_the_directory(tmp_path: Path) -> None:
    """A process whose node was replaced by another one, though at the same address, mixes the two in no way: it stops,
    and says so."""
    (address,) = free_addresses(1)
    path = tmp_path / "d"
    with opened(path, address=address) as host, opened(path) as other:
        other["a"] = 1
        reasons: list[ReplidictError] = []
        other.on_stop(reasons.append)
        host.close()
        shutil.rmtree(path)
        with opened(path, address=address) as d:
            d["b"] = 2
            wait_until(lambda: bool(reasons), "it has noticed")
        with pytest.raises(StorageError, match="another node"):
            other["a"]
        assert other.status().role == "stopped"


def test_a_directory_that_is_not_shared(tmp_path: Path) -> None:
    """A process that does not share its node is not attached to, and says nothing about it: the time runs out."""
    with opened(tmp_path / "d", share=False) as d:
        with pytest.raises(ReplidictError, match="no process of this machine"):
            opened(tmp_path / "d", timeout=0.3)
        with pytest.raises(StorageError, match="in use"):
            opened(tmp_path / "d", share=False)
        d["a"] = 1


def test_administration_of_an_attached_process(tmp_path: Path) -> None:
    """Members, their changes and backups are had by way of the process that runs the node, with the same errors."""
    (address, other_address) = free_addresses(2)
    with opened(tmp_path / "d", address=address) as host, opened(tmp_path / "d") as other:
        host.wait_ready()
        assert [member.address for member in other.members()] == [address]
        other.add_peer(other_address)
        assert len(other.members()) == 2
        with pytest.raises(ReplidictError, match="removing"):
            other.remove_peer("127.0.0.1:9")
    with opened(tmp_path / "e") as host, opened(tmp_path / "e") as other:
        other["a"] = 1
        made = other.backup(tmp_path / "backup")
        assert (made.path, made.keys) == (tmp_path / "backup", 1)
        with pytest.raises(FileExistsError):
            other.backup(tmp_path / "backup")


@pytest.mark.parametrize("other", [False, True])
def test_exit_without_close(tmp_path: Path, other: bool) -> None:
    """A program that never closes its dict, nor those of its children, ends; nothing is left in the directory."""
    program = f"""
import os
from replidict import ReplicatedDict
first = ReplicatedDict({str(tmp_path / "d")!r}, share=True)
d = ReplicatedDict({str(tmp_path / "d")!r}, share=True) if {other} else first
d["a"] = 1
if not os.fork():
    d["b"] = 2
    raise SystemExit
os.wait()
assert d.get("b", linearizable=True) == 2
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert not (tmp_path / "d" / unix.NAME).exists()

"""A program that is interrupted, or goes on in an unusual way: signal handlers, finalizers, a main thread that has
ended, another working directory, frozen time. Whatever uses the dict there gets its answer, and nothing hangs."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from replidict import NotCommitted, Options, ReplicatedDict, ReplidictError, logging_thread
from replidict.latch import Latch
from replidict.node import consistent_reads, futures
from replidict.own_threads import OwnThread
from tests.clusters import Dict, cluster, free_addresses, wait_until
from tests.line_interrupts import interrupted

PATIENCE = 60


def run(program: str, *arguments: object, seconds: float = 100) -> str:
    """What a program prints that must end in time; where it hangs, all its threads are in the error."""
    begin = f"import faulthandler; faulthandler.dump_traceback_later({seconds - 20}, exit=True)\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", begin + program, *map(str, arguments)],
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("members", "count"), [(1, 1000), (3, 400)])
def test_interruptions_at_random(members: int, count: int) -> None:
    """Signal handlers and finalizers that use the dict interrupt every public call: nothing hangs, no acknowledged
    write is lost, no update is seen in half (promises 1 and 9)."""
    command = [sys.executable, "-m", "tests.interruptions", "--count", str(count), "--members", str(members)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "closed in a handler" in done.stdout
    assert "finalizer in a thread of the dict" in done.stdout


HANDLERS = {
    "close": "d.close()",
    "write": "d['signals'] = 1; again()",
    "submit": "d.submit('signals', 1).result(); again()",
    "read": "len(d); list(d); dict(d.items()); 'x' in d; again()",
    "members": "d.members(); d.barrier(); again()",
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_signal_handler_may_use_the_dict(tmp_path: Path, handler: str) -> None:
    """A handler that closes, writes or reads interrupts iteration, writes, futures and backups: it gets its answer, and
    so does what it interrupted."""
    program = """
import os, signal, sys, threading
from replidict import ClosedError, Options, OutcomeUnknown, ReplicatedDict, ReplidictError
path, handler, rounds = sys.argv[1], compile(sys.argv[2], "handler", "exec"), 4 if "close" in sys.argv[2] else 1
for number in range(rounds):
    d = ReplicatedDict(path, options=Options(durability="process", snapshot_retain=0))
    d.update({n: n for n in range(2_000)})
    handled = 0
    def again():
        signal.setitimer(signal.ITIMER_REAL, 0.002)
    def handle(*_):
        global handled
        handled += 1
        exec(handler)
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02 + 0.03 * number)
    try:
        while handled < 60:
            for _ in d: pass
            d["x"] = 1
            d.update(a=1, b=2)
            d.submit("y", 1).result()
            len(d)
            d.backup(f"{path}-backup"); os.unlink(f"{path}-backup")
    except ReplidictError as error:
        assert "close" in sys.argv[2], error
    signal.setitimer(signal.ITIMER_REAL, 0)
    d.close()
    again_open = ReplicatedDict(path)
    assert again_open[1_999] == 1_999
    again_open.close()
    if os.path.exists(f"{path}-backup"): os.unlink(f"{path}-backup")
print("fine")
"""
    assert run(program, tmp_path / "d", HANDLERS[handler]) == "fine\n"


@pytest.mark.parametrize("read", ["len(d)", "d['k']", "list(d)", "d.snapshot()", "'k' in d", "d.status()"])
def test_a_finalizer_may_read(tmp_path: Path, read: str) -> None:
    """A `__del__` that reads, run by the collector in the middle of a read of the same thread, gets its answer."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d.update({n: n for n in range(300)} | {"k": 1})
        threshold = gc.get_threshold()
        read_it = eval(f"lambda d: {read}")
        done: list[object] = []

        class Litter:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                done.append(read_it(d))

        gc.set_threshold(10, 2, 2)
        try:
            for _ in range(300):
                Litter()
                list(d.items()), len(d), d.copy()
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        assert len(done) == 300


INTERRUPTED = {
    "lock": "with d.lock('a') as held: d.set('x', 1, fence=held)",
    "lock that is taken": "assert not d.lock('taken').acquire(False)",
    "shared lock": "with d.lock('b', shared=True) as held: held.on_lost(print); held.lost.wait(0); held.check()",
    "semaphore": "with d.semaphore('c', 9): pass",
    "lease": "with d.lease() as lease: lease.lost.wait(0); lease.check()",
    "watch": "with d.watch(snapshot=True) as changes: changes.next()",
    "transact": "d.transact(lambda t: t.set('y', t.get('y', 0)))",
    "others": "d.increment('n'); d.expire('n', 9); d.ttl('n'); d.locks(); d.scan(limit=1); taken.locked()",
}

INTERRUPTING = {
    "lock": "with d.lock('l', shared=True) as held: held.on_lost(print)",
    "semaphore": "permits.acquire(); permits.held; permits.release()",
    "lease": "d.lease().revoke()",
    "loss": "d.break_lock('l', token=d.locks()[0].token) if d.lock('l').acquire() else None",
    "others": "d.increment('m'); d.expire('m', 9); d.locks(); d.scan(limit=1); d.watch(snapshot=True).close()",
}


@pytest.mark.parametrize("handler", INTERRUPTING)
def test_an_interruption_between_any_two_lines(tmp_path: Path, handler: str) -> None:
    """What coordinates may be interrupted between any two lines, of the package and of `threading`, by a handler that
    coordinates as well: both get their answers."""
    program = """
import sys, threading, replidict
path, handler, *calls = sys.argv[1:]
d = replidict.ReplicatedDict(path, options=replidict.Options(durability="process"), timeout=60)
d["x"] = 1
taken, permits = d.lock("taken"), d.semaphore("permits", 1000)
taken.acquire()
ours, seen = (replidict.__path__[0], threading.__file__), set()
handle = compile(handler, "handler", "exec")
def trace(frame, event, _):
    where = call, frame.f_code.co_filename, frame.f_lineno
    if event == "line" and where not in seen and where[1].startswith(ours):
        seen.add(where)
        exec(handle, dict(globals()))
    return trace
for call in calls:
    exec(call)
    sys.settrace(trace)
    try:
        exec(call)
    finally:
        sys.settrace(None)
taken.release()
d.close()
assert len(seen) > 1000, len(seen)
print("fine")
"""
    assert run(program, tmp_path / "d", INTERRUPTING[handler], *INTERRUPTED.values()) == "fine\n"


IN_THE_NODES_THREAD = {
    "lock": "d.lock('l').acquire()",
    "release": "with_lock.release()",
    "revoke": "with_lease.revoke()",
    "submit": "d.submit('s', 1); d.get('s'); with_lock.held; with_lease.remaining",
}


@pytest.mark.parametrize("finalizer", IN_THE_NODES_THREAD)
def test_a_finalizer_between_any_two_lines_of_the_nodes_thread(tmp_path: Path, finalizer: str) -> None:
    """Between any two lines in which the node's thread sees to leases and locks, a finalizer may acquire (it is
    refused), release and revoke (nothing is waited for): nothing hangs, and what was given back is free."""
    program = """
import sys, threading, replidict
path, finalizer = sys.argv[1], compile(sys.argv[2], "finalizer", "exec")
seen, locks, leases, errors = set(), [], [], []
names = ("node/held_leases.py", "node/lock_requests.py", "latch.py", "api/lock.py", "api/held_lock.py")
def trace(frame, event, _):
    if not frame.f_code.co_filename.endswith(names):
        return trace
    where = frame.f_code.co_filename, frame.f_lineno
    if event == "line" and where not in seen and locks and leases:
        seen.add(where)
        try:
            exec(finalizer, {"d": d, "with_lock": locks.pop(), "with_lease": leases.pop()})
        except replidict.ReplidictError as error:
            errors.append(error)
    return trace
threading.settrace(trace)
d = replidict.ReplicatedDict(path, options=replidict.Options(durability="process"), timeout=60)
threading.settrace(None)
for number in range(60):
    lock = d.lock(f"n{number}", shared=True)
    assert lock.acquire()
    leases.append(d.lease()), locks.append(lock)
    with d.lock("broken") as held:
        held.on_lost(len)
for number in range(10):
    lock = d.lock("broken")
    lock.acquire()
    d.break_lock("broken", token=lock.held.token)
    assert lock.held.lost.wait(60)
    d.lease().revoke()
d.close()
assert len(seen) > 30, seen
kinds = {type(error) for error in errors}
assert kinds <= ({replidict.NotCommitted} if "acquire" in sys.argv[2] else {replidict.LockLost}), errors
print("fine")
"""
    assert run(program, tmp_path / "d", IN_THE_NODES_THREAD[finalizer]) == "fine\n"


# -- the node's own thread ------------------------------------------------------------------------------------------


def in_the_nodes_thread(d: Dict, call: Callable[[], object]) -> object:
    """What a call gives or raises that is made in the node's own thread."""

    def attempt() -> object:
        try:
            return call()
        except ReplidictError as error:
            return error

    began = time.monotonic()
    said = d._host.node.call(attempt).result(PATIENCE)
    assert time.monotonic() - began < 5, "it waited for itself"
    return said


WAITING: dict[str, tuple[Callable[[Dict], object], type[ReplidictError]]] = {
    "set": (lambda d: d.set("k", 2), NotCommitted),
    "[]=": (lambda d: d.__setitem__("k", 2), NotCommitted),
    "update": (lambda d: d.update({"k": 2, "l": 2}), NotCommitted),
    "pop": (lambda d: d.pop("k"), NotCommitted),
    "clear": (lambda d: d.clear(), NotCommitted),
    "get": (lambda d: d.get("k", linearizable=True), ReplidictError),
    "barrier": (lambda d: d.barrier(), ReplidictError),
    "wait_ready": (lambda d: d.wait_ready(), ReplidictError),
    "members": (lambda d: d.members(), ReplidictError),
    "remove_peer": (lambda d: d.remove_peer("127.0.0.1:9"), NotCommitted),
    "transfer_leadership": (lambda d: d.transfer_leadership(), NotCommitted),
    "backup": (lambda d: d.backup("never-made"), ReplidictError),
    "future": (lambda d: d.submit("s", 1).result(), ReplidictError),
    "lock": (lambda d: d.lock("l").acquire(), NotCommitted),
    "lock, not blocking": (lambda d: d.lock("l").acquire(blocking=False), NotCommitted),
    "with lock": (lambda d: d.lock("l").__enter__(), NotCommitted),
    "semaphore": (lambda d: d.semaphore("s", 2).acquire(), NotCommitted),
    "locked": (lambda d: d.lock("l").locked(), ReplidictError),
    "locks": (lambda d: d.locks(), ReplidictError),
    "leader": (lambda d: d.leader("l"), ReplidictError),
    "break_lock": (lambda d: d.break_lock("l", token=1), NotCommitted),
    "lease": (lambda d: d.lease(), NotCommitted),
    "increment": (lambda d: d.increment("k"), NotCommitted),
    "expire": (lambda d: d.expire("k", 1), NotCommitted),
    "transact": (lambda d: d.transact(lambda t: t.__setitem__("k", 2)), NotCommitted),
    "watch": (lambda d: d.watch().next(), ReplidictError),
    "watch, for a while": (lambda d: d.watch().next(timeout=20), ReplidictError),
    "watch with snapshot": (lambda d: d.watch(snapshot=True), ReplidictError),
}


@pytest.mark.filterwarnings("ignore:.*was not closed:ResourceWarning")  # the watches whose next() is refused
@pytest.mark.parametrize("name", WAITING)
def test_the_nodes_own_thread_is_not_kept_waiting(tmp_path: Path, name: str) -> None:
    """What would wait for the node in its own thread is refused at once, changes nothing, and the node goes on."""
    call, kind = WAITING[name]
    mine, absent, alone = free_addresses(3)
    with (
        ReplicatedDict[Any, Any](tmp_path / "d", address=mine, peers=[absent]) as d,
        ReplicatedDict[Any, Any](tmp_path / "e", address=alone) as e,
    ):
        for stepped in (d, e):  # another node of the process may be one that the first one waits for
            error = in_the_nodes_thread(stepped, lambda: call(d))
            assert isinstance(error, kind) and "thread of a node" in str(error)
        assert dict(d) == {} and not Path("never-made").exists()
        assert in_the_nodes_thread(d, lambda: d.status().is_leader) is False


def test_the_nodes_own_thread_may_read_and_submit(tmp_path: Path) -> None:
    """In the node's own thread plain reads work, and so does a write that nobody waits for there."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d.update({"k": 1, "l": 2})
        reads = lambda: (d["k"], len(d), list(d), d.snapshot(), d.get("x"), d.status().keys)  # noqa: E731
        assert in_the_nodes_thread(d, reads) == (1, 2, ["k", "l"], {"k": 1, "l": 2}, None, 2)
        future = in_the_nodes_thread(d, lambda: d.submit("m", 3))
        assert isinstance(future, Future) and future.result(PATIENCE) == d.revision
        assert d["m"] == 3


def test_the_nodes_own_thread_does_not_wait_for_keys_in_order(tmp_path: Path) -> None:
    """A page that is read in the node's own thread, while another thread puts all keys in order, has its keys."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d.update({"b": 2, "a": 1})
        with consistent_reads._filling:
            assert in_the_nodes_thread(d, lambda: d.scan()) == [("a", 1), ("b", 2)]


def test_a_codec_that_writes_is_refused(tmp_path: Path) -> None:
    """A codec that uses the dict where the node compares values is refused there, and the node goes on."""
    errors: list[BaseException] = []

    class Codec:
        def encode(self, value: Any) -> bytes:
            return repr(value).encode()

        def decode(self, data: bytes) -> Any:
            if threading.current_thread().name == "replidict local":
                try:
                    d["seen"] = 1
                except ReplidictError as error:
                    errors.append(error)
            return data.decode().strip("'0")

    with ReplicatedDict[Any, Any](tmp_path / "d", codec=Codec()) as d:
        d["k"] = "1"
        assert d.compare_and_set("k", "01", "2")
        assert [type(error) for error in errors] and {type(error) for error in errors} == {NotCommitted}
        assert list(d) == ["k"]


def test_a_weak_references_callback_may_use_the_dict(tmp_path: Path) -> None:
    """The callback of a weak reference that runs in the node's own thread reads, and its write is refused."""
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        d["k"] = 1
        said: list[object] = []

        class Held:
            pass

        def gone(_: object) -> None:
            said.append(d["k"])
            try:
                d["k"] = 2
            except NotCommitted as error:
                said.append(type(error))

        held = [Held()]
        reference = weakref.ref(held[0], gone)
        in_the_nodes_thread(d, held.clear)
        assert said == [1, NotCommitted] and reference() is None


# -- logging --------------------------------------------------------------------------------------------------------


def test_a_logging_handler_may_keep_records_in_the_dict(tmp_path: Path) -> None:
    """A logging handler that writes to the dict costs nobody time, also while the node itself logs."""
    with cluster(tmp_path, timeout=PATIENCE) as nodes:
        kept: list[float] = []

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                began = time.monotonic()
                nodes[0]["log", record.created] = record.getMessage()
                kept.append(time.monotonic() - began)

        keep = Keep()
        logger = logging.getLogger("replidict")
        logger.addHandler(keep)
        level = logger.level
        logger.setLevel(logging.DEBUG)
        try:
            nodes[2].close()
            for number in range(50):
                logger.warning("line %d of the program", number)
                nodes[0]["x"] = number
            wait_until(lambda: any("no connection" in str(text) for text in nodes[0].values()), "its line is kept")
        finally:
            logger.setLevel(level)
            logger.removeHandler(keep)
        assert max(kept) < 5


def test_a_logging_handler_ends_nothing(tmp_path: Path) -> None:
    """Whatever a handler raises, SystemExit included, the records after that are handled, and the dict closes."""
    handled: list[str] = []

    class Leaving(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            handled.append(record.getMessage())
            raise SystemExit

    own, leaving = logging.getLogger("replidict"), Leaving()
    logger = logging_thread.Logger("replidict.test")
    own.addHandler(leaving)
    try:
        with ReplicatedDict[str, int](tmp_path) as d:
            written: Future[None] = Future()
            for text in ("one", "two"):
                d.submit("a", 1).add_done_callback(lambda _, text=text: logger.error(text))  # type: ignore[misc]
            d.submit("a", 1).add_done_callback(lambda _: written.set_result(None))
            written.result(30)
            wait_until(lambda: {"one", "two"} <= set(handled), "both are handled")
    finally:
        own.removeHandler(leaving)


def test_a_thread_whose_start_is_interrupted_can_be_started_again() -> None:
    """Ctrl-C at any line of a start leaves a thread that runs, or one that the next start begins; it runs once."""
    for point in range(100):
        runs: list[int] = []
        thread = OwnThread(lambda runs=runs: runs.append(1), "replidict test")  # type: ignore[misc]
        if not interrupted(point, thread.start):
            assert point > 5
            thread.join()
            return
        thread.start()
        assert thread.join(30) and runs == [1], f"after line {point}"


def test_a_node_does_not_wait_for_a_logging_handler(tmp_path: Path) -> None:
    """While a handler is held up, a node that logs goes on; its lines are written afterwards, with time and thread."""
    let_go = threading.Event()
    records: list[logging.LogRecord] = []

    class Held(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert let_go.wait(PATIENCE)
            records.append(record)

    held = Held()
    logger = logging.getLogger("replidict")
    logger.addHandler(held)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with ReplicatedDict[Any, Any](tmp_path / "d") as d:
            own = logging_thread.Logger("replidict.node.event_loop")
            before = time.time()
            d._host.node.call(lambda: own.info("a line of %s", "the node")).result(PATIENCE)
            d["k"] = 1
            after = time.time()
            let_go.set()
            wait_until(lambda: any(record.getMessage() == "a line of the node" for record in records), "it is written")
            (record,) = [each for each in records if each.getMessage() == "a line of the node"]
            assert before <= record.created <= after
            assert (record.threadName, record.funcName) == ("replidict local", "<lambda>")
            assert Path(record.pathname) == Path(__file__)
    finally:
        let_go.set()
        logger.setLevel(level)
        logger.removeHandler(held)


# -- futures --------------------------------------------------------------------------------------------------------


def test_a_callback_may_wait_for_another_future(tmp_path: Path) -> None:
    """A callback that waits for another future of the dict gets its result: futures need no thread to be resolved."""
    with ReplicatedDict[str, int](tmp_path / "d", timeout=PATIENCE) as d:
        found: list[int] = []
        done = threading.Event()

        def wait_for_another(_: object) -> None:
            found.append(d.submit("b", 2).result())
            done.set()

        d.submit("a", 1).add_done_callback(wait_for_another)
        assert done.wait(PATIENCE)
        assert found == [2]


def test_close_does_not_wait_for_ever_for_a_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that waits for what the closing thread holds does not keep `close` from returning."""
    monkeypatch.setattr(futures, "CALLBACKS_WITHIN", 0.1)
    lock = threading.Lock()
    waiting = threading.Event()
    d = ReplicatedDict[str, int](tmp_path / "d")

    def wait(_: object) -> None:
        waiting.set()
        with lock:
            pass

    with lock:
        d.submit("a", 1).add_done_callback(wait)
        assert waiting.wait(PATIENCE)
        d.close()
    assert d._host.futures._thread.join(PATIENCE)


# -- the end of the main thread, and of the program -----------------------------------------------------------------


def test_the_end_of_the_main_thread_stops_nothing(tmp_path: Path) -> None:
    """When the main thread has ended and others go on, a node joins that needs a snapshot, futures are resolved, and
    backups are made: nothing of this needs a thread that ends with it."""
    program = """
import sys, threading
from replidict import Options, ReplicatedDict
path, a, b = sys.argv[1:]
d = ReplicatedDict(path + "/a", address=a, options=Options(log_retain=10))
d.update({n: "x" * 100 for n in range(2000)})
for n in range(400): d[n] = n
def work():
    threading.main_thread().join()
    e = ReplicatedDict(path + "/b", address=b, join=a, timeout=60)
    while len(e) < 2000: e.barrier()
    e["x"] = 1
    d.submit("y", 1).result()
    d.backup(path + "/backup")
    e.close(); d.close()
    print("fine")
threading.Thread(target=work).start()
"""
    assert run(program, tmp_path, *free_addresses(2)) == "fine\n"


def test_functions_at_exit_find_the_dict_open(tmp_path: Path) -> None:
    """A function given to `atexit` can write to the dict, whether it was registered before or after the opening; what
    is not closed then is closed afterwards."""
    program = """
import atexit, sys, warnings
import replidict
warnings.simplefilter("ignore")
def save(name): d[name] = 1
atexit.register(save, "before")
d = replidict.ReplicatedDict(sys.argv[1])
atexit.register(save, "after")
atexit.register(lambda: d.submit("future", 1).result())
"""
    run(program, tmp_path / "d")
    with ReplicatedDict[Any, Any](tmp_path / "d") as d:
        assert set(d) == {"before", "after", "future"}


# -- the working directory ------------------------------------------------------------------------------------------


def test_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dict opened by a relative path goes on where it is when the program changes its working directory: snapshots
    for others as well as backups."""
    monkeypatch.chdir(tmp_path)
    mine, other = free_addresses(2)
    with ReplicatedDict[Any, Any]("data", address=mine, options=Options(log_retain=10)) as d:
        d.update(dict.fromkeys(range(2000), "x" * 100))
        for number in range(400):
            d[number] = number
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        made = d.backup("backup")
        assert made.path == tmp_path / "elsewhere" / "backup" and made.path.exists()
        with ReplicatedDict[Any, Any](tmp_path / "b", address=other, join=mine, timeout=PATIENCE) as e:
            wait_until(lambda: len(e) == 2000, "it has the snapshot")
            e["x"] = 1
        assert str(tmp_path / "data") in repr(d)
    assert sorted(each.name for each in (tmp_path / "elsewhere").iterdir()) == ["backup"]


# -- frozen time ----------------------------------------------------------------------------------------------------


def test_frozen_time_freezes_no_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tests freeze `time.monotonic` and `time.time`, calls without a quorum still end within their timeouts."""
    addresses = free_addresses(3)
    for name in ("monotonic", "time", "perf_counter"):
        frozen = getattr(time, name)()
        monkeypatch.setattr(time, name, lambda frozen=frozen: frozen)
    path = tmp_path / "d"
    calls: list[Callable[[Dict], object]] = [
        lambda d: d.set("k", 1),
        lambda d: d.barrier(),
        lambda d: d.update({"k": 1}),
        lambda d: d.submit("k", 1).result(),
        lambda d: d.remove_peer(addresses[1]),
        lambda d: d.transfer_leadership(),
    ]
    with ReplicatedDict[Any, Any](path, address=addresses[0], peers=addresses[1:], timeout=0.3) as d:
        for call in calls:
            with pytest.raises(ReplidictError):
                call(d)
        assert d.members()


# -- what this rests on ---------------------------------------------------------------------------------------------


def test_a_latch_wakes_all_who_wait() -> None:
    """A latch wakes everybody who waits, at once those who come later, and says so when a wait was too short."""
    latch = Latch()
    assert not latch.wait(0) and not latch.wait(0.001)
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(latch.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(latch._waiting) == 5, "all wait")
    latch.set()
    for thread in threads:
        thread.join(PATIENCE)
    latch.set()
    assert woken == [True] * 5 and latch.wait(0)


def test_an_own_thread_is_started_once_and_joined() -> None:
    """A thread of the package begins once, however often it is started, and joining one that never began is no wait."""
    ran: list[int] = []
    thread = OwnThread(lambda: ran.append(1), "replidict test")
    assert thread.join()
    thread.start()
    thread.start()
    assert thread.join(PATIENCE) and ran == [1]

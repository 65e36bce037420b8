"""A process with a client in it, which does what it is told: `python -m benchmarks.child KIND CONFIG`.

Lines of JSON come in, lines of JSON go out; `processes.py` is the other end. When the input ends (whoever started it
is gone), the process ends at once.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, sleep
from typing import Any

from benchmarks.measure import mean_microseconds, run_coroutines, run_futures, run_threads, summary
from benchmarks.store import Store, Value

SAMPLE = 4096
"""Keys that one thread goes through again and again."""

TEXT = "a short string"


def open_store(kind: str, config: dict[str, Any]) -> Store:
    """Each imports its own package only: what one system loads must not weigh on another."""
    match kind:
        case "replidict":
            from benchmarks.node import Replidict

            return Replidict(config)
        case "stock":
            from benchmarks.stock_pysyncobj import Stock

            return Stock(config)
        case "etcd":
            from benchmarks.etcd import Etcd

            return Etcd(config)
        case "diskcache":
            from benchmarks.disk_cache import DiskCache

            return DiskCache(config)
    raise ValueError(f"no such system: {kind}")


def key_of(number: int) -> str:
    return f"key-{number:08d}"


class Jobs:
    """What a child can be told to do: each public method is one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stop = threading.Event()
        self._hogs: list[threading.Thread] = []
        self._following = threading.Event()
        self._watches: list[Any] = []

    def status(self) -> dict[str, Any]:
        return {**self._store.status(), "rss": resident_bytes()}

    def writes(self, *, threads: int, seconds: float, value_bytes: int = 100, keys: int = 1000) -> dict[str, Any]:
        """So many threads that write values to keys drawn from so many."""
        store, value = self._store, os.urandom(value_bytes)
        return run_threads(lambda key: store.set(key, value), samples(threads, keys), seconds)

    def submits(self, *, under_way: int, seconds: float, value_bytes: int = 100, keys: int = 1000) -> dict[str, Any]:
        """One thread that has so many writes under way."""
        store: Any = self._store  # not every system has futures
        value = os.urandom(value_bytes)
        return run_futures(lambda key: store.submit(key, value), samples(1, keys)[0], seconds, under_way)

    def coroutines(self, *, count: int, seconds: float, value_bytes: int = 100, keys: int = 1000) -> dict[str, Any]:
        """So many coroutines in one event loop that write values to keys drawn from so many."""
        store: Any = self._store  # not every system has coroutines
        a, value = store.dict.aio, os.urandom(value_bytes)
        few = samples(min(count, 64), keys)  # of a thousand the keys alone would take much memory
        return run_coroutines(lambda key: a.set(key, value), [few[each % 64] for each in range(count)], seconds)

    def reads(self, *, threads: int, seconds: float, kind: str, keys: int = 1000) -> dict[str, Any]:
        operation = self._store.get if kind == "local" else self._store.strong_get
        return run_threads(operation, samples(threads, keys), seconds)

    def mean_get(self, *, keys: int = 1000, rounds: int = 200) -> float:
        """Microseconds for one local get within a plain loop."""
        return mean_microseconds(self._store.get, samples(1, keys)[0][:keys], rounds)

    def fill(self, *, keys: int = 1000) -> None:
        """The short strings that the reads read."""
        self._store.update({key_of(number): TEXT for number in range(keys)})

    def load(self, *, keys: int, piece: int, threads: int = 1, value_bytes: int = 10, first: int = 0) -> dict[str, Any]:
        """Store keys in pieces, from so many threads; the pairs are made before the clock runs."""
        value: Value = os.urandom(value_bytes)
        pieces = [
            {key_of(number): value for number in range(start, min(start + piece, first + keys))}
            for start in range(first, first + keys, piece)
        ]
        update = self._store.update
        start = perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(update, pieces):
                pass
        seconds = perf_counter() - start
        return {"entries per s": keys / seconds, "seconds": seconds}

    def advance(self, *, entries: int, threads: int, seconds: float) -> int:
        """Write one at a time, from so many threads, until the log is so much longer; returns how much it is."""
        store, began = self._store, self._store.status()["commit_index"]
        reached = threading.Event()

        def watch() -> None:
            while not reached.wait(0.02):
                if store.status()["commit_index"] - began >= entries:
                    reached.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        run_threads(lambda key: store.set(key, b"x"), samples(threads, 1000), seconds, reached)
        reached.set()
        watcher.join()
        return int(store.status()["commit_index"] - began)

    def first_write(self, *, since: float, patience: float, threads: int = 4) -> float:
        """Seconds from this moment until a write that began after it is acknowledged here."""
        store, done = self._store, threading.Event()
        acknowledged: list[float] = []

        def insist() -> None:
            while not done.wait(0.005) and perf_counter() < since + patience:
                try:
                    store.try_set("first", b"x")
                except Exception:  # noqa: BLE001 -- there is no leader yet: ask again
                    continue
                acknowledged.append(perf_counter())
                done.set()

        insisting = [threading.Thread(target=insist) for _ in range(threads)]
        for each in insisting:
            each.start()
        for each in insisting:
            each.join()
        return min(acknowledged) - since if acknowledged else float("inf")

    def anatomy(self, *, seconds: float) -> dict[str, float]:
        from benchmarks.anatomy import anatomy  # loads replidict, which must not weigh on the others

        return anatomy(self._store.set, key_of(0), seconds)

    def barrier(self) -> None:
        self._store.barrier()

    def stamp(self, *, seconds: float) -> int:
        """Write the time, again and again, one write after the other; returns how many there were."""
        end, count = perf_counter() + seconds, 0
        while perf_counter() < end:
            self._store.set("stamp", repr(perf_counter()).encode())
            count += 1
        self._store.set("stamp", b"over")
        return count

    def told(self) -> dict[str, float]:
        """Watch the times that another process of this machine writes; what the way here took them."""
        store: Any = self._store  # not every system can be watched
        latencies = []
        values = store.follow("stamp")
        next(values)
        self._following.set()
        for value in values:
            if value == b"over":
                break
            latencies.append(perf_counter() - float(value))
        values.close()
        self._following.clear()
        return summary(latencies, sum(latencies))

    def following(self) -> bool:
        """Wait until `told` watches."""
        return self._following.wait(30)

    def watchers(self, *, count: int) -> None:
        """Have so many watches of single keys open, none of which is written."""
        store: Any = self._store
        while len(self._watches) > count:
            self._watches.pop().close()
        while len(self._watches) < count:
            watch = store.dict.watch(f"quiet-{len(self._watches)}")
            watch.next(0)
            self._watches.append(watch)

    def drain(self, *, keys: int) -> float:
        """Changes per second that one watcher reads, when they are all there."""
        store: Any = self._store
        with store.dict.watch() as watch:
            for number in range(keys):
                store.dict.submit(key_of(number % 1000), b"x" * 100)
            store.dict.set("last", b"")  # returns behind all others
            start, count = perf_counter(), 0
            while watch.next(0) is not None:
                count += 1
            return count / (perf_counter() - start)

    def never_read(self) -> None:
        """Have a watch of everything that is never read."""
        store: Any = self._store
        self._watches.append(store.dict.watch())

    def hand_overs(self, *, rounds: int, hold: float) -> list[tuple[float, float]]:
        """Acquire a lock that another process wants too, and release it, so many times: when it was had, and when the
        release began. Held for a while each time, so that the other one waits for it by then."""
        store: Any = self._store
        lock, found = store.lock("baton"), []
        for _ in range(rounds):
            lock.acquire()
            had = perf_counter()
            sleep(hold)
            found.append((had, perf_counter()))
            lock.release()
        return found

    def queue(self, *, waiters: int) -> dict[str, float]:
        """Have so many threads wait for a lock that is held; what it takes until each has had it, from its release."""
        store: Any = self._store
        first, waiting = store.lock("queue"), [store.lock("queue") for _ in range(waiters)]
        first.acquire()

        def take_turn(lock: Any) -> None:
            lock.acquire()
            lock.release()

        threads = [threading.Thread(target=take_turn, args=(lock,)) for lock in waiting]
        for thread in threads:
            thread.start()
        sleep(2.0)  # until all wait: etcd does not say how many do
        began, start = store.status().get("commit_index", 0), perf_counter()
        first.release()
        for thread in threads:
            thread.join()
        took = perf_counter() - start
        found = {"ms a hand-over": took / waiters * 1e3}
        if began:
            found["commands a hand-over"] = (store.status()["commit_index"] - began) / waiters
        return found

    def clear_numbers(self, *, keys: int) -> None:
        """Have so many keys hold the number zero."""
        for start in range(0, keys, 1000):
            self._store.update({key_of(number): b"0" for number in range(start, min(start + 1000, keys))})

    def transactions(self, *, threads: int, seconds: float, keys: int) -> dict[str, Any]:
        """So many threads that move one from a number to another, of so many; and in how many percent of the runs of
        its body there was a conflict."""
        store: Any = self._store
        runs: list[int] = []  # appended to by all threads

        def move(key: str) -> None:
            other = key_of((int(key[4:]) + 1) % keys)
            runs.append(store.transact((key, other), lambda numbers: [numbers[0] - 1, numbers[1] + 1]))

        found = run_threads(move, samples(threads, keys), seconds)
        return {**found, "conflicts %": (sum(runs) - len(runs)) / max(sum(runs), 1) * 100}

    def sum_of_numbers(self, *, keys: int) -> int:
        """What so many numbers hold together."""
        store: Any = self._store
        return sum(int(store.strong_get(key_of(number))) for number in range(keys))

    def increments(self, *, threads: int, seconds: float) -> dict[str, Any]:
        """So many threads that increment one number."""
        store: Any = self._store
        return run_threads(lambda _: store.dict.increment("number"), samples(threads, 1), seconds)

    def hog(self, *, threads: int) -> None:
        """Start pure-Python busy loops in this process, until `calm`."""

        def busy() -> None:
            while not self._stop.is_set():
                sum(range(1000))

        self._hogs = [threading.Thread(target=busy, daemon=True) for _ in range(threads)]
        for each in self._hogs:
            each.start()

    def calm(self) -> None:
        self._stop.set()
        for each in self._hogs:
            each.join()
        self._stop.clear()


def first_read(store: Store, key: str) -> object:
    """The value, as soon as it can be had: a server may still be starting when its client is there."""
    deadline = perf_counter() + 60
    while True:
        try:
            return store.get(key)
        except Exception:
            if perf_counter() > deadline:
                raise
            sleep(0.005)


def samples(threads: int, keys: int) -> list[list[str]]:
    """For each thread the keys it goes through; the same in every run."""
    return [
        [key_of(each) for each in random.Random(number).choices(range(keys), k=SAMPLE)] for number in range(threads)
    ]


def resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def main() -> None:
    kind, config = sys.argv[1], json.loads(sys.argv[2])
    logging.basicConfig(level=logging.CRITICAL)  # that a leader was lost is what is measured, not news
    mutex = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with mutex:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()

    start = perf_counter()
    store = open_store(kind, config)
    opened = perf_counter() - start
    greeting: dict[str, Any] = {"opened": opened}
    if "first_key" in config:
        found = first_read(store, config["first_key"])
        greeting |= {"first_read": perf_counter() - start, "found": found is not None}
    jobs = Jobs(store)
    say(greeting)

    def perform(request: dict[str, Any]) -> None:
        try:
            value = getattr(jobs, request["job"])(**request["arguments"])
        except Exception as error:  # noqa: BLE001 -- told to the parent, which stops
            say({"id": request["id"], "error": f"{type(error).__name__}: {error}"})
        else:
            say({"id": request["id"], "value": value})

    for line in sys.stdin:
        threading.Thread(target=perform, args=(json.loads(line),), daemon=True).start()
    # Not sys.exit: that would wait for clients that wait for a cluster which is gone.
    os._exit(0)


if __name__ == "__main__":
    main()

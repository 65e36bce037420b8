"""Workers that die: gunicorn with several workers on each of three hosts, under load, while the worker that runs the
node is killed every few seconds on each of them.

The hosts are directories of this machine. A violation is an acknowledged write that is lost or applied twice, a worker
that does not read its own writes, goes back, or is told something twice or not at all, hosts that differ, a worker that
was not served again in time after a kill, or anything that is left at the end: a process, a socket, a lock.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from replidict import ReplicatedDict
from replidict.transport import unix
from tests.campaigns.account import Account
from tests.clusters import credentials, wait_until
from tests.processes import ROOT, own_addresses
from tests.share_support import running

PATIENCE = 60.0
"""Seconds for what takes a moment on a machine that has nothing else to do."""

UNKNOWN = ("Died", "OutcomeUnknown", "LockLost", "RuntimeError")
"""Errors that say nothing about whether a write was applied, or nothing about all writes of a request."""


class Told(Account):
    """What the clients were told."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, list[int]] = {"n": [], "m": []}
        self.unknown: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.told: dict[int, int] = {}
        self.lost_history: dict[int, int] = {}
        self.served: dict[int, list[tuple[int, float, float]]] = {}
        """For each host: by which process, when it was asked, and when it answered."""


class HostOfWorkers:
    """One host: gunicorn with some workers, and a directory."""

    def __init__(self, root: Path, number: int, address: str, peers: list[str], http_address: str) -> None:
        self.number, self.path, self.address = number, root / f"h{number}", http_address
        self.log = root / f"log{number}"
        self.config = {"path": str(self.path), "address": address, "peers": peers, **credentials()}
        self._server: subprocess.Popen[bytes] | None = None
        self.pids: set[int] = set()
        """Workers that have served something."""

    def start(self, workers: int) -> None:
        """Start gunicorn."""
        config = {**self.config, "options": {"log_retain": 500}}  # short: so those that lag are sent the state
        command = [sys.executable, "-m", "gunicorn", "--workers", str(workers), "--bind", self.address]
        with self.log.open("wb") as log:
            self._server = subprocess.Popen(
                [*command, "tests.worker_application:app"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "SHARED_DICT": json.dumps(config)},
            )

    def ask(self, path: str, **arguments: object) -> dict[str, Any]:
        """What a worker answers; `error` is "Died" if it did not."""
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            connection.request("GET", f"{path}?{urlencode(arguments)}")
            said: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return {"error": "Died"}
        finally:
            connection.close()
        self.pids.add(said["pid"])
        return said

    def kill_who_runs_the_node(self) -> int:
        """Kill -9; returns which process it was."""
        found: list[int] = []

        def somebody() -> bool:
            found[:] = [pid] if (pid := running(self.path)) else []
            return bool(found)

        wait_until(somebody, f"a worker of host {self.number} runs the node", PATIENCE)
        assert self._server is not None and _parent(found[0]) == self._server.pid, "only workers of our own are killed"
        os.kill(found[0], signal.SIGKILL)
        return found[0]

    def end(self) -> list[str]:
        """End gunicorn as its users do, and say what is left."""
        assert self._server is not None
        self._server.terminate()
        left = []
        try:
            if status := self._server.wait(PATIENCE):
                left.append(f"host {self.number} ended with status {status}")
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
            left.append(f"host {self.number} did not end within {PATIENCE:g} s")
        left += [f"process {pid} of host {self.number} is left" for pid in self.pids if _alive(pid)]
        left += [f"{path} is left" for path in self.path.glob(f"{unix.NAME}*")]
        return left

    def close(self) -> None:
        """Whatever happened, no process is left."""
        if self._server is not None and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Clients:
    """The load: on each host some that add, some that count, one that counts under a lock."""

    def __init__(self, hosts: list[HostOfWorkers], account: Told, each: int, pause: float) -> None:
        self._account, self._pause = account, pause
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(host, number), daemon=True)
            for host in hosts
            for number in range(each)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the load; every request has its answer then."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive(), "every request ends"

    def _ask(self, host: HostOfWorkers, client: int) -> None:
        numbers = count(1)
        while not self._stopping.wait(self._pause):
            number = next(numbers)
            key = f"a{host.number}.{client}-{number}"
            kind = "/locked" if client == 0 else "/count" if number % 2 else "/add"
            arguments = {"key": key, "value": number} if kind == "/add" else {"key": "m" if client == 0 else "n"}
            begun = time.monotonic()
            said = host.ask(kind, **arguments)
            ended = time.monotonic()
            with self._account.mutex:
                if kind == "/add":
                    self._note_added(key, number, said)
                else:
                    self._note_counted(str(arguments["key"]), said)
                self._note_served(host, begun, ended, said)

    def _note_added(self, key: str, number: int, said: dict[str, Any]) -> None:
        account = self._account
        if said.get("value") is True:
            account.added[key] = number
        elif "error" not in said:
            account.violations.append(f"{key} was there the first time: it was added twice")
        elif said["error"] in UNKNOWN:
            account.maybe_added[key] = number

    def _note_counted(self, key: str, said: dict[str, Any]) -> None:
        if "error" not in said:
            if said["value"] is not None:
                self._account.totals[key].append(said["value"])
        elif said["error"] in UNKNOWN:
            self._account.unknown[key] += 1

    def _note_served(self, host: HostOfWorkers, begun: float, ended: float, said: dict[str, Any]) -> None:
        account = self._account
        if "pid" in said:
            account.told[said["pid"]], account.lost_history[said["pid"]] = said["told"], said["lost"]
            account.violations += said["wrong"]
        if "error" not in said:
            account.served.setdefault(host.number, []).append((said["pid"], begun, ended))
        else:
            account.errors[said["error"]] += 1
            if said["error"] not in (*UNKNOWN, "NotCommitted"):
                account.violations.append(f"{said['error']}: {said['text']}")


@dataclass(frozen=True)
class Kill:
    """One worker that was killed, and when."""

    host: int
    pid: int
    at: float


def served_again(account: Told, kill: Kill, kills: list[Kill], every: float) -> list[float]:
    """For each worker that served the host before, and is not dead: seconds until it answered what it was asked
    afterwards, or was killed itself."""
    served = account.served.get(kill.host, [])
    died = {each.pid: each.at for each in kills}
    before = {pid for pid, _, ended in served if kill.at - every <= ended < kill.at <= died.get(pid, inf)} - {kill.pid}
    first: dict[int, float] = {}
    for pid, begun, ended in served:
        if begun >= kill.at:
            first[pid] = min(first.get(pid, inf), ended - kill.at)
    return [first.get(pid, died.get(pid, inf) - kill.at) for pid in before]


@contextmanager
def hosts_of_workers(root: Path, workers: int) -> Iterator[list[HostOfWorkers]]:
    """Three hosts that serve; no process is left in any case."""
    addresses, http_addresses = own_addresses(3), own_addresses(3)
    with ExitStack() as stack:
        hosts = []
        for number, address in enumerate(addresses):
            peers = [each for each in addresses if each != address]
            hosts.append(HostOfWorkers(root, number, address, peers, http_addresses[number]))
            stack.callback(hosts[-1].close)
            hosts[-1].start(workers)
        try:
            for host in hosts:
                wait_until(lambda host=host: "value" in host.ask("/held"), f"host {host.number} serves", PATIENCE)  # type: ignore[misc]
            yield hosts
        except BaseException:
            for host in hosts:
                print(host.log.read_text()[-5000:], file=sys.stderr)
            raise


def run(
    root: Path,
    *,
    seconds: float,
    workers: int = 4,
    every: float = 5.0,
    within: float = 3.0,
    clients: int = 6,
    pause: float = 0.05,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """One campaign: the summary."""
    account, kills = Told(), list[Kill]()
    with hosts_of_workers(root, workers) as hosts:
        load = Clients(hosts, account, clients, pause)
        begun = time.monotonic()
        time.sleep(every / 2)
        while (now := time.monotonic()) - begun < seconds - every / 2:
            host = hosts[len(kills) % len(hosts)]
            kills.append(Kill(host.number, host.kill_who_runs_the_node(), time.monotonic()))
            say(f"{now - begun:6.1f} s  host {host.number}: killed process {kills[-1].pid}, which ran the node")
            time.sleep(max(begun + every / 2 + len(kills) * every / len(hosts) - time.monotonic(), 0.0))
        time.sleep(every)
        say(f"{time.monotonic() - begun:6.1f} s  the load ends")
        load.stop()
        say(f"{time.monotonic() - begun:6.1f} s  every request has its answer")
        # The locks of those that were killed end with their ttl, of two seconds.
        wait_until(lambda: hosts[0].ask("/held").get("value") == 0, "no lock is held and no lease is open", PATIENCE)
        say(f"{time.monotonic() - begun:6.1f} s  nothing is held")
        for host in hosts:
            account.violations += host.end()
        say(f"{time.monotonic() - begun:6.1f} s  all have ended")
        content = final(hosts, account)
    return summary(account, kills, content, every, within)


def final(hosts: list[HostOfWorkers], account: Told) -> dict[str, Any]:
    """What the hosts hold when all workers are gone, as nodes of this process."""
    with ExitStack() as stack:
        dicts = [stack.enter_context(ReplicatedDict[str, Any](**host.config, timeout=PATIENCE)) for host in hosts]
        for d in dicts:
            d.barrier()
            if d.locks() or d.status().leases:
                account.violated(f"locks or leases are left: {d.locks()}, {d.status().leases}")
        contents = [list(d.items()) for d in dicts]
    if any(content != contents[0] for content in contents):
        account.violated("the hosts differ")
    return dict(contents[0])


def summary(account: Told, kills: list[Kill], content: dict[str, Any], every: float, within: float) -> dict[str, Any]:
    """The account, as JSON."""
    lost = account.lost(content)
    counters = {}
    for key, totals in account.totals.items():
        counters[key] = account.adds_up(key, content.get(key, 0), len(totals), account.unknown[key])
        if len(set(totals)) < len(totals):
            account.violated(f"{key} had a value twice: {counters[key]}")
    again = []
    for kill in kills:
        again += [(seconds, kill) for seconds in served_again(account, kill, kills, every)]
    for seconds, kill in again:
        if seconds > within:
            account.violated(f"a worker of host {kill.host} was served {seconds:.2f} s after the kill of {kill.pid}")
    times = sorted(seconds for seconds, _ in again)
    return {
        "kills": len(kills),
        "requests_answered": sum(map(len, account.served.values())),
        "added_and_kept": len(account.added) - len(lost),
        "lost": len(lost),
        "counters": counters,
        "errors": dict(account.errors),
        "told": sum(account.told.values()),
        "watches_begun_anew": sum(account.lost_history.values()),
        "served_again": {"median": round(median(times), 3), "p90": round(times[int(len(times) * 0.9)], 3),
                         "most": round(times[-1], 3)} if times else {},
        "violations": account.violations[:20],
    }  # fmt: skip

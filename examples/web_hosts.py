"""Three hosts with four workers each of the service in `web_service.py`, started by one command. The hosts are ports
and directories of this machine. All have the same settings and count together; the worker that runs the job is killed.

    python examples/web_hosts.py [WORKERS]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/web_hosts.py`

from examples.demo import free_addresses

ROOT = Path(__file__).parent.parent
REQUESTS = 60
PATIENCE = 60.0  # seconds


class Host:
    """The service, as it is started on one host, but without credentials: this is loopback."""

    def __init__(self, directory: str, workers: int, addresses: list[str], address: str, web: str) -> None:
        peers = [each for each in addresses if each != address]
        arguments = {"path": f"{directory}/{address}", "address": address, "peers": peers}
        name, _, port = web.rpartition(":")
        command = [sys.executable, "-m", "uvicorn", "--workers", str(workers), "--host", name, "--port", port]
        self._log = Path(directory, f"{address}.log")
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [*command, "--app-dir", str(ROOT), "examples.web_service:app"],
                env=os.environ | {"SERVICE": json.dumps(arguments)},
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this program, which ends the hosts in order
            )

    def end(self) -> None:
        self._server.terminate()

    def wait(self) -> None:
        self._server.wait()

    def told(self) -> str:
        """What it has logged."""
        return self._log.read_text()


def ask(web: str, method: str, path: str, body: object = None) -> Any:
    """What a worker of the host answers. Another one is asked if it died before it did."""
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = HTTPConnection(web, timeout=PATIENCE)
        try:
            connection.request(method, path, json.dumps(body))
            return json.loads(connection.getresponse().read())
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{web} does not serve: {error}") from error
            time.sleep(0.05)
        finally:
            connection.close()


def wait_until(web: str, path: str, wanted: Any) -> Any:
    """Ask a host until its answer is as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not wanted(answer := ask(web, "GET", path)):
        if time.monotonic() > deadline:
            raise SystemExit(f"{web}{path} still says {answer}")
        time.sleep(0.05)
    return answer


def tell(webs: list[str]) -> None:
    ask(webs[0], "PUT", "/settings/greeting", "hello")
    for web in webs:
        print(f"{web} has", wait_until(web, "/settings", lambda found: found))
    first = wait_until(webs[0], "/job", lambda found: found["pid"] and found["done"])
    print(f"process {first['pid']} runs the job, and is killed")
    os.kill(first["pid"], signal.SIGKILL)
    answers = [ask(webs[number % len(webs)], "POST", "/count") for number in range(REQUESTS)]
    then = wait_until(webs[0], "/job", lambda found: found["pid"] not in (None, first["pid"]))
    wait_until(webs[0], "/job", lambda found: found["done"] > then["done"])
    print(f"process {then['pid']} goes on with it")
    processes = {answer["pid"] for answer in answers}
    total = max(answer["total"] for answer in answers)
    print(f"{len(answers)} requests, counted {total} times, by {len(processes)} processes of {len(webs)} hosts")


def main(workers: int = 4) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    *addresses, first, second, third = free_addresses(6)
    webs = [first, second, third]
    with TemporaryDirectory(prefix="replidict-web-") as directory:
        hosts: list[Host] = []
        try:
            for address, web in zip(addresses, webs, strict=True):
                hosts.append(Host(directory, workers, addresses, address, web))
            tell(webs)
        except BaseException:
            print(*(host.told() for host in hosts))
            raise
        finally:
            for host in hosts:
                host.end()
            for host in hosts:
                host.wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""What runs in the processes that `processes` starts: a node, or the proxies between nodes.

    python -m tests.process_child node CONFIG
    python -m tests.process_child network PAIRS

Requests come as lines of JSON on the standard input, answers go out as lines on the standard output; the end of the
input is the end. A node's file is watched: the process can be told to die at a chosen step of what it does with it
(`Scissors`), and it notes how much of its write-ahead log is synced (`Synced`), so that a test can take away the rest.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from replidict import Change, Options, ReplicatedDict
from replidict.errors import ReplidictError
from replidict.machine import commands as cmd
from replidict.security import split_address
from replidict.server.open_node import Host
from replidict.storage.directory import FILE_NAME

THREADS = 16  # operations under way in one node at a time


class Scissors:
    """Kills this process at a chosen step of what it does with its file.

    The steps are regular expressions for SQL statements (or FSYNC and RENAME with the file's name), to be met in this
    order; the process dies before the last one, or after it if the list ends with "after".
    """

    def __init__(self) -> None:
        self._steps: list[str] = []
        self._after = False

    def arm(self, steps: list[str]) -> None:
        """Die at these steps."""
        self._after = steps[-1] == "after"
        self._steps = steps[:-1] if self._after else list(steps)

    def at(self, statement: str, *, after: bool = False) -> None:
        """This is about to be done, or done."""
        if not self._steps or after != (self._after and len(self._steps) == 1):
            return
        if re.match(self._steps[0], " ".join(statement.split())):
            if len(self._steps) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            del self._steps[0]


scissors = Scissors()


class Synced:
    """Notes in the file `synced` up to where the write-ahead log was written when the last commit returned."""

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._file = -1
        self._salts = b""
        self._frames = 0

    def watch(self, directory: str) -> None:
        """Commits from now on are to this directory's file."""
        self._directory = Path(directory)

    def note(self) -> None:
        """A commit has returned."""
        if self._directory is None or not (self._directory / f"{FILE_NAME}-wal").exists():
            return
        with (self._directory / f"{FILE_NAME}-wal").open("rb") as wal:
            header = wal.read(32)
            if header[16:24] != self._salts:
                self._salts, self._frames = header[16:24], 0
            (page_bytes,) = struct.unpack_from(">I", header, 8)
            while True:
                wal.seek(32 + self._frames * (24 + page_bytes))
                if wal.read(24)[8:16] != self._salts:
                    break
                self._frames += 1
        if self._file < 0:
            self._file = os.open(self._directory / "synced", os.O_WRONLY | os.O_CREAT)
        os.pwrite(self._file, self._salts + struct.pack("<2I", self._frames, page_bytes), 0)


synced = Synced()


class CuttingConnection(sqlite3.Connection):
    """A connection that shows each statement to the scissors, and notes how far its file is known to be synced."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        scissors.at(sql)
        cursor = super().execute(sql, *args)
        if sql == "COMMIT":
            synced.note()
        scissors.at(sql, after=True)
        return cursor


def _watch_files() -> None:
    """Put the scissors where this process touches its files."""
    connect, fsync, rename = sqlite3.connect, os.fsync, os.rename

    def cutting_connect(*args: Any, **kwargs: Any) -> Any:
        return connect(*args, **{"factory": CuttingConnection, **kwargs})

    def cutting_fsync(descriptor: int) -> None:
        name = f"FSYNC {os.readlink(f'/proc/self/fd/{descriptor}')}"
        scissors.at(name)
        fsync(descriptor)
        scissors.at(name, after=True)

    def cutting_rename(source: Any, target: Any, **kwargs: Any) -> None:
        scissors.at(f"RENAME {source}")
        rename(source, target, **kwargs)
        scissors.at(f"RENAME {source}", after=True)

    sqlite3.connect = cutting_connect
    setattr(os, "fsync", cutting_fsync)  # noqa: B010 -- not quite the type of the original
    setattr(os, "rename", cutting_rename)  # noqa: B010


def _call_through_proxies(via: dict[str, str]) -> None:
    dialing, probing = (import_module(f"replidict.transport.{name}") for name in ("dialing", "probing"))
    direct = vars(dialing)["dial"]
    fronts = {split_address(called): split_address(front) for called, front in via.items()}

    def dial(target: Any) -> Any:
        family, (host, port, *rest) = target
        return direct((family, (*fronts.get((host, port), (host, port)), *rest)))

    for module in (dialing, probing):
        setattr(module, "dial", dial)  # noqa: B010 -- no name that a type checker knows to be changeable


class _Lines:
    """Answers, one line each, from any thread."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()

    def put(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, default=list).encode() + b"\n"
        with self._mutex:
            os.write(1, line) if len(line) < 4096 else sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


class Watched:
    """A watcher of everything: what it makes of the changes, and a checksum of each revision."""

    def __init__(self, opened: ReplicatedDict[Any, Any]) -> None:
        self._dict = opened
        self._watch = opened.watch(snapshot=True, resync=True)
        self._state: dict[Any, Any] = {}
        self._told: dict[int, int] = {}
        self._wrong: list[str] = []
        self._last = -1
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            for change in self._watch:
                self._take(change)
        except ReplidictError:
            pass  # the dict is closed

    def _take(self, change: Change[Any, Any]) -> None:
        if change.kind == "snapshot":
            self._state.clear()
        elif change.revision != self._last + 1:
            self._wrong.append(f"revision {change.revision} follows {self._last}")
        for event in change.events:
            if change.kind == "changes" and self._state.get(event.key) != event.previous:
                self._wrong.append(f"{event} comes after {self._state.get(event.key)!r}")
            if event.kind == "set":
                self._state[event.key] = event.value
            else:
                del self._state[event.key]
        if change.kind == "changes":
            self._told[change.revision] = zlib.crc32(repr(change.events).encode())
        self._last = change.revision

    def account(self) -> dict[str, Any]:
        """What is wrong, and what was told, once all that is applied was."""
        deadline = time.monotonic() + 30
        while self._last < self._dict.revision and time.monotonic() < deadline:
            time.sleep(0.01)
        held = self._dict.snapshot()
        wrong = self._wrong[:5] + ([] if held == self._state else [f"it has {len(self._state)} keys, not {len(held)}"])
        return {"wrong": wrong, "told": list(self._told.items())}


def run_node(config: dict[str, Any]) -> None:
    """A node: requests in, answers out, until the input ends."""
    if config["via"]:
        _call_through_proxies(config["via"])
    _watch_files()
    synced.watch(config["path"])
    if config["cut"]:
        scissors.arm(config["cut"])
    lines = _Lines()
    try:
        opened: ReplicatedDict[Any, Any] = ReplicatedDict(
            config["path"], address=config["address"], peers=config["peers"], join=config["join"],
            timeout=config["timeout"], options=Options(**config["options"]),
        )  # fmt: skip
    except (ReplidictError, ValueError) as error:
        lines.put({"failed": type(error).__name__, "message": str(error)})
        return

    watched: list[Watched] = []

    def run_function(module: str, name: str, *args: Any) -> Any:
        return getattr(import_module(module), name)(opened, *args)

    def perform(kind: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        match kind:
            case "status":
                assert isinstance(opened._host, Host)
                node = opened._host.node
                more = {"commits": node.store.commits, "installed": node.engine.snapshots.installed}
                return {**asdict(opened.status()), **more}
            case "watch":
                watched.append(Watched(opened))
                return None
            case "watched":
                return watched[0].account()
            case "snapshot":
                return list(opened.snapshot().items())
            case "members":
                return [[each.address, each.voter, each.release] for each in opened.members()]
            case "have_pop_need_level_two":
                cmd.LEVEL_OF[cmd.Pop] = 2
                return None
            case "len":
                return len(opened)
            case "arm":
                return scissors.arm(args)
            case "run":
                return run_function(*args)
            case "update":
                return opened.update(dict(args[0]))
            case _:
                return getattr(opened, kind)(*args, **kwargs)

    def answer(number: int, kind: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        call = time.monotonic()
        try:
            value = perform(kind, args, kwargs)
        except Exception as error:  # noqa: BLE001 -- told to the parent
            ret = None if type(error).__name__ in ("OutcomeUnknown", "StorageError") else time.monotonic()
            lines.put({"id": number, "call": call, "ret": ret, "error": type(error).__name__, "message": str(error)})
        else:
            lines.put({"id": number, "call": call, "ret": time.monotonic(), "value": value})

    with opened, ThreadPoolExecutor(THREADS) as pool:
        lines.put({"ready": True})
        for function in config["on_open"]:
            run_function(*function)
        for line in sys.stdin.buffer:
            request = json.loads(line)
            pool.submit(answer, request["id"], request["kind"], request["args"], request["kwargs"])


async def run_network(pairs: list[list[str]]) -> None:
    """The proxies: requests in, answers out, until the input ends."""
    gates = {(one, other): asyncio.Event() for one, other, _ in pairs}
    for gate in gates.values():
        gate.set()

    async def pump(gate: asyncio.Event, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while True:
                await gate.wait()
                data = await source.read(1 << 16)
                await gate.wait()
                if not data:
                    break
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()

    def proxy(caller: str, called: str) -> Any:
        async def accept(near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
            try:
                await gates[caller, called].wait()
                host, port = called.rsplit(":", 1)
                far_in, far_out = await asyncio.open_connection(host, int(port))
            except OSError:
                near_out.close()
                return
            await asyncio.gather(
                pump(gates[caller, called], near_in, far_out), pump(gates[called, caller], far_in, near_out)
            )

        return accept

    for caller, called, front in pairs:
        host, port = front.rsplit(":", 1)
        await asyncio.start_server(proxy(caller, called), host, int(port))
    lines = _Lines()
    lines.put({"ready": True})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        request = json.loads(line)
        held = {(one, other) for one, other in request["args"][0]}
        for link, gate in gates.items():
            gate.clear() if link in held else gate.set()
        now = time.monotonic()
        lines.put({"id": request["id"], "call": now, "ret": now, "value": None})
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "node":
        run_node(json.loads(sys.argv[2]))
    else:
        asyncio.run(run_network(json.loads(sys.argv[2])))

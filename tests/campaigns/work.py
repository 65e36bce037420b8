"""The child's side of a campaign: loops in the process of a node, and a journal of what they did and were told.

`begin` is what a node's process does when it has opened its dict (`Process(on_open=...)`); the loops are those that the
campaign's module returns from `loops`. The journal is a file that outlives the process, also when it is killed: a line
for each call before it begins, and one for what came of it. Its times are `time.monotonic`, which all processes share.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from replidict import ClosedError, HistoryLost, NotCommitted, ReplicatedDict, ReplidictError
from replidict.api.watch import Watch

PATIENCE = 60.0
"""Seconds in which every loop ends once it is told to."""


class Journal:
    """The file in which this process notes things."""

    def __init__(self, directory: Path, name: str) -> None:
        self._file = os.open(directory / f"{name} {os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, kind: str, **what: Any) -> None:
        """Write down that this is so now."""
        os.write(self._file, json.dumps([time.monotonic(), kind, what], default=list).encode() + b"\n")


class Told(NamedTuple):
    """What came of a call: its value, or the name of the error."""

    value: Any
    error: str | None = None


class Work:
    """The loops of this process."""

    def __init__(self, d: ReplicatedDict[Any, Any], journal: Journal) -> None:
        self.d, self.journal = d, journal
        self.rng = random.Random()
        self.name = f"{os.getpid()}"
        self.stopping = threading.Event()
        """Set when no loop shall begin anything more."""
        self.over = threading.Event()
        """Set when all nodes have applied all, so that watchers can read to the end and stop."""
        self._numbers = count(1)
        self._loops: list[threading.Thread] = []
        self._watchers: list[threading.Thread] = []

    def begin(self, loops: list[Callable[[], None]], watchers: list[Callable[[], None]]) -> None:
        """Run each of them in a thread."""
        for loop, threads in [(each, self._loops) for each in loops] + [(each, self._watchers) for each in watchers]:
            threads.append(threading.Thread(target=self._run, args=(loop,), daemon=True))
            threads[-1].start()

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except ClosedError:
            pass  # the campaign is over
        except Exception:  # noqa: BLE001 -- the account has it
            self.journal.note("broken", traceback=traceback.format_exc())

    def stop(self, *, watchers: bool) -> list[str]:
        """Have the loops, or those that watch, end. Returns what does not."""
        event, threads = (self.over, self._watchers) if watchers else (self.stopping, self._loops)
        event.set()
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return [f"{thread.name} in process {self.name} does not end" for thread in threads if thread.is_alive()]

    def pause(self, seconds: float) -> None:
        """Wait for so long on average, or until the loops shall stop."""
        self.stopping.wait(self.rng.expovariate(1 / seconds))

    def call(self, kind: str, what: dict[str, Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Told:
        """Call a function, and note that and what comes of it."""
        number = next(self._numbers)
        self.journal.note("call", id=number, of=kind, what=what)
        try:
            value = function(*args, **kwargs)
        except ReplidictError as error:
            name, surely_not = type(error).__name__, isinstance(error, NotCommitted)
            self.journal.note("answer", id=number, error=name, text=str(error)[:300], surely_not=surely_not)
            return Told(None, name)
        self.journal.note("answer", id=number, value=value)
        return Told(value)

    def follow(self, name: str, watch: Watch[Any, Any], lag: Callable[[], float] = lambda: 0.0) -> None:
        """Note each change that a watch delivers, until all is over and all was delivered."""
        with watch:
            while True:
                over = self.over.is_set()
                change = watch.next(0.1)
                if change is not None:
                    events = [[each.kind, each.key, each.value, each.previous] for each in change.events]
                    self.journal.note("told", watch=name, revision=change.revision, change=change.kind, events=events)
                elif over:
                    break
                if not over and (late := lag()):
                    self.over.wait(late)
            self.journal.note("read", watch=name, revision=watch.revision)


_works: list[Work] = []


def begin(d: ReplicatedDict[Any, Any], directory: str, module: str, arguments: dict[str, Any]) -> None:
    """Begin with the loops of a campaign's module, and note them in a directory."""
    work = Work(d, Journal(Path(directory), str(d.status().address)))
    _works.append(work)
    loops, watchers = import_module(module).loops(work, **arguments)
    work.begin(loops, watchers)


def stop(d: ReplicatedDict[Any, Any], watchers: bool) -> list[str]:
    """End the loops, or those that watch. Returns what does not end."""
    return [line for work in _works for line in work.stop(watchers=watchers)]


def hog(d: ReplicatedDict[Any, Any], threads: int, seconds: float) -> None:
    """Run pure-Python busy loops in this process for so long."""
    end = time.monotonic() + seconds

    def busy() -> None:
        while time.monotonic() < end:
            sum(range(1000))

    for _ in range(threads):
        threading.Thread(target=busy, daemon=True).start()


def look(d: ReplicatedDict[Any, Any], after: int | None, limit: int, quiet: float) -> dict[str, Any]:
    """What a watch delivers behind a revision, until there is nothing for a while; without one, from a snapshot on."""
    told: list[Any] = []
    try:
        with d.watch(snapshot=True) if after is None else d.watch(after=after) as watch:
            while len(told) < limit and (change := watch.next(quiet)) is not None:
                events = [[each.kind, each.key, each.value, each.previous] for each in change.events]
                told.append([change.revision, change.kind, events])
            return {"told": told, "revision": watch.revision}
    except HistoryLost as error:
        return {"told": told, "lost": [error.oldest, error.current]}


# -- the parent's side ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call that a loop made, as the journal has it."""

    node: str
    pid: int
    kind: str
    what: dict[str, Any]
    call: float
    ret: float | None = None
    """None: the process died before it was told anything."""
    value: Any = None
    error: str | None = "Died"
    text: str = ""
    surely_not: bool = False

    @property
    def ok(self) -> bool:
        """Whether it was done, and acknowledged."""
        return self.error is None


@dataclass(frozen=True)
class Note:
    """Any other line of a journal."""

    node: str
    pid: int
    at: float
    kind: str
    what: dict[str, Any]


@dataclass
class Journals:
    """What all processes of a campaign noted, in the order of time."""

    calls: list[Call] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def of(self, kind: str) -> Iterator[Call]:
        """The calls of one kind."""
        return (call for call in self.calls if call.kind == kind)

    def errors(self) -> dict[str, int]:
        """How often each error was the answer."""
        found: defaultdict[str, int] = defaultdict(int)
        for call in self.calls:
            if call.error is not None:
                found[call.error] += 1
        return dict(found)

    def broken(self) -> list[str]:
        """The loops that ended by an error that nobody expects."""
        return [note.what["traceback"] for note in self.notes if note.kind == "broken"]


def read(directory: Path) -> Journals:
    """All journals in a directory. The last line of a process that was killed may be cut."""
    found = Journals()
    for path in sorted(directory.iterdir()):
        node, pid = path.name.split()
        open_calls: dict[int, Call] = {}
        for line in path.read_bytes().split(b"\n"):
            try:
                at, kind, what = json.loads(line)
            except ValueError:
                continue
            if kind == "call":
                open_calls[what["id"]] = Call(node, int(pid), what["of"], what["what"], at)
            elif kind == "answer":
                begun = open_calls.pop(what.pop("id"))
                answer = {"value": None, "error": None, **what}
                found.calls.append(Call(node, int(pid), begun.kind, begun.what, begun.call, at, **answer))
            else:
                found.notes.append(Note(node, int(pid), at, kind, what))
        found.calls += open_calls.values()
    found.calls.sort(key=lambda call: call.call)
    found.notes.sort(key=lambda note: note.at)
    return found

"""Watch: writers on every node, and watchers of every kind, under faults and changes of the members.

In each process there are watches of everything, of a prefix, of one key, and one that reads late; one moves from node
to node with `after=`; `GET /watch` is followed by `curl -N` and by what a browser does, which go on elsewhere with
`Last-Event-ID` when their node dies or is silent. A violation is a change that one of them was not told, or was told
twice, in part, out of order, or otherwise than another; a command that happened twice, or not at all though it was
acknowledged; a watch that does not make of it what the dict holds.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from replidict import Options, ReplicatedDict, TransactionConflict
from replidict.http.app import asgi
from replidict.http.server import HttpServer, listening
from tests.campaigns.account import Account
from tests.campaigns.check_watch import Telling, Truth, Write, check_final, check_telling, check_writes
from tests.campaigns.faults import Busyness, Faults, Trouble
from tests.campaigns.run import campaign_of, finish
from tests.campaigns.work import Journals, Work, read
from tests.event_source import EventSource, Stream
from tests.processes import Network, Process

KEYS = [*(f"k/{number}" for number in range(20)), *(f"x/{number}" for number in range(30))]
PREFIX, ONE = "k/", "k/3"
PAUSE = 0.05  # seconds between two commands of one writer, on average
WRITERS = 2  # in each process
SILENT = 2.0  # seconds after which one that follows by HTTP goes elsewhere
WANTS: dict[str, Callable[[str], bool] | None] = {
    "everything": None,
    "late": None,
    "prefix": lambda key: key.startswith(PREFIX),
    "one": lambda key: key == ONE,
}

# -- in the process of a node ---------------------------------------------------------------------------------------


def loops(work: Work) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """The writers, and the watchers."""
    d = work.d
    host, port = str(d.status().address).rsplit(":", 1)
    HttpServer(asgi(d), listening(f"{host}:{int(port) + 1000}"), Options()).start()
    watches = {
        "everything": d.watch(snapshot=True, resync=True),
        "late": d.watch(snapshot=True, resync=True),
        "prefix": d.watch(prefix=PREFIX, snapshot=True, resync=True),
        "one": d.watch(ONE, snapshot=True, resync=True),
    }

    def late() -> float:
        return work.rng.uniform(0, 4) if work.rng.random() < 0.01 else 0.0

    return (
        [partial(write, work, number) for number in range(WRITERS)],
        [partial(work.follow, name, watch, late if name == "late" else lambda: 0.0) for name, watch in watches.items()],
    )


def write(work: Work, number: int) -> None:
    """Commands, one after the other: of one key, of several, with a deletion."""
    d, rng, count = work.d, work.rng, 0
    while not work.stopping.is_set():
        work.pause(PAUSE)
        count += 1
        name = f"{work.name}.{number}.{count}"
        kind = rng.choice(["set", "update", "transaction"])
        if kind == "set":
            work.call("set", {"id": name}, d.set, rng.choice(KEYS), [name, 1], timeout=5)
        elif kind == "update":
            pairs = {key: [name, 4] for key in rng.sample(KEYS, 4)}
            work.call("update", {"id": name}, d.update, pairs)
        else:
            work.call("transaction", {"id": name}, replace, d, name, rng)


def replace(d: ReplicatedDict[Any, Any], name: str, rng: random.Random) -> int:
    """Delete one key, if it is there, and store another, as one command; its revision."""
    old, new = rng.sample(KEYS, 2)
    with d.transaction(timeout=5) as t:
        there = old in t
        if there:
            del t[old]
        t[new] = [name, 1 + there]
    return t.revision or 0


# -- those that move from node to node ------------------------------------------------------------------------------


class Mover:
    """Watches everything on one node after the other, each behind what was read on the one before."""

    def __init__(self, nodes: list[Process], rng: random.Random) -> None:
        self.tellings: list[Telling] = []
        self.moves = self.lost = 0
        self._nodes, self._rng = nodes, rng
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._move, daemon=True)
        self._thread.start()

    def _move(self) -> None:
        after: int | None = None
        while not self._stopping.is_set():
            node = self._rng.choice(self._nodes)
            if node.paused or not node.alive:
                self._stopping.wait(0.05)
                continue
            after = self.look(node, after)

    def look(self, node: Process, after: int | None) -> int | None:
        """Read on this node what it has behind a revision; returns up to where everything is read."""
        answer = node.call("run", "tests.campaigns.work", "look", after, self._rng.randrange(1, 300), 0.5)
        if not answer.ok:
            return after
        if after is None:
            self.tellings.append(Telling(f"one that moves, {len(self.tellings)}"))
        telling, found = self.tellings[-1], answer.value
        telling.told += [(revision, kind, events) for revision, kind, events in found["told"]]
        self.moves += 1
        if "lost" in found:
            self.lost += 1
            return None
        telling.until = max(found["revision"], telling.until or 0)
        return telling.until

    def stop(self) -> None:
        """Read to the end on the first node."""
        self._stopping.set()
        self._thread.join(60)
        if self.tellings and self.tellings[-1].until is not None:
            after: int | None = self.tellings[-1].until
            while (reached := self.look(self._nodes[0], after)) is not None and reached != after:
                after = reached


class HttpFollower:
    """Follows `/watch` of everything, on another node when its own is silent or gone."""

    def __init__(self, name: str, open_stream: Callable[..., Any], nodes: list[Process], rng: random.Random) -> None:
        self.tellings: list[Telling] = []
        self.moves = self.lost = 0
        self._name, self._open, self._nodes, self._rng = name, open_stream, nodes, rng
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        last_id: str | None = None
        refused: set[Process] = set()
        while not self._stopping.is_set():
            node = self._rng.choice(self._nodes)
            try:
                with self._open(node.address, last_id) as stream:
                    if stream.status == 200:
                        refused.clear()
                        last_id = self._read(stream, last_id)
                    elif stream.status == 410:  # it was started after that
                        refused.add(node)
            except OSError:
                pass
            if len(refused) == len(self._nodes):
                last_id, self.lost = None, self.lost + 1
                refused.clear()
            self._stopping.wait(0.05)

    def _read(self, stream: Stream, last_id: str | None) -> str | None:
        self.moves += 1
        if last_id is None:
            self.tellings.append(Telling(f"{self._name}, {len(self.tellings)}"))
        telling = self.tellings[-1]
        try:
            while (said := stream.event()) is not None:
                name, data = said
                assert name == "message", said
                events = [[each["kind"], each["key"], each.get("value"), each["previous"]] for each in data["events"]]
                telling.told.append((data["revision"], "changes", events))
        except (OSError, ValueError):  # it died in the middle of a word
            pass
        return stream.last_id

    def stop(self, last: int) -> None:
        """Stop, once it was told the last revision; if it is not within some seconds, the account finds that."""
        deadline = time.monotonic() + 30
        while not self.tellings or not self.tellings[-1].told or self.tellings[-1].told[-1][0] < last:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        self._stopping.set()
        self._thread.join(60)
        self.tellings[-1].until = last


@contextmanager
def browser(address: str, last_id: str | None) -> Iterator[EventSource]:
    """What a browser does."""
    host, port = address.rsplit(":", 1)
    with EventSource(int(port) + 1000, "", last_id, host=host, timeout=SILENT) as source:
        yield source


class CurlStream(Stream):
    """What a process of `curl -N` prints."""

    status = 0


@contextmanager
def curl(address: str, last_id: str | None) -> Iterator[CurlStream]:
    """`curl -N`, which ends when nothing comes for some seconds."""
    host, port = address.rsplit(":", 1)
    headers = [] if last_id is None else ["-H", f"Last-Event-ID: {last_id}"]
    command = ["curl", "-sSNi", "--http1.1", "--speed-limit", "1", "--speed-time", f"{SILENT:.0f}", *headers]
    with subprocess.Popen(
        [*command, f"http://{host}:{int(port) + 1000}/watch"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            status = process.stdout.readline().split()
            stream = CurlStream((line.rstrip("\n") for line in process.stdout if line.endswith("\n")), last_id)
            stream.status = int(status[1]) if status else 0
            while process.stdout.readline().strip():
                pass
            yield stream
        finally:
            process.kill()


# -- the campaign ---------------------------------------------------------------------------------------------------


def run(
    root: Path,
    *,
    seconds: float,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    plan: Sequence[str] = (),
) -> dict[str, Any]:
    """One campaign: the summary. With a plan it is over when these faults are, in this order."""
    account, rng = Account(), random.Random(seed)
    journals = root / "journals"
    with ExitStack() as stack:
        busy = stack.enter_context(Busyness())
        network = stack.enter_context(Network(3))
        options = {"log_retain": 2000, "history_entries": 5000}
        nodes = stack.enter_context(
            campaign_of("tests.campaigns.watch", root, journals, network=network, options=options)
        )
        faults = Faults(nodes, network, rng, (0.3, 1.0) if plan else (0.3, 1.0, 2.5, 4.0)).with_changes_of_members()
        trouble = Trouble(nodes, faults, account, say)
        mover = Mover(nodes, random.Random(seed))
        followers = [HttpFollower("curl -N", curl, nodes, rng), HttpFollower("EventSource", browser, nodes, rng)]
        for _ in trouble.plan(seconds, plan, rng):
            pass
        elapsed = time.monotonic() - trouble.start
        content = finish(nodes, account)
        mover.stop()
        last = int(nodes[0].status()["revision"])
        for follower in followers:
            follower.stop(last)
    noted = read(journals)
    tellings = in_processes(noted) + mover.tellings
    streams = [telling for follower in followers for telling in follower.tellings]
    figures = checked(account, noted, tellings, streams, content)
    return {
        "seconds": round(elapsed, 1),
        **figures,
        "moves": {"after=": mover.moves, "begun anew": mover.lost},
        "over HTTP": {
            follower._name: {
                "told": sum(len(each.told) for each in follower.tellings),
                "connections": follower.moves,
                "begun anew": follower.lost,
            }
            for follower in followers
        },
        "faults": trouble.summary(),
        "errors": noted.errors(),
        "machine": busy.summary(),
        "violations": account.violations[:20],
    }


def in_processes(noted: Journals) -> list[Telling]:
    """What the watches in the nodes' processes were told."""
    found: defaultdict[tuple[int, str], Telling] = defaultdict(lambda: Telling(""))
    for note in noted.notes:
        if note.kind in ("told", "read"):
            name = note.what["watch"]
            telling = found[note.pid, name]
            telling.name, telling.wants = f"{name} of process {note.pid} at {note.node}", WANTS[name]
            if note.kind == "read":
                telling.until = note.what["revision"]
            else:
                telling.told.append((note.what["revision"], note.what["change"], note.what["events"]))
    return list(found.values())


def checked(
    account: Account, noted: Journals, tellings: list[Telling], streams: list[Telling], content: dict[str, Any]
) -> dict[str, Any]:
    """All checks; what is found goes to the account, and figures are returned."""
    truth = Truth([*tellings, *streams])
    commands = [call for kind in ("set", "update", "transaction") for call in noted.of(kind)]
    done = [Write(call.what["id"], call.value if call.kind != "update" else None) for call in commands if call.ok]
    refused = [call.what["id"] for call in commands if call.surely_not]
    wrong, unseen = check_writes(truth, done, refused)
    wrong += truth.violations + check_final(truth, content) + noted.broken()
    for telling in [*tellings, *streams]:
        wrong += check_telling(telling, truth)
    account.violations += wrong
    conflicts = sum(call.error == TransactionConflict.__name__ for call in commands)
    return {
        "commands": len(done),
        "refused": len(refused) - conflicts,
        "conflicts": conflicts,
        "acknowledged, and nobody looked": unseen,
        "watches": len(tellings) + len(streams),
        "changes told": sum(len(each.told) for each in [*tellings, *streams]),
        "snapshots told": sum(kind == "snapshot" for each in tellings for _, kind, _ in each.told),
        "revisions": truth.last,
        "revisions that were told": len(truth.log),
    }

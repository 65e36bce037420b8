"""What watchers were told: the same, whole, in order, once, and all of it. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Events = list[list[Any]]
"""Lists of kind, key, value and previous."""

State = dict[str, Any]


@dataclass
class Telling:
    """What one watch delivered, in order."""

    name: str
    wants: Callable[[str], bool] | None = None
    """Which keys it watches; None: all."""
    told: list[tuple[int, str, Events]] = field(default_factory=list)
    """Revision, kind and events of each change."""
    after: int | None = None
    """The revision that it begins behind; None: it begins with what it is told first."""
    until: int | None = None
    """The revision up to which everything was delivered at the end, if the watch could say so."""

    def keys(self, events: Events) -> Events:
        """Those events that this watch is told."""
        return events if self.wants is None else [event for event in events if self.wants(event[1])]


@dataclass(frozen=True)
class Write:
    """A command: its id is in each value that it stored, with the number of keys that it changed."""

    id: str
    revision: int | None = None
    """What the client was told; None: it was told nothing of it."""


class Truth:
    """What happened, as all watches of everything tell it together."""

    def __init__(self, tellings: Iterable[Telling]) -> None:
        self.violations: list[str] = []
        self.log: dict[int, Events] = {}
        self.states: dict[int, tuple[str, State]] = {}
        """Snapshots, by revision: who was told, and what."""
        self._teller: dict[int, str] = {}
        for telling in tellings:
            for revision, kind, events in telling.told if telling.wants is None else ():
                if kind == "snapshot":
                    self._snapshot(telling.name, revision, events)
                elif self.log.setdefault(revision, events) != events:
                    self.violations.append(
                        f"{telling.name} was told {events} of revision {revision}, and {self._teller[revision]} "
                        f"{self.log[revision]}"
                    )
                else:
                    self._teller.setdefault(revision, telling.name)
        self.states_at = self._fold()

    def _snapshot(self, name: str, revision: int, events: Events) -> None:
        state = {key: value for _, key, value, _ in events}
        other, known = self.states.setdefault(revision, (name, state))
        if known != state:
            self.violations.append(f"{name} and {other} were told different snapshots of revision {revision}")

    def _fold(self) -> Callable[[int], State | None]:
        """Check each change and snapshot against the state before it; returns what gives the state at a revision of a
        snapshot or at the end, None where it is not known."""
        state: State | None = {} if 1 in self.log else None
        kept: dict[int, State] = {}
        last = max([*self.log, *self.states], default=0)
        for revision in range(1, last + 1):
            events = self.log.get(revision)
            if events is None:
                state = None
            elif state is not None:
                self.violations += fold(state, events, f"revision {revision}")
            if revision in self.states:
                name, told = self.states[revision]
                if state is not None and state != told:
                    self.violations.append(f"the snapshot of revision {revision} that {name} was told is not the state")
                state = dict(told)
                kept[revision] = dict(told)
        if state is not None:
            kept[last] = state
        self.last = last
        return kept.get


def fold(state: State, events: Events, what: str) -> list[str]:
    """Apply a change to a state; returns where it does not fit."""
    wrong = []
    for kind, key, value, previous in events:
        if state.get(key) != previous:
            wrong.append(f"{what}: {kind} of {key!r} says that it was {previous!r}, and it was {state.get(key)!r}")
        if kind == "set":
            state[key] = value
        else:
            state.pop(key, None)
    return wrong


def check_telling(telling: Telling, truth: Truth) -> list[str]:
    """One watch was told each change that it wants, once, in order, whole, and nothing else."""
    wrong: list[str] = []
    last, state = telling.after, None if telling.after != 0 else dict[str, Any]()
    wanted = sorted(revision for revision, events in truth.log.items() if telling.keys(events))
    at = 0
    for revision, kind, events in [*telling.told, (telling.until, "the end", [])]:
        if revision is None:
            break
        if last is not None and (revision < last or (revision == last and kind == "changes")):
            wrong.append(f"revision {revision} comes after {last}")
            continue
        while at < len(wanted) and (wanted[at] < revision or (kind == "the end" and wanted[at] == revision)):
            if last is not None and wanted[at] > last and kind != "snapshot":
                wrong.append(f"revision {wanted[at]} was not told between {last} and {revision}")
            at += 1
        if kind == "snapshot":
            state = {key: value for _, key, value, _ in events}
        elif kind == "changes":
            if revision in truth.log and telling.keys(truth.log[revision]) != events:
                wrong.append(f"of revision {revision} it was told {events}, not {telling.keys(truth.log[revision])}")
            if state is not None:
                wrong += fold(state, events, f"revision {revision}")
        last = revision
    held = truth.states_at(telling.until) if telling.until is not None else None
    if state is not None and held is not None:
        expected = {key: value for key, value in held.items() if telling.wants is None or telling.wants(key)}
        if state != expected:
            wrong.append(f"it makes {len(state)} keys of it, and the dict holds {len(expected)}")
    return [f"{telling.name}: {each}" for each in wrong]


def check_writes(truth: Truth, acknowledged: Iterable[Write], refused: Iterable[str]) -> tuple[list[str], int]:
    """Each command is whole and happened once, if it was acknowledged; never, if it was refused. Returns what is wrong,
    and how many acknowledged ones nobody saw happen because nobody looked."""
    wrong: list[str] = []
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for revision, events in truth.log.items():
        commands = Counter(event[2][0] for event in events if isinstance(event[2], list))
        for command in commands:
            seen[command].append(revision)
            (size,) = {event[2][1] for event in events if isinstance(event[2], list) and event[2][0] == command}
            if len(commands) > 1 or size != len(events):
                wrong.append(f"revision {revision} is no whole command: {events}")
    wrong += [f"{command} happened at revisions {at}" for command, at in seen.items() if len(at) > 1]
    wrong += [f"{command} was refused, and happened" for command in refused if command in seen]
    whole = len(truth.log) == truth.last
    unseen = 0
    for write in acknowledged:
        if write.id in seen:
            if write.revision is not None and write.revision not in seen[write.id]:
                wrong.append(f"{write.id} was acknowledged as {write.revision}, and happened at {seen[write.id]}")
        elif whole or (write.revision is not None and write.revision in truth.log):
            wrong.append(f"{write.id}, acknowledged as revision {write.revision}, was never told")
        else:
            unseen += 1
    return wrong, unseen


def check_final(truth: Truth, content: State) -> list[str]:
    """What the changes make is what the dict holds in the end."""
    made = truth.states_at(truth.last)
    if made is None:
        return ["nobody was told the last change"]
    return (
        [] if made == content else [f"the changes make {len(made)} keys, and the dict holds {len(content)}, or others"]
    )

"""Reads several keys as they were at one moment, without waiting for the thread that applies entries, or blocking it.

Rules kept here:

1. The changes of an entry become visible in one step, after `revision` has grown. So while `revision` stays the same,
   at most one step becomes visible; and while the machine is at rest (`settled` equals it), none.
2. A page is read key by key only at rest; otherwise it is taken from a copy of everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import TypeVar

from replidict.forks import in_forked_child
from replidict.machine.changes import Item
from replidict.machine.key_index import KeyIndex
from replidict.machine.state_machine import StateMachine
from replidict.own_threads import in_node_thread

Read = TypeVar("Read")

TRIES = 3
"""Times that a page is read key by key."""

_filling = threading.Lock()
_fillers: set[int] = set()  # the thread that has it, if any


def _after_fork_in_child() -> None:
    global _filling
    _filling = threading.Lock()  # whoever had the other one does not exist here
    _fillers.clear()


in_forked_child(_after_fork_in_child)


def within_a_step(machine: StateMachine, read: Callable[[], Read]) -> tuple[int, Read]:
    """Return what `read` returns while at most one step is made, and the last revision that it surely includes.

    `read` may be called several times, and must be quick.
    """
    while True:
        settled, revision = machine.settled, machine.revision
        found = read()
        if machine.revision == revision:
            return settled, found


def keys_in_order(
    machine: StateMachine, prefix: str, after: str | bytes | None, limit: int | None
) -> tuple[list[str], list[bytes]]:
    """The first keys that begin with a text, behind `after`: texts by code point; behind them, without a prefix, all
    other keys, encoded, by their bytes. An `after` of bytes is one of these."""

    def read(index: KeyIndex) -> tuple[list[str], list[bytes]] | None:
        texts = [] if isinstance(after, bytes) else index.texts(prefix, after, limit)
        left = None if limit is None or texts is None else limit - len(texts)
        others = [] if prefix or left == 0 else index.others(after if isinstance(after, bytes) else None, left)
        return None if texts is None or others is None else (texts, others)

    found = _at_rest(machine, read)
    if found is None:
        found = _at_rest_or_never(read, machine.moment())
    return found


def pairs_in_order(
    machine: StateMachine, prefix: str, after: str | None, limit: int | None
) -> tuple[int, list[tuple[str, Item]]]:
    """The first pairs after `after` whose keys have the prefix, by code point, and the last revision that they surely
    include."""

    def read(index: KeyIndex) -> tuple[int, list[tuple[str, Item]]] | None:
        settled = machine.settled
        keys = index.texts(prefix, after, limit)
        if keys is None:
            return None
        return settled, [(key, item) for key in keys if (item := machine.find(key)) is not None]

    found = _at_rest(machine, read)
    if found is not None:
        return found
    settled, held = machine.settled, machine.moment()
    keys, _ = _at_rest_or_never(
        lambda index: (index.texts(prefix, after, limit) or [], []),
        {key: item for key, item in held.items() if type(key) is str and key.startswith(prefix)},
    )
    return settled, [(key, held[key]) for key in keys]


def _at_rest(machine: StateMachine, read: Callable[[KeyIndex], Read | None]) -> Read | None:
    """Return what `read` returns of the index of keys while nothing changes; None if something keeps changing."""
    for _ in range(TRIES):
        index = _index(machine)
        settled, readable = machine.settled, machine.readable
        len(readable)  # raises when there is nothing to read any more
        found = read(index) if index is not None else None
        if machine.revision == settled == machine.settled and machine.key_index is index and found is not None:
            return found
    return None


def _at_rest_or_never(read: Callable[[KeyIndex], Read | None], held: Mapping[object, Item]) -> Read:
    """Return what `read` returns of a temporary index."""
    index = KeyIndex()
    index.fill(held)
    found = read(index)
    assert found is not None
    return found


def _index(machine: StateMachine) -> KeyIndex | None:
    """The index of keys. It is built if there is none: it was not needed before, or the dict was emptied or replaced.
    None if another call is just building it, and it can't be waited for: this call has interrupted it, or a node's
    thread would wait."""
    index = machine.key_index
    if index is None or not index.filled:
        me = get_ident()
        if not _filling.acquire(timeout=0.0 if in_node_thread() or me in _fillers else 10.0):
            return None
        _fillers.add(me)
        try:
            index = machine.key_index
            if index is None or not index.filled:
                index = machine.key_index = KeyIndex()
                index.fill(machine.moment())
        finally:
            _fillers.discard(me)
            _filling.release()
    return index

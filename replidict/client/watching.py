"""Watches a cluster from outside, and goes on with another node when one is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from replidict.client.connection import Client, UnreachableError
from replidict.errors import ReplidictError
from replidict.monotonic_clock import clock
from replidict.protocol.client_messages import Event, Events, GetMembers, GetStatus, MembersAre, StatusIs, Watch

PAUSE = 0.2
"""Seconds between two rounds of calls."""


class Seen(NamedTuple):
    """The changes of one command, whole; or none, which says that nothing of interest happened up to this revision."""

    revision: int
    events: list[Event]


def follow(
    connect: Callable[..., Client],
    *,
    key: bytes | None,
    prefix: str | None,
    after: int | None,
    moved: Callable[[str, str], object],
) -> Iterator[Seen]:
    """Yield changes without end; the first one says where it begins.

    `connect` without an address calls the first node. When that is lost, it goes on behind what was yielded last, with
    any member that can be reached within the client's timeout; `moved` is told why, and to which. Raises what the
    first connection raises, `HistoryLost`, and `UnreachableError` when there is nobody left.
    """
    client = connect()
    node, timeout = client.address, client.timeout
    members: list[str] = []
    while True:
        begun = False
        with client:
            try:
                members = _others(client, node, members)
                some: list[Event] = []
                for part in client.stream(lambda i, t: Watch(i, t, key, prefix, after)):  # noqa: B023
                    assert isinstance(part, Events)
                    begun = True
                    some += part.events
                    if part.last:
                        after = part.revision
                        yield Seen(after, some)
                        some = []
            except ReplidictError as error:
                if not client.lost:
                    raise
                why = error
        if not begun and _lives(connect, node):
            raise ReplidictError(f"{node} does not know how to watch, its release is too old: {why}") from why
        client, node = _next(connect, [*members, node], timeout, why)
        moved(str(why), node)


def _others(client: Client, node: str, known: list[str]) -> list[str]:
    """The addresses of the other members; the ones last known if no member can be asked now."""
    try:
        found = client.request(GetMembers, MembersAre).members
    except ReplidictError:
        if client.lost:
            raise
        return known
    return [member.address for member in found if ":" in member.address and member.address != node]


def _lives(connect: Callable[..., Client], node: str) -> bool:
    """Whether a node that has hung up on a question answers another one."""
    try:
        with connect(node) as client:
            client.request(GetStatus, StatusIs)
    except ReplidictError:
        return False
    return True


def _next(connect: Callable[..., Client], nodes: list[str], timeout: float, why: ReplidictError) -> tuple[Client, str]:
    deadline = clock() + timeout
    while True:
        for node in nodes:
            try:
                return connect(node), node
            except ReplidictError:
                continue
        if clock() >= deadline:
            raise UnreachableError(f"no member can be reached within {timeout:g} s, of {', '.join(nodes)}; {why}")
        time.sleep(PAUSE)

"""Commands on locks: `locks`, `break-lock`."""

from __future__ import annotations

import dataclasses
import datetime as dt

import click

from replidict.client.connection import Client
from replidict.command.exit_status import Failure
from replidict.command.node_options import as_json_option, asking
from replidict.command.output import print_json, print_table
from replidict.protocol import client_messages
from replidict.protocol.log_entry import NUMBER_MAX


@click.command()
@as_json_option
@asking
def locks(client: Client, as_json: bool) -> None:
    """List who holds which lock, and how many wait for it."""
    found = client.request(client_messages.GetLocks, client_messages.LocksAre).locks
    if as_json:
        print_json({"locks": [dataclasses.asdict(lock) for lock in found]})
        return
    rows = [(lock.name, lock.holder, lock.info, lock.token, _moment(lock.since), lock.waiters) for lock in found]
    print_table(["lock", "holder", "says", "token", "since", "waiting"], rows)


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(" ", "seconds")


@click.command("break-lock")
@click.argument("name")
@click.argument("fencing_token", metavar="TOKEN", type=click.IntRange(0, NUMBER_MAX))
@as_json_option
@asking
def break_lock(client: Client, name: str, fencing_token: int, as_json: bool) -> None:
    """Take the lock NAME from the holder with this TOKEN.

    The holder sees it as lost, and what it writes with fence= is refused. TOKEN is
    what `locks` shows: whoever got the lock since then keeps it. The exit status is 1
    if it is not held with that token.
    """
    held = client.request(lambda i, t: client_messages.BreakLock(i, t, name, fencing_token), client_messages.Held).held
    if as_json:
        print_json({"done": held})
    if not held:
        raise Failure(f"{name!r} is not held with the token {fencing_token}")

"""Commands that show and change a cluster: `status`, `members`, `add`, `remove`, `transfer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import click

from replidict.client.connection import Client
from replidict.command.node_options import as_json_option, asking, reaching, told_if_interrupted
from replidict.command.output import print_facts, print_json, print_table, size
from replidict.errors import NotCommitted, OutcomeUnknown, RemovedError, ReplidictError
from replidict.protocol import client_messages


@click.command()
@as_json_option
@asking
def status(client: Client, as_json: bool) -> None:
    """Show what a node knows of itself."""
    found = client.request(client_messages.GetStatus, client_messages.StatusIs).status
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    connected = [address if address in found.connected else f"{address} (no connection)" for address in found.peers]
    print_facts([
        ("node", f"{found.address} ({found.node_id})"),
        ("cluster", found.cluster_id),
        ("role", found.role),
        ("leader", found.leader),
        ("term", found.term),
        ("committed", f"up to log entry {found.commit_index}"),
        ("applied", f"up to log entry {found.applied_index}"),
        ("content", f"{found.keys} keys, revision {found.revision}"),
        ("others", ", ".join(connected) or None),
        ("features", f"level {found.feature_level}"),
        ("digest", f"{found.digest} at log entry {found.digest_index}" if found.digest else None),
        *([("", f"{found.differing} other members have another one")] if found.differing else []),
        ("used by", ", ".join(f"process {pid}" for pid in found.attached) or None),
        ("log", f"{found.log_entries} entries, {size(found.log_bytes)}"),
    ])  # fmt: skip


@click.command()
@as_json_option
@asking
def members(client: Client, as_json: bool) -> None:
    """List the members and their progress."""
    found = client.request(client_messages.GetMembers, client_messages.MembersAre).members
    if as_json:
        print_json({"members": [dataclasses.asdict(member) for member in found]})
        return
    rows = [
        (
            member.address,
            "voter" if member.voter else "learner",
            "leader" if member.is_leader else "",
            member.match_index,
            None if member.last_contact is None else f"{member.last_contact:.1f} s ago",
            member.release,
        )
        for member in found
    ]
    print_table(["member", "vote", "leads", "on disk up to", "last heard", "release"], rows)


@click.command()
@click.argument("address")
@click.option("--no-vote", is_flag=True, help="It will never count towards a majority.")
@as_json_option
@asking
def add(client: Client, address: str, no_vote: bool, as_json: bool) -> None:
    """Let a node in, before it is started.

    ADDRESS is where the others will reach it. It becomes a voter once it runs and
    has caught up. Start it with --join.
    """
    client.request(lambda i, t: client_messages.AddPeer(i, t, address, not no_vote), client_messages.Done)
    if as_json:
        print_json({"done": True, "address": address})
    else:
        click.echo(f"{address} may come: start it with --join, if it does not run yet.")


@click.command()
@click.argument("address")
@click.option("--force", is_flag=True, help="Even if that stops all writes, for want of a majority.")
@as_json_option
@reaching
def remove(connect: Callable[..., Client], address: str, force: bool, as_json: bool) -> None:
    """Let a member go for good.

    The node at ADDRESS stops by itself; its directory is of no use any more.
    """
    with connect() as client, told_if_interrupted(client):
        asked = client.request(client_messages.GetStatus, client_messages.StatusIs).status
        try:
            _remove(client, address, force)
        except RemovedError:  # by now it is
            if asked.address != address.lower():
                raise
        except OutcomeUnknown:
            if asked.address != address.lower() or not any(_is_removed(connect, peer, address) for peer in asked.peers):
                raise
    if as_json:
        print_json({"done": True, "address": address})
    else:
        click.echo(f"{address} is no member any more.")


def _remove(client: Client, address: str, force: bool) -> None:
    client.request(lambda i, t: client_messages.RemovePeer(i, t, address, force), client_messages.Done)


def _is_removed(connect: Callable[..., Client], peer: str, address: str) -> bool:
    """Whether a node that was asked to remove itself, and fell silent, is removed, as another one says for sure.

    It is asked to do it again, which the leader refuses once the first time is committed.
    """
    try:
        with connect(peer) as client:
            try:
                _remove(client, address, False)
            except (NotCommitted, OutcomeUnknown):
                return False
            except ReplidictError:
                found = client.request(client_messages.GetMembers, client_messages.MembersAre).members
                return address.lower() not in [member.address for member in found]
            return True
    except ReplidictError:
        return False


@click.command()
@click.argument("address", required=False)
@as_json_option
@asking
def transfer(client: Client, address: str | None, as_json: bool) -> None:
    """Have another voter lead.

    The one at ADDRESS, or else the one that is furthest.
    """
    client.request(lambda i, t: client_messages.Transfer(i, t, address), client_messages.Done)
    found = client.request(client_messages.GetStatus, client_messages.StatusIs).status
    if as_json:
        print_json({"done": True, "leader": found.leader or address})
    else:
        click.echo(f"{found.leader or address} leads now.")

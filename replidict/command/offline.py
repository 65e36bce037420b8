"""Commands on the directories of stopped nodes: `inspect`, `restore`, `recover`."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import click
import msgspec

from replidict.command.exit_status import told
from replidict.command.log_entries import described
from replidict.command.node_options import as_json_option
from replidict.command.output import age, print_facts, print_json, print_table, size
from replidict.errors import OutcomeUnknown, RemovedError, StorageError, removed
from replidict.options import NO_NETWORK
from replidict.protocol.log_entry import NUMBER_MAX
from replidict.security import member_of
from replidict.storage import records
from replidict.storage.inspection import Inspected, inspect, resting
from replidict.storage.recovery import Survivors, survivors
from replidict.storage.restore import restore as restore_backup

_DIRECTORY = click.Path(path_type=Path)


@click.command("inspect")
@click.argument("data", type=_DIRECTORY)
@click.option(
    "-n", "--entries", type=click.IntRange(0, NUMBER_MAX), default=0, help="Show so many of the last log entries."
)
@as_json_option
def inspect_node(data: Path, entries: int, as_json: bool) -> None:
    """Show what is on the disk of a stopped node, and check it.

    DATA is the node's directory. Nothing in it is changed. The exit status is 5 if
    the node would refuse to start with it, 8 if it was removed from its cluster, or
    that was recovered without it.
    """
    with told(), resting(data):
        found = inspect(data, entries)
    if as_json:
        print_json(_as_dict(found))
    else:
        print_facts(_facts(found))
        if found.entries:
            click.echo()
            rows = [(kept.index, kept.term, _is_committed(found, kept.index), described(kept.command))
                    for kept in found.entries]  # fmt: skip
            print_table(["index", "term", "committed", "entry"], rows)
    with told():
        if found.damage is not None:
            raise StorageError(found.damage)
        if found.superseded is not None:
            raise RemovedError(f"{data} must not be opened any more. {found.superseded}")
        if found.removed:
            raise removed(found.identity.address)


def _facts(found: Inspected) -> list[tuple[str, object]]:
    behind = found.last_index - found.applied.index
    log = f"{found.first_index} to {found.last_index}, the last of term {found.last_term}"
    told: list[tuple[str, object]] = [] if found.recovered is None else [("recovered", _recovered(found.recovered))]
    return [
        ("node", f"{found.identity.address} ({found.identity.node_id})"),
        ("cluster", found.identity.cluster_id),
        *told,
        ("voters", " ".join(found.members.voters)),
        ("learners", " ".join(found.members.learners) or None),
        ("term", found.vote.term),
        ("voted for", found.vote.voted_for),
        ("log entries", log if found.first_index <= found.last_index else f"none, up to {found.last_index}"),
        ("committed", f"at least {found.committed}"),
        ("state table", f"up to {found.applied.index}: {found.applied.rows} keys, revision {found.applied.revision}"),
        *([("", f"and {behind} log entries that it has not taken in yet")] if behind else []),
        ("features", f"level {found.feature_level}"),
        ("digest", None if found.digest is None else f"{found.digest.hex()} of the state table"),
        ("size", f"{size(found.file_bytes)}, write-ahead log {size(found.wal_bytes)}"),
        ("last written", f"{age(time.time() - found.written)} ago"),
        ("integrity", "ok" if found.damage is None else "DAMAGED"),
    ]


def _recovered(recovered: records.Recovered) -> str:
    lost = "nothing acknowledged was lost" if recovered.certain else "acknowledged writes may have been lost"
    return f"on {recovered.at} from the cluster {recovered.cluster_id}: {lost}"


def _is_committed(found: Inspected, index: int) -> str:
    return "yes" if index <= found.committed else "unknown"


def _as_dict(found: Inspected) -> dict[str, object]:
    return {
        "path": str(found.path),
        "address": None if found.identity.address == NO_NETWORK else found.identity.address,
        "node_id": found.identity.node_id,
        "cluster_id": found.identity.cluster_id,
        "voters": found.members.voters,
        "learners": found.members.learners,
        "term": found.vote.term,
        "voted_for": found.vote.voted_for,
        "first_index": found.first_index,
        "last_index": found.last_index,
        "last_term": found.last_term,
        "committed_index": found.committed,
        "applied_index": found.applied.index,
        "revision": found.applied.revision,
        "keys": found.applied.rows,
        "feature_level": found.feature_level,
        "digest": None if found.digest is None else found.digest.hex(),
        "file_bytes": found.file_bytes,
        "wal_bytes": found.wal_bytes,
        "written": found.written,
        "damage": found.damage,
        "superseded": found.superseded,
        "removed": found.removed,
        "recovered": None
        if (was := found.recovered) is None
        else {"cluster_id": was.cluster_id, "at": was.at, "certain": was.certain, "members": was.members},
        "entries": [
            {"index": kept.index, "term": kept.term, "entry": described(kept.command)} for kept in found.entries
        ],
    }


@click.command()
@click.argument("backup", type=_DIRECTORY)
@click.argument("data", type=_DIRECTORY)
@click.option("--address", metavar="HOST:PORT", help="Where the new node will listen; none: without a network.")
@as_json_option
def restore(backup: Path, data: Path, address: str | None, as_json: bool) -> None:
    """Found a new cluster from a backup.

    BACKUP is a file that `replidict backup` or a node wrote, DATA the directory to
    be made, of the only member so far. Others join it.
    """
    with told():
        restore_backup(backup, data, NO_NETWORK if address is None else member_of(address))
    if as_json:
        print_json({"done": True, "path": str(data), "address": address})
    else:
        click.echo(f"{data} is the first node of a new cluster.")


@click.command()
@click.argument("data", type=_DIRECTORY)
@click.argument("others", metavar="[OTHER_DATA]...", type=_DIRECTORY, nargs=-1)
@click.option("--address", metavar="HOST:PORT", help="Where the node will listen.  [default: as before]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json_option
def recover(data: Path, others: tuple[Path, ...], address: str | None, yes: bool, as_json: bool) -> None:
    """Found a new cluster from what a lost quorum left.

    For when a majority of the nodes is gone for good: what only they had is lost.
    DATA is the directory of the surviving node that is furthest, OTHER_DATA are
    those of all other survivors. All must be stopped. DATA becomes the only member
    of a new cluster, and the others are never opened again. What is not named is
    stopped when DATA runs and reaches it, but can go on as the old cluster where it
    does not: see to it that nobody starts it.
    """
    with told():
        at = None if address is None else member_of(address)
        with survivors(data, others) as found:
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                _print_survivors(found)
                if (refusal := found.refusal()) is not None:
                    raise refusal
                _print_consequences(found)
            if not yes:
                _ask(f"Go on with {data}?")
            try:
                identity = found.recover(at)
            except KeyboardInterrupt as error:
                raise OutcomeUnknown(f"interrupted: look with replidict inspect {data}, or do it again") from error
    if as_json:
        print_json({"done": True, "path": str(data), "certain": found.certain} | msgspec.structs.asdict(identity))
        return
    click.echo(
        f"{data} is the only member of the new cluster {identity.cluster_id}, at {identity.address}.\n"
        "Start it as before, and have the others join with empty directories."
    )


def _ask(question: str) -> None:
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as abort:  # which click makes of Ctrl-C as well
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from abort
        raise


def _print_survivors(found: Survivors) -> None:
    now = time.time()
    rows = [
        (
            each.path,
            each.identity.address,
            each.last_term,
            each.last_index,
            f"{age(now - each.written)} ago",
            " ".join(each.members.voters),
            "DAMAGED" if each.damage else "furthest" if each is found.furthest else "",
        )
        for each in (found.chosen, *found.others)
    ]
    print_table(["data", "node", "last term", "last index", "written", "voters", ""], rows)


def _print_doubts(node: Inspected) -> None:
    """Print what is suspicious about a disk, if anything."""
    if node.recovered is not None:
        click.echo(f"{node.path} was itself recovered {_recovered(node.recovered)}.")
    if node.removed:
        click.echo(f"{node.path}: this node was removed from its cluster, and heard of nothing since.")
    elif node.identity.address not in node.members.voters:
        click.echo(f"{node.path}: this node was no voter, as far as it knew: it may have been behind.")
    if node.unsynced:
        click.echo(f"{node.path}: this node ran with durability='process', so it may be older than what the node had")
        click.echo("acknowledged, if its machine has lost power since.")
    elif not node.marked:
        click.echo(f"{node.path} has no mark beside its file: it may be older than what the node had acknowledged.")


def _print_consequences(found: Survivors) -> None:
    voters, missing = len(found.furthest.members.voters), found.missing
    click.echo()
    if missing:
        click.echo(f"Missing here: {len(missing)} of {voters} voters, {' '.join(missing)}")
    for node in found.nodes:
        _print_doubts(node)
    if found.certain:
        click.echo("Every write that was acknowledged is on one of these disks: none is lost.")
    elif found.likely:
        click.echo(
            f"None is lost, unless the members changed after log entry {found.chosen.last_index}, which these disks"
        )
        click.echo("need not have heard of: what others acknowledged since is LOST then.")
    else:
        click.echo("Acknowledged writes that are on none of these disks are LOST: nobody can tell whether there")
        click.echo("are any.")
    if found.unconfirmed:
        click.echo(f"Log entries not known to be committed, which will be: {found.unconfirmed}. Some may have been")
        click.echo("reported as of unknown outcome.")
    if missing:
        click.echo("The missing ones must never be started again with what they hold, by a supervisor either. While")
        click.echo("the new first node runs, it stops those that it reaches; else a majority of them would go on as")
        click.echo("the old cluster, beside the new one. Wipe them first.")

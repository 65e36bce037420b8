"""`replidict backup`: saves a node's state to a file on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from replidict.client.connection import Client
from replidict.command.exit_status import Failure
from replidict.command.node_options import as_json_option, asking
from replidict.command.output import is_terminal, print_json, size
from replidict.errors import ReplidictError
from replidict.protocol import client_messages
from replidict.storage.atomic_file import new_file
from replidict.storage.directory import sync
from replidict.storage.snapshot import Snapshot, check


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@as_json_option
@asking
def backup(client: Client, file: Path, as_json: bool) -> None:
    """Write what a node holds to a new FILE.

    It has every write that has returned on that node, and is checked. An existing
    file is never replaced. `replidict restore` founds a new cluster from it.
    """
    try:
        with new_file(file) as (temporary, _):
            made = _receive(client, temporary)
    except (ReplidictError, FileExistsError):
        raise
    except OSError as error:
        raise Failure(f"{file}: no backup was made: {error}") from error
    if as_json:
        print_json({"path": str(file), "revision": made.revision, "index": made.index, "keys": made.keys,
                    "size": made.size})  # fmt: skip
    else:
        click.echo(f"{file}: {made.keys} keys, revision {made.revision}, {size(made.size)}")


def _receive(client: Client, temporary: Path) -> Snapshot:
    """Write the pieces under a temporary name, and see to it that they are whole and on disk."""
    quiet = not is_terminal(sys.stderr)
    with (
        open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as opened,
        click.progressbar(length=1, label="Backup", file=sys.stderr, hidden=quiet) as bar,
    ):
        for piece in client.stream(client_messages.Backup):
            assert isinstance(piece, client_messages.Piece)
            opened.write(piece.data)
            bar.length = piece.total_bytes
            bar.update(len(piece.data))
    sync(temporary)
    return check(temporary)

"""`replidict serve`: runs a node and its HTTP interface.

Rules kept here:

1. The same command line works the first time and every other: a data directory that holds a node is opened as it is.
2. The HTTP modules are imported only when they are needed, so that all other commands work without the extra.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from replidict.command.exit_status import Failure, told
from replidict.command.security_options import Protection, protected
from replidict.storage.directory import FILE_NAME

logger = logging.getLogger(__name__)


@click.command()
@click.option("--id", "name", required=True, help="What this node is called in its log.")
@click.option("--addr", required=True, metavar="HOST:PORT", help="Where the other nodes reach this one.")
@click.option("--http", required=True, metavar="[HOST]:PORT", help="Where it serves HTTP.")
@click.option("--data", type=click.Path(path_type=Path), help="Its directory.  [default: ./ID.replidict]")
@click.option("--bootstrap", is_flag=True, help="Found a new cluster, the first time.")
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="Another founder, each time it is given.")
@click.option("--join", metavar="HOST:PORT", help="Enter this node's cluster, the first time.")
@click.option("--no-vote", is_flag=True, help="With --join: never count towards a majority.")
@protected
@click.option("--http-token-file", type=click.Path(path_type=Path), help="Holds the token that HTTP asks for.")
def serve(
    name: str,
    addr: str,
    http: str,
    data: Path | None,
    bootstrap: bool,
    peers: tuple[str, ...],
    join: str | None,
    no_vote: bool,
    protection: Protection,
    http_token_file: Path | None,
) -> None:
    """Run one node, and serve its dict over HTTP."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    directory = data if data is not None else Path(f"{name}.replidict")
    if join is not None and (bootstrap or peers):
        raise click.UsageError("--join joins a running cluster, --bootstrap and --peer found a new one: not both")
    if no_vote and join is None:
        raise click.UsageError("--no-vote goes with --join: founders all vote")
    entering: dict[str, Any] = {"peers": peers} if join is None else {"join": join, "voter": not no_vote}
    if (directory / FILE_NAME).exists():
        if bootstrap or peers or join is not None:
            logger.info("%s: %s holds a node: --bootstrap, --peer and --join are not looked at", name, directory)
        entering = {}
    elif not (bootstrap or peers or join is not None):
        raise click.UsageError(f"{directory} is new: say --bootstrap, --peer or --join")
    try:
        from replidict.http import process
    except ModuleNotFoundError as error:
        raise Failure(f"serve needs {error.name}, which comes with: pip install 'replidict[serve]'") from error
    node = {"address": addr, "tls": protection.tls, "secret": protection.secret, "insecure": protection.insecure}
    with told():
        process.run(name, directory, http, http_token_file, node | entering)

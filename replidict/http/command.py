"""`replidict serve`: one node with its HTTP, as a process.

Rules kept here:

1. The same command line works the first time and every other: a data directory that holds a node is opened as it is.
2. No secret and no token is an option's value, for command lines are seen by all: files and the environment hold them.
3. SIGTERM and SIGINT end it in order: no new requests, those under way finished, leadership handed over, all closed.
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import click

from replidict.errors import ReplidictError
from replidict.http.app import application
from replidict.http.server import HttpServer, check_protected, listening, token_of
from replidict.options import Options
from replidict.replicated_dict import ReplicatedDict
from replidict.security import TLS
from replidict.storage.files import FILE_NAME

logger = logging.getLogger(__name__)

HAND_OVER_SECONDS = 5.0


@click.command()
@click.option("--id", "name", required=True, help="What this node is called in its log.")
@click.option("--addr", required=True, metavar="HOST:PORT", help="Where the other nodes reach this one.")
@click.option("--http", "http", required=True, metavar="[HOST]:PORT", help="Where it serves HTTP; loopback if no host.")
@click.option("--data", type=click.Path(path_type=Path), help="Its directory.  [default: ./ID.replidict]")
@click.option("--bootstrap", is_flag=True, help="Found a new cluster, the first time.")
@click.option(
    "--peer", "peers", multiple=True, metavar="HOST:PORT", help="Another founder; may be given several times."
)
@click.option("--join", metavar="HOST:PORT", help="Enter the cluster of this node, the first time.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    envvar="REPLIDICT_SECRET_FILE",
    help="Holds the secret all nodes share; else the environment's REPLIDICT_SECRET.",
)
@click.option("--cert", type=click.Path(path_type=Path), help="This node's certificate, for TLS between the nodes.")
@click.option("--key", type=click.Path(path_type=Path), help="Its private key.")
@click.option("--ca", type=click.Path(path_type=Path), help="The certificate that all nodes' come from.")
@click.option("--insecure", is_flag=True, help="Let anybody who reaches --addr take part.")
@click.option(
    "--http-token-file",
    type=click.Path(path_type=Path),
    help="Holds the token that HTTP asks for; else the environment's REPLIDICT_HTTP_TOKEN.",
)
def serve(
    name: str,
    addr: str,
    http: str,
    data: Path | None,
    bootstrap: bool,
    peers: tuple[str, ...],
    join: str | None,
    secret_file: Path | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    insecure: bool,
    http_token_file: Path | None,
) -> None:
    """Run one node, and serve its dict over HTTP."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    directory = data if data is not None else Path(f"{name}.replidict")
    if join is not None and (bootstrap or peers):
        raise click.UsageError("--join enters a cluster that runs, --bootstrap and --peer found one: not both")
    if (directory / FILE_NAME).exists():
        if bootstrap or peers or join is not None:
            logger.info("%s: %s holds a node: --bootstrap, --peer and --join are not looked at", name, directory)
        peers, join = (), None
    elif not (bootstrap or peers or join is not None):
        raise click.UsageError(f"{directory} is new: say --bootstrap, --peer or --join")
    options = Options()
    try:
        with listening(http) as bound:
            token = token_of(http_token_file)
            check_protected(bound, token)
            entering: dict[str, Any] = {} if join is None else {"join": join}
            d: ReplicatedDict[Any, Any] = ReplicatedDict(
                directory,
                address=addr,
                peers=peers,
                tls=_tls(cert, key, ca),
                secret=_secret(secret_file),
                insecure=insecure,
                options=options,
                **entering,
            )
            with d:
                host, port = bound.getsockname()[:2]
                _run(name, d, HttpServer(application(d, token=token, options=options), bound, options), (host, port))
    except (ReplidictError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _run(name: str, d: ReplicatedDict[Any, Any], server: HttpServer, at: tuple[str, int]) -> None:
    def stop(_number: int, _frame: object) -> None:
        server.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.start()
    host = f"[{at[0]}]" if ":" in at[0] else at[0]
    logger.info("%s: HTTP on http://%s:%d, the other nodes on %s", name, host, at[1], d.status().address)
    server.wait()
    status = d.status()
    if status.is_leader and status.peers:
        try:
            d.transfer_leadership(timeout=HAND_OVER_SECONDS)
            logger.info("%s: %s leads now", name, d.status().leader)
        except ReplidictError as error:
            logger.warning("%s: could not hand over leadership: %s", name, error)
    logger.info("%s: stopped", name)


def _secret(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("REPLIDICT_SECRET")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"--secret-file: can't read the secret: {error}") from error


def _tls(cert: Path | None, key: Path | None, ca: Path | None) -> TLS | None:
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise click.UsageError("--cert, --key and --ca go together")
    return TLS(cert=cert, key=key, ca=ca)

"""The options that say which node a command talks to, for how long, and with which credentials."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from replidict.client.connection import Client
from replidict.command.exit_status import told
from replidict.command.output import require_stdout
from replidict.command.security_options import Protection, protected
from replidict.errors import OutcomeUnknown
from replidict.protocol.client_messages import TIMEOUT_MAX
from replidict.security import member_of, security_for

DEFAULT_NODE = "localhost:9001"


def _print_json(_ctx: click.Context, _parameter: click.Parameter, asked: bool) -> bool:
    if asked:
        require_stdout()
    return asked


as_json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_print_json, help="One line of JSON, for scripts."
)


def reaching(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets what connects it as `connect`, and what goes wrong is told."""

    @click.option(
        "--node", envvar="REPLIDICT_NODE", default=DEFAULT_NODE, show_default=True, metavar="HOST:PORT",
        help="Any node.",
    )  # fmt: skip
    @click.option(
        "--timeout", type=click.FloatRange(0, TIMEOUT_MAX), default=10.0, show_default=True, metavar="SECONDS",
        help="For each answer.",
    )  # fmt: skip
    @protected
    @functools.wraps(command)
    def wrapped(node: str, timeout: float, protection: Protection, **rest: Any) -> None:
        with told():
            member_of(node)
            security = security_for(node, protection.tls, protection.secret, protection.insecure)
            command(connect=lambda to=node: Client(to, security=security, timeout=timeout), **rest)

    return wrapped


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """The same, for a command that needs one connection: it gets that as `client`."""

    @reaching
    @functools.wraps(command)
    def wrapped(connect: Callable[[], Client], **rest: Any) -> None:
        with connect() as client, told_if_interrupted(client):
            command(client=client, **rest)

    return wrapped


@contextmanager
def told_if_interrupted(client: Client) -> Iterator[None]:
    """Ctrl-C in here is told as what it means for what was asked of this client."""
    try:
        yield
    except KeyboardInterrupt as error:
        if client.wrote:
            raise OutcomeUnknown(
                f"interrupted, after {client.address} was asked: it may or may not be done, now or later. Look before "
                "trying again"
            ) from error
        raise

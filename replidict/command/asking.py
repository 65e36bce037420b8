"""How a command talks to a running node: which one, for how long, and as whom."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from replidict.client import Client
from replidict.command.failures import told
from replidict.command.security import Protection, protected
from replidict.raft.asks import TIMEOUT_MAX
from replidict.security import security_for

DEFAULT_NODE = "localhost:9001"

as_json_option = click.option("--json", "as_json", is_flag=True, help="One line of JSON, for scripts.")


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
            security = security_for(node, protection.tls, protection.secret, protection.insecure)
            command(connect=lambda: Client(node, security=security, timeout=timeout), **rest)

    return wrapped


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """The same, for a command that needs one connection: it gets that as `client`."""

    @reaching
    @functools.wraps(command)
    def wrapped(connect: Callable[[], Client], **rest: Any) -> None:
        with connect() as client:
            command(client=client, **rest)

    return wrapped

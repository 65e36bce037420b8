"""`replidict watch`: prints changes as they are applied, and goes on with another node when one is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from replidict.client.connection import Client
from replidict.client.watching import follow
from replidict.command.literals import for_scripts, is_odd, literal_key_option, printed_option, read, shown
from replidict.command.node_options import as_json_option, reaching
from replidict.command.output import print_json
from replidict.machine.codec import decode, decode_key, encode_key
from replidict.protocol.client_messages import Event
from replidict.protocol.log_entry import NUMBER_MAX


@click.command()
@click.argument("key", required=False)
@literal_key_option
@printed_option
@click.option("--prefix", metavar="P", help="Keys that begin with P.")
@click.option(
    "--after", type=click.IntRange(0, NUMBER_MAX), metavar="R", help="What came after revision R.  [default: now]"
)
@as_json_option
@reaching
def watch(
    connect: Callable[..., Client],
    key: str | None,
    literal_key: bool,
    literal: bool,
    prefix: str | None,
    after: int | None,
    as_json: bool,
) -> None:
    """Print changes as they come: of KEY, of some keys, or of all.

    It goes on until it is interrupted, with another node when this one is lost.
    With --json, each line is what one command has changed.
    """
    if key is not None and prefix is not None:
        raise click.UsageError("give KEY or --prefix, not both")

    def moved(why: str, to: str) -> None:
        click.echo(f"{why}; going on with {to}", err=True)

    name = None if key is None else encode_key(read(key, literal_key))
    for revision, events in follow(connect, key=name, prefix=prefix, after=after, moved=moved):
        if events and as_json:
            print_json({"revision": revision, "events": [_for_scripts(event) for event in events]})
        elif events:
            _print(revision, events, literal)


def _for_scripts(event: Event) -> dict[str, object]:
    said: dict[str, object] = {"kind": event.kind, "key": for_scripts(decode_key(event.key))}
    for name, data in (("value", event.value), ("previous", event.previous)):
        if data is not None:
            said[name] = for_scripts(decode(data))
    return said


def _print(revision: int, events: Sequence[Event], literal: bool) -> None:
    for event in events:
        key = decode_key(event.key)
        line = f"{revision} {event.kind} {shown(key, literal or is_odd(key))}"
        if event.value is not None:
            value = decode(event.value)
            line += " " + shown(value, literal or is_odd(value, but="\t" if not sys.stdout.isatty() else ""))
        click.echo(line, color=True)

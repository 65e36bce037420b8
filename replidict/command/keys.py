"""Commands on keys and values: `get`, `set`, `increment`, `delete`, `keys`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from replidict.brief import brief
from replidict.client.connection import Client
from replidict.command.exit_status import Failure
from replidict.command.literals import (
    for_scripts,
    from_input,
    hint_at_literal,
    is_odd,
    literal_key_option,
    printed_option,
    read,
    shown,
)
from replidict.command.node_options import as_json_option, asking
from replidict.command.output import is_terminal, print_json
from replidict.errors import EncodingError
from replidict.machine.codec import decode, decode_key, encode, encode_key
from replidict.machine.stored_values import value_of
from replidict.protocol import client_messages
from replidict.protocol.log_entry import NUMBER_MAX

local_option = click.option("--local", is_flag=True, help="The node's own copy, which may be behind.")


@click.command()
@click.argument("key")
@literal_key_option
@printed_option
@click.option("--raw", is_flag=True, help="Text and bytes as they are, without a line end.")
@local_option
@as_json_option
@asking
def get(client: Client, key: str, literal_key: bool, literal: bool, raw: bool, local: bool, as_json: bool) -> None:
    """Print the value of KEY.

    It includes every write that has returned anywhere, unless --local. The exit
    status is 1 if there is no such key.
    """
    name = encode_key(read(key, literal_key))
    found = client.request(lambda i, t: client_messages.Get(i, t, name, not local), client_messages.Value)
    if found.value is None:
        raise Failure(f"there is no key {key!r}")
    value = value_of(decode, decode_key(name), found.value)
    if as_json:
        said = {"key": for_scripts(decode_key(name)), "value": for_scripts(value)}
        print_json(said | {"type": type(value).__name__, "revision": found.revision})
    elif raw:
        if not isinstance(value, str | bytes | bytearray):
            raise Failure(f"the value is a {type(value).__name__}, which has no raw form: leave out --raw")
        click.echo(value, nl=False, color=True)  # else click takes escape sequences away
    else:
        odd = is_terminal(sys.stdout) and is_odd(value, but="\t\n")
        click.echo(shown(value, literal or odd), color=True)


@click.command("set")
@click.argument("key")
@click.argument("value", required=False)
@literal_key_option
@click.option("-l", "--literal", is_flag=True, help="VALUE is JSON or a Python literal.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key.")
@click.option(
    "--if-revision", type=click.IntRange(0, NUMBER_MAX), metavar="N", help="Only if it was last written by revision N."
)
@click.option("--ttl", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="The key goes after so long.")
@as_json_option
@asking
def set_value(
    client: Client,
    key: str,
    value: str | None,
    literal_key: bool,
    literal: bool,
    if_absent: bool,
    if_revision: int | None,
    ttl: float | None,
    as_json: bool,
) -> None:
    """Store VALUE, or what comes from standard input.

    The exit status is 1 if the condition did not hold, 3 if nothing was stored for
    want of a leader, 4 if that can't be told.
    """
    if if_absent and if_revision is not None:
        raise click.UsageError("--if-absent and --if-revision exclude each other")
    name = encode_key(read(key, literal_key))
    if value is None and sys.stdin is None:
        raise click.UsageError("standard input is closed: give VALUE")
    given = read(value, literal) if value is not None else from_input(sys.stdin.buffer.read())
    data = encode(given)
    said: dict[str, object]
    if if_absent or if_revision is not None:
        held = client.request(
            lambda i, t: _conditional(i, t, name, data, ttl, if_absent, if_revision), client_messages.Held
        ).held
        said = {"done": held}
    else:
        revision = client.request(
            lambda i, t: (
                client_messages.Set(i, t, name, data)
                if ttl is None
                else client_messages.SetForAWhile(i, t, name, data, ttl)
            ),
            client_messages.Stored,
        ).revision
        held, said = True, {"done": True, "revision": revision}
    if as_json:
        print_json(said)
    if held and value is not None and not literal:
        hint_at_literal(value)
    if not held:
        raise Failure(f"not stored: {key!r} " + ("is there" if if_absent else f"is not of revision {if_revision}"))


def _conditional(
    number: int, timeout: float, key: bytes, value: bytes, ttl: float | None, if_absent: bool, if_revision: int | None
) -> client_messages.Add | client_messages.Replace | client_messages.SetForAWhile:
    if ttl is not None:
        return client_messages.SetForAWhile(number, timeout, key, value, ttl, if_absent, if_revision)
    if if_revision is not None:
        return client_messages.Replace(number, timeout, key, value, if_revision)
    return client_messages.Add(number, timeout, key, value)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("by", default="1")
@literal_key_option
@as_json_option
@asking
def increment(client: Client, key: str, by: str, literal_key: bool, as_json: bool) -> None:
    """Add BY, a number, to the value of KEY, and print the sum.

    A key that is not there counts as 0. BY is 1 unless it is given, and may be
    negative, or a Python literal. The exit status is 1 if the value is no number, 3
    if nothing was added for want of a leader, 4 if that can't be told.
    """
    amount = read(by, True)
    if type(amount) not in (int, float):
        raise click.UsageError(f"{by} is not a number")
    name, data, nothing = encode_key(read(key, literal_key)), encode(amount), encode(0)
    said = client.request(lambda i, t: client_messages.Increment(i, t, name, data, nothing), client_messages.Sum)
    value = decode(said.value)
    if as_json:
        print_json({"value": for_scripts(value)})
    else:
        click.echo(shown(value, True))


@click.command()
@click.argument("key")
@literal_key_option
@as_json_option
@asking
def delete(client: Client, key: str, literal_key: bool, as_json: bool) -> None:
    """Remove KEY.

    The exit status is 1 if there was no such key.
    """
    name = encode_key(read(key, literal_key))
    held = client.request(lambda i, t: client_messages.Delete(i, t, name), client_messages.Held).held
    if as_json:
        print_json({"done": held})
    if not held:
        raise Failure(f"there is no key {key!r}")


@click.command()
@click.argument("prefix", default="")
@literal_key_option
@printed_option
@click.option("--limit", type=click.IntRange(0), metavar="N", help="At most so many.  [default: all]")
@click.option("--after", metavar="KEY", help="Only those after this one.")
@local_option
@as_json_option
@asking
def keys(
    client: Client,
    prefix: str,
    literal_key: bool,
    literal: bool,
    limit: int | None,
    after: str | None,
    local: bool,
    as_json: bool,
) -> None:
    """List the keys that begin with PREFIX.

    In order of their code points. Keys that are no text come last, and only without
    a PREFIX.
    """
    start = None if after is None else encode_key(read(after, literal_key))
    found = _decoded(_pages(client, prefix, start, limit, not local))
    if as_json:
        print_json({"keys": [for_scripts(key) for key in found]})
    else:
        for key in found:
            click.echo(shown(key, literal or is_odd(key)))


def _decoded(keys: Iterator[bytes]) -> Iterator[Any]:
    for key in keys:
        try:
            yield decode_key(key)
        except EncodingError as error:  # of a later release
            click.echo(f"Warning: a key is left out, which can't be decoded here: {brief(key)}: {error}", err=True)


def _pages(client: Client, prefix: str, after: bytes | None, limit: int | None, linearizable: bool) -> Iterator[bytes]:
    left = limit
    while left is None or left > 0:
        wanted = client_messages.PAGE_MAX if left is None else min(left, client_messages.PAGE_MAX)
        count = 0
        for part in client.stream(lambda i, t: client_messages.ListKeys(i, t, prefix, after, wanted, linearizable)):  # noqa: B023
            assert isinstance(part, client_messages.Keys)
            yield from part.keys
            count += len(part.keys)
            after = part.keys[-1]
        if count < wanted:
            return
        left = None if left is None else left - count

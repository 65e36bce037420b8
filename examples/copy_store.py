"""Copy a diskcache or a shelve into a dict: `python examples/copy_store.py SOURCE DIRECTORY`.

SOURCE is the directory of a `diskcache.Cache` or the path that was given to `shelve.open`; DIRECTORY is that of a
node. A node that runs there, `replidict serve` for instance, is used as it is; else one is opened for as long as this
takes.

A key that is in the dict already stays as it is. So the copy can be interrupted, even killed, and begun again: it
goes on with what is missing. Times to live go along; tags, which diskcache has, do not. What replidict can't keep, an
object of a class of your own for instance, is named at the end, and the exit status is 1.

Both sources keep pickles: copy only from files that you trust.
"""

from __future__ import annotations

import dbm
import shelve
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import click

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `python examples/copy_store.py`

from replidict import EncodingError, ReplicatedDict, Transaction

PIECE = 200
"""Entries in one transaction."""

Dict = ReplicatedDict[Any, Any]


class Entry(NamedTuple):
    key: Any
    value: Any
    ttl: float | None = None


@click.command(help="Copy a diskcache or a shelve, SOURCE, into the dict of the node in DIRECTORY.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
def main(source: Path, directory: Path) -> None:
    total, entries = from_diskcache(source) if (source / "cache.db").exists() else from_shelve(source)
    with ReplicatedDict[Any, Any](directory, share=True) as d:
        copied, refused = copy(entries, total, d)
    click.echo(
        f"{copied:,} of {total:,} entries copied, {total - copied - len(refused):,} were there already or had expired"
    )
    for reason in refused[:20]:
        click.echo(f"refused: {reason}", err=True)
    if refused:
        click.echo(f"{len(refused):,} entries can't be kept, and were left out", err=True)
        sys.exit(1)


def from_diskcache(source: Path) -> tuple[int, Iterator[Entry]]:
    """How many entries a diskcache has, and those that have not expired, in its order."""
    import diskcache  # type: ignore[import-untyped]

    def entries() -> Iterator[Entry]:
        with closing(cache):
            for key in cache:
                value, expires = cache.get(key, default=cache, expire_time=True)
                ttl = None if expires is None else expires - time.time()
                if value is not cache and (ttl is None or ttl > 0):
                    yield Entry(key, value, ttl)

    cache = diskcache.Cache(str(source))
    return len(cache), entries()


def from_shelve(source: Path) -> tuple[int, Iterator[Entry]]:
    """How many entries a shelve has, and all of them."""

    def entries() -> Iterator[Entry]:
        with shelf:
            for key in shelf:
                yield Entry(key, shelf[key])

    try:
        shelf = shelve.open(str(source), "r")  # noqa: S301, SIM115 -- what the user wants to read
    except dbm.error as error:
        raise click.BadParameter(f"{source} is neither a diskcache nor a shelve: {error}") from None
    return len(shelf), entries()


def copy(entries: Iterator[Entry], total: int, d: Dict) -> tuple[int, list[str]]:
    """Copy what is not there yet, with a progress bar. How many entries that was, and why others were refused."""
    copied, refused, piece = 0, list[str](), list[Entry]()
    with click.progressbar(length=total, label="copying", show_pos=True, file=sys.stderr) as bar:
        for number, entry in enumerate(entries, 1):
            if entry.key not in d:
                piece.append(entry)
            if len(piece) == PIECE:
                copied += put(piece, d, refused)
                bar.update(number - bar.pos)
                piece.clear()
        copied += put(piece, d, refused)
        bar.update(total - bar.pos)
    return copied, refused


def put(piece: list[Entry], d: Dict, refused: list[str]) -> int:
    """Store those of a piece that are not there, in one step if they fit into one command. How many these were."""
    try:
        return d.transact(put_absent, piece)
    except EncodingError:
        if len(piece) == 1:
            return put_alone(piece[0], d, refused)
    half = len(piece) // 2
    return put(piece[:half], d, refused) + put(piece[half:], d, refused)


def put_absent(t: Transaction[Any, Any], piece: list[Entry]) -> int:
    absent = [entry for entry in piece if entry.key not in t]
    for entry in absent:
        t.set(entry.key, entry.value, ttl=entry.ttl)
    return len(absent)


def put_alone(entry: Entry, d: Dict, refused: list[str]) -> int:
    """Store an entry by a command of its own, which may be larger than a transaction."""
    try:
        return int(d.add(entry.key, entry.value, ttl=entry.ttl))
    except EncodingError as error:
        refused.append(str(error))
        return 0


if __name__ == "__main__":
    main()

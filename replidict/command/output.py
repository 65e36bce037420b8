"""Prints tables for people and JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

import click

from replidict.command.exit_status import Failure
from replidict.machine.jsonable import to_json


def require_stdout() -> None:
    """Refuse to go on, before anything is done, if there is nowhere to print to. Raises `Failure`."""
    if sys.stdout is None:
        raise Failure("standard output is closed, so the answer can't be printed: redirect it, if only to /dev/null")


def is_terminal(stream: TextIO | None) -> bool:
    """Is this a terminal? A standard stream that was closed before the start is None."""
    return stream is not None and stream.isatty()


def print_json(value: Any) -> None:
    """One line of JSON."""
    click.echo(to_json(value))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns under their names; numbers to the right."""
    texts = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    right = [bool(rows) and all(isinstance(row[column], int | None) for row in rows) for column in range(len(head))]
    for line in [[name.upper() for name in head], *texts]:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """One fact a line, its name before it."""
    width = max(len(name) for name, _ in facts)
    for name, fact in facts:
        click.echo(f"{name.ljust(width)}  {'-' if fact is None else fact}")


def size(count: int) -> str:
    """So many bytes, for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def age(seconds: float) -> str:
    """So many seconds, for people."""
    for unit, factor in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def shortened(text: str, length: int = 60) -> str:
    """The text, cut off if it is too long for a line."""
    return text if len(text) <= length else text[: length - 3] + "..."

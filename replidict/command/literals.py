"""Reads keys and values from the command line, and prints them.

Rules kept here:

1. By default, keys and values are text. What is not text is printed as a Python literal, such as b'...'. So are keys
   with control characters and, on a terminal, values with control characters other than tabs and line ends.
2. With `--literal`, a value is given as JSON or as a Python literal, and everything is printed as a Python literal, so
   that a str can be told from what looks the same. `--literal-key` does this for a key that is given.
3. Standard input is text if it is UTF-8, otherwise bytes, as over HTTP.
"""

from __future__ import annotations

import ast
import json
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from replidict.brief import brief
from replidict.command.exit_status import Failure
from replidict.machine.jsonable import Json, literal, to_json

literal_key_option = click.option("-k", "--literal-key", is_flag=True, help="KEY is JSON or a Python literal.")
printed_option = click.option("-l", "--literal", is_flag=True, help="Print text as Python literals, too.")


def read(text: str, literal: bool) -> Any:
    """The key or value that a text on the command line stands for. Raises `click.UsageError`."""
    if not literal:
        return text
    try:
        return _literal_of(text)
    except ValueError:
        raise click.UsageError(f"{text} is neither JSON nor a Python literal: a text needs quotes of its own") from None


def _literal_of(text: str) -> Any:
    with _ints_of_any_size():
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(text) from None


@contextmanager
def _ints_of_any_size() -> Iterator[None]:
    """Lift Python's limit on the digits of ints in this block."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def hint_at_literal(text: str) -> None:
    """Say on standard error that a text was stored, if it looks as if another value was meant."""
    try:
        kind = type(_literal_of(text)).__name__
    except ValueError:
        return
    click.echo(f"Hint: {brief(text)} is stored as a text; with --literal it is a {kind}.", err=True)


def from_input(data: bytes) -> str | bytes:
    """The value that was sent to standard input."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def shown(value: Any, as_literal: bool) -> str:
    """A key or value for people."""
    if type(value) is str and not as_literal:
        try:
            value.encode()
        except UnicodeEncodeError:  # lone surrogates, which no terminal takes
            return repr(value)
        return value
    return literal(value)


def is_odd(value: Any, but: str = "") -> bool:
    """Does a text have control characters in it, which would do things to a terminal, or to what reads lines?"""
    return type(value) is str and any(unicodedata.category(each) == "Cc" and each not in but for each in value)


def for_scripts(value: Any) -> Json:
    """A key or value as JSON. Raises `Failure`."""
    try:
        return Json(to_json(value))
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise Failure(f"JSON can't represent {brief(value)}: {error}; leave out --json") from None

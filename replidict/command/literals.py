"""Keys and values as they are written on a command line, and printed.

Rules kept here:

1. Without more, they are text. What is no text is printed as a Python literal, b'...' for instance. So is a key with
   control characters, and a value with other ones than tabs and line ends where it goes to a terminal.
2. With `--literal` a value is given as JSON or a Python literal, and everything is printed as a Python literal: so a
   text and what looks the same can be told apart. `--literal-key` says so of a key that is given.
3. What comes from standard input is text if it is UTF-8, else bytes, as it is over HTTP.
"""

from __future__ import annotations

import ast
import json
import unicodedata
from typing import Any

import click

from replidict.command.failures import Failure
from replidict.machine.jsonable import plain

literal_key_option = click.option("-k", "--literal-key", is_flag=True, help="KEY is JSON or a Python literal.")
printed_option = click.option("-l", "--literal", is_flag=True, help="Print text as Python literals, too.")


def read(text: str, literal: bool) -> Any:
    """The key or value that a text on the command line stands for. Raises `click.UsageError`."""
    if not literal:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise click.UsageError(f"{text} is neither JSON nor a Python literal: a text needs quotes of its own") from None


def from_input(data: bytes) -> str | bytes:
    """The value that was sent to standard input."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def shown(value: Any, literal: bool) -> str:
    """A key or value for people."""
    if type(value) is str and not literal:
        try:
            value.encode()
        except UnicodeEncodeError:  # lone surrogates, which no terminal takes
            return repr(value)
        return value
    return repr(value)


def is_odd(value: Any, but: str = "") -> bool:
    """Does a text have control characters in it, which would do things to a terminal, or to what reads lines?"""
    return type(value) is str and any(unicodedata.category(each) == "Cc" and each not in but for each in value)


def for_scripts(value: Any) -> Any:
    """A key or value of types that JSON has. Raises `Failure`."""
    try:
        json.dumps(simple := plain(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError, NotImplementedError) as error:
        raise Failure(f"JSON can't say {value!r}: {error}; leave out --json") from None
    return simple

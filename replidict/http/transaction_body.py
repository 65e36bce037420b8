"""Parses the body of `POST /transaction`: the checks and the writes of a transaction, as JSON.

Rules kept here:

1. Nothing is guessed: a member that is unknown or given twice is refused, and so is a number that is not finite.
2. Whatever JSON expresses may be a value: a string is stored as a str, an object as a dict.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from replidict.api.commit import Commit
from replidict.http.problems import Problem


class Compare(msgspec.Struct, forbid_unknown_fields=True):
    """A key, and either the revision that must have written it, or that it must be absent."""

    key: str
    revision: int | None = None
    absent: bool = False


class Set(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="set"):
    """Store a value."""

    key: str
    value: Any


class Delete(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="delete"):
    """Remove a key, if it is there."""

    key: str


class Increment(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="increment"):
    """Add to a number."""

    key: str
    by: int | float = 1
    default: int | float = 0


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The whole body."""

    operations: list[Set | Delete | Increment]
    compare: list[Compare] = []

    def add_to(self, commit: Commit) -> None:
        """Make it checks and writes."""
        for compare in self.compare:
            commit.expect(compare.key, compare.revision)
        for operation in self.operations:
            match operation:
                case Set(key, value):
                    commit.set(key, value)
                case Delete(key):
                    commit.discard(key)
                case Increment(key, by, default):
                    commit.increment(key, by, default)


def transaction_of(body: bytes) -> Asked:
    """Parse a body. Raises `Problem` if it is not valid."""
    try:
        said = json.loads(body, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
        asked = msgspec.convert(said, Asked)
    except (ValueError, RecursionError) as error:  # msgspec's and json's errors are both of the former
        raise Problem("bad-argument", f"the body is not a valid transaction: {error}") from None
    for key in (part.key for part in (*asked.compare, *asked.operations)):
        if key != key.encode(errors="ignore").decode():
            raise Problem("bad-argument", f"the key {key[:40]!r} is not UTF-8")
    for compare in asked.compare:
        if compare.absent is (compare.revision is not None):
            raise Problem("bad-argument", f"compare {compare.key[:40]!r}: give revision, or absent as true")
        if compare.revision is not None and not 0 <= compare.revision < 2**63:
            raise Problem("bad-argument", f"compare {compare.key[:40]!r}: no write can have had this revision")
    return asked


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a member twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than a float can be")
    return number

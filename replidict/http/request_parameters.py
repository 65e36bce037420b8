"""Reads the key, the query parameters and the conditions of a request; a wrong one raises a `Problem` that names it.

Rules kept here:

1. Nothing is guessed: a parameter that is unknown, given twice, or not UTF-8 is refused. So is a % that begins no
   escape, which other programs may or may not pass on as %25.
2. A key is the text after `/kv/`, percent-decoded once, from the path as it was sent.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from replidict.http.problems import Problem
from replidict.machine.codec import encode_key

TIMEOUT = 10.0
"""Seconds an operation may take, unless the request says otherwise."""
MAX_TIMEOUT = 60.0
LIMIT = 100
"""Keys on a page of the listing, unless the request says otherwise."""
MAX_LIMIT = 1000

MAX_DIGITS = 300
"""Characters of a number that is added."""

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ETAGS = re.compile(r'\s*(?:(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"\s*(?:,\s*|$))+')
_ETAG = re.compile(r'(W/)?"([^"]*)"')
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Reading:
    """How up to date a read must be."""

    linearizable: bool
    max_staleness: float | None
    timeout: float

    @property
    def local(self) -> bool:
        """Whether this node's copy will do as it is."""
        return not self.linearizable and self.max_staleness is None


@dataclass(frozen=True)
class Page:
    """Which keys a listing should return."""

    prefix: str
    after: str | None
    limit: int


@dataclass(frozen=True)
class Condition:
    """A condition on a key: `If-Match` or, `negated`, `If-None-Match`. Without tags it is `*`: any revision matches."""

    negated: bool
    tags: tuple[tuple[bool, str], ...]

    @property
    def any(self) -> bool:
        """Whether it is `*`."""
        return not self.tags

    @property
    def revision(self) -> int | None:
        """The one revision it names; None if no write can have had it. Raises `Problem` if it names several."""
        if len(self.tags) != 1:
            raise Problem("any-revision", "give If-Match one ETag: that of the GET that read what is to be replaced")
        weak, text = self.tags[0]
        canonical = text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text
        return int(text) if canonical and not weak else None

    def holds(self, revision: int | None) -> bool:
        """Whether it holds of a key that was last written by this revision; None: the key is absent."""
        if self.any:
            found = revision is not None
        else:
            found = any(text == str(revision) and (self.negated or not weak) for weak, text in self.tags)
        return found is not self.negated


def path_of(scope: Scope) -> str:
    """The path that a request asks for, without that of the application which this one is mounted in."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def key_of(request: Request, max_bytes: int) -> str:
    """The key that the path names."""
    segments = request.scope.get("root_path", "").count("/") + 2
    raw = request.scope["raw_path"].partition(b"?")[0].split(b"/", segments)
    if len(raw) <= segments:
        raise HTTPException(404)  # a slash that is percent-encoded does not end the "kv"
    _check_escapes("the key", raw[-1])
    try:
        key = unquote_to_bytes(raw[-1]).decode()
    except UnicodeDecodeError as error:
        raise Problem("bad-argument", f"the key, percent-decoded, is not UTF-8: {error}") from None
    if len(encode_key(key)) > max_bytes:
        raise Problem("key-too-long", f"a key may have {max_bytes} bytes, encoded")
    return key


def parameters_of(request: Request, known: set[str]) -> dict[str, str]:
    """The parameters of the query, all of which must be known."""
    query = request.scope["query_string"].decode("latin-1")
    _check_escapes("the query", request.scope["query_string"])
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=16)
    except ValueError as error:
        raise Problem("bad-argument", f"the query can't be read: {error}") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            there = f"there are {', '.join(sorted(known))}" if known else "there are none here"
            raise Problem("bad-argument", f"no parameter {name[:40]!r}: {there}")
        if name in found:
            raise Problem("bad-argument", f"{name} is given twice")
        found[name] = value
    return found


def _check_escapes(what: str, data: bytes) -> None:
    if _NO_ESCAPE.search(data):
        raise Problem("bad-argument", f"{what} holds a % without two hexadecimal digits: the character itself is %25")


def timeout_of(parameters: dict[str, str]) -> float:
    """Seconds that the operation may take."""
    return _number(parameters, "timeout", TIMEOUT, MAX_TIMEOUT)


def ttl_of(parameters: dict[str, str]) -> float | None:
    """Seconds after which the key is to go; None: it is to stay."""
    if "ttl" not in parameters:
        return None
    ttl = _number(parameters, "ttl", 0.0, 2.0**31)
    if not ttl:
        raise Problem("bad-argument", "ttl=0: must be a number of seconds above 0")
    return ttl


def reading_of(parameters: dict[str, str]) -> Reading:
    """How up to date the read must be."""
    consistency = parameters.get("consistency", "local")
    if consistency not in ("local", "linearizable"):
        raise Problem("bad-argument", f"consistency={consistency[:40]!r}: must be local or linearizable")
    staleness = None
    if "max_staleness" in parameters:
        if consistency == "linearizable":
            raise Problem("bad-argument", "max_staleness= and consistency=linearizable exclude each other")
        staleness = _number(parameters, "max_staleness", 0.0, 2.0**31)
    return Reading(consistency == "linearizable", staleness, timeout_of(parameters))


def page_of(parameters: dict[str, str]) -> Page:
    """Which keys are asked for."""
    limit = parameters.get("limit", str(LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= MAX_LIMIT):
        raise Problem("bad-argument", f"limit={limit[:40]!r}: must be a whole number from 1 to {MAX_LIMIT}")
    return Page(parameters.get("prefix", ""), parameters.get("after"), int(limit))


def condition_of(request: Request) -> Condition | None:
    """The condition that the request makes, if it makes one."""
    found = [
        _condition(name, negated, ", ".join(request.headers.getlist(name)))
        for name, negated in (("If-Match", False), ("If-None-Match", True))
        if name in request.headers
    ]
    if len(found) > 1:
        raise Problem("bad-argument", "give If-Match or If-None-Match, not both")
    return found[0] if found else None


def _condition(name: str, negated: bool, text: str) -> Condition:
    if text.strip() == "*":
        return Condition(negated, ())
    if not _ETAGS.fullmatch(text):
        raise Problem("bad-argument", f'{name}: {text[:40]}: must be * or an ETag with its quotes, as in "17"')
    return Condition(negated, tuple((bool(weak), tag) for weak, tag in _ETAG.findall(text)))


def number_of(text: str, name: str) -> int | float:
    """A number, as JSON writes it: an int, or a float."""
    if _JSON_NUMBER.fullmatch(text) and len(text) <= MAX_DIGITS:
        number: int | float = json.loads(text)
        if math.isfinite(number):
            return number
    raise Problem(
        "bad-argument", f"{name}={text[:40]!r}: must be a number as JSON writes it, of {MAX_DIGITS} characters at most"
    )


def _number(parameters: dict[str, str], name: str, default: float, most: float) -> float:
    text = parameters.get(name)
    if text is None:
        return default
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise Problem("bad-argument", f"{name}={text[:40]!r}: must be a number of seconds from 0 to {most:g}")
    return value

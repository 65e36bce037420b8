"""One node of the demo: a process that opens a `ReplicatedDict` and does what the lines on its standard input say.

Each line is a JSON list, a command with its arguments; each gets one line of JSON as the answer. You can type them:

    $ python -m examples.demo_node data
    ["set", "hello", "distributed"]
    {"result": null}
    ["get", "hello"]
    {"result": "distributed"}

The process ends when its input does, so none is left behind by a demo that was killed.
"""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from functools import cache
from typing import Any

from replidict import NotCommitted, OutcomeUnknown, ReplicatedDict, ReplidictError

Dict = ReplicatedDict[str, Any]


def main() -> None:
    path, *addresses = sys.argv[1:]
    address, peers = (addresses[0], addresses[1:]) if addresses else (None, [])
    logging.basicConfig(level=logging.ERROR)  # that peers come and go is what the demo is about
    with ReplicatedDict[str, Any](
        path, address=address, peers=peers, timeout=4
    ) as d:  # whoever is left alone ends soon
        for line in sys.stdin:
            try:
                answer = {"result": perform(d, json.loads(line))}
            except (ReplidictError, ValueError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                print(json.dumps(answer), flush=True)
            except BrokenPipeError:
                break  # nobody listens any more


def perform(d: Dict, command: list[Any]) -> Any:
    match command:
        case ["set", key, value]:
            d[key] = value
        case ["get", key]:
            return d.get(key)
        case ["update", entries]:
            update(d, entries)
        case ["catch up", seconds]:
            return d.wait_ready(seconds)
        case ["status"]:
            status = d.status()
            return {"leader": status.leader, "is_leader": status.is_leader, "revision": status.revision}
        case ["compare", others]:
            return compare(d, others | dict(characters()))
        case _:
            raise ValueError(f"unknown command {command!r}")
    return None


def update(d: Dict, entries: dict[str, Any]) -> None:
    """Store all of these at once. To store the same again changes nothing, so after any failure: once more."""
    for attempts_left in (2, 1, 0):
        try:
            d.update(entries)
            return
        except (NotCommitted, OutcomeUnknown):
            if not attempts_left:
                raise


def compare(d: Dict, expected: dict[str, Any]) -> dict[str, Any]:
    """What this node's copy holds, against what it should."""
    found = d.snapshot()
    return {
        "entries": len(found),
        "missing": len(expected.keys() - found.keys()),
        "different": sum(found[key] != expected[key] for key in found.keys() & expected.keys()),
        "unexpected": len(found.keys() - expected.keys()),
        "order": "the same" if list(found) == list(expected) else "another",
    }


@cache
def characters() -> list[tuple[str, dict[str, Any]]]:
    """Every named character of Unicode, as this Python knows it: name, and what there is to say about it."""
    found = []
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        name = unicodedata.name(char, "")
        if name:
            about = {
                "char": char,
                "code": code,
                "category": unicodedata.category(char),
                "bidirectional": unicodedata.bidirectional(char),
                "width": unicodedata.east_asian_width(char),
                "mirrored": unicodedata.mirrored(char) == 1,
                "decomposition": unicodedata.decomposition(char),
                "numeric": unicodedata.numeric(char, None),
            }
            found.append((name, about))
    return found


if __name__ == "__main__":
    main()
